import pytest
import torch
from safetensors.torch import save_file

from model.initial_weights import load_initial
from tests.unit.model.tiny import VOCAB, WIDTH, tiny_batch, tiny_flamingo

OPEN_FLAMINGO = {
    "resampler": {"depth": 2, "num_latents": 3, "num_heads": 2, "head_dim": 8, "max_frames": 2},
    "cross_attention": {"every": 2, "first_layer": 1, "feed_forward": "gelu", "ff_mult": 4},
}


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def open_flamingo_checkpoint(seed=0, *, added=3):
    """Tensors under open_flamingo's names, and what ours should then be."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    media, inner, vision = "perceiver", 16, 24
    theirs, ours = {}, {}

    def add(name, own, *shape):
        theirs[name] = ours[own] = draw(*shape)

    resampler = "media_encoders.image.resampler"
    add(f"{media}.latents", f"{resampler}.latents", 3, vision)
    add(f"{media}.frame_embs", f"{resampler}.frames", 2, vision)
    for end in ("weight", "bias"):
        add(f"{media}.norm.{end}", f"{resampler}.norm.{end}", vision)
    for i in range(2):
        layer, own = f"{media}.layers.{i}", f"{resampler}.layers.{i}"
        for norm in ("norm_media", "norm_latents"):
            for end in ("weight", "bias"):
                add(f"{layer}.0.{norm}.{end}", f"{own}.attention.{norm}.{end}", vision)
        add(f"{layer}.0.to_q.weight", f"{own}.attention.to_q.weight", inner, vision)
        add(f"{layer}.0.to_kv.weight", f"{own}.attention.to_kv.weight", 2 * inner, vision)
        add(f"{layer}.0.to_out.weight", f"{own}.attention.to_out.weight", vision, inner)
        for end in ("weight", "bias"):
            add(f"{layer}.1.0.{end}", f"{own}.feed_forward_norm.{end}", vision)
        add(f"{layer}.1.1.weight", f"{own}.feed_forward.up_proj.weight", 4 * vision, vision)
        add(f"{layer}.1.3.weight", f"{own}.feed_forward.down_proj.weight", vision, 4 * vision)
    # Of three layers, every second from the second: the one block stands before layer 1.
    layer, own, inner = "lang_encoder.model.layers.1.gated_cross_attn_layer", "gated_blocks.0", 128
    for end in ("weight", "bias"):
        add(f"{layer}.attn.norm.{end}", f"{own}.attention.norm.{end}", WIDTH)
        add(f"{layer}.ff.0.{end}", f"{own}.feed_forward_norm.{end}", WIDTH)
    add(f"{layer}.attn.to_q.weight", f"{own}.attention.to_q.weight", inner, WIDTH)
    add(f"{layer}.attn.to_kv.weight", f"{own}.attention.to_kv.weight", 2 * inner, vision)
    add(f"{layer}.attn.to_out.weight", f"{own}.attention.to_out.weight", WIDTH, inner)
    add(f"{layer}.attn_gate", f"{own}.attn_gate", 1)
    add(f"{layer}.ff_gate", f"{own}.ff_gate", 1)
    add(f"{layer}.ff.1.weight", f"{own}.feed_forward.up_proj.weight", 4 * WIDTH, WIDTH)
    add(f"{layer}.ff.3.weight", f"{own}.feed_forward.down_proj.weight", WIDTH, 4 * WIDTH)
    # <|endofchunk|>, <image> and, as the third, a pad token behind the tokenizer's own.
    embedding = draw(VOCAB + added, WIDTH)
    theirs["lang_encoder.model.embed_tokens.weight"] = embedding
    ours["new_tokens.weight"] = embedding[VOCAB : VOCAB + 2]
    for name in [n for n in theirs if ".gated_cross_attn_layer." in n]:
        alias = name.replace("model.layers.1.gated_cross_attn_layer", "gated_cross_attn_layers.1")
        # The same tensor in a checkpoint of theirs; another one here, to see which is read.
        theirs[alias] = theirs[name] + 1
        block = name.replace("model.layers", "old_decoder_blocks")
        theirs[block] = theirs[name] + 2
    theirs["lang_encoder.old_decoder_blocks.1.self_attn.q_proj.weight"] = draw(2, 2)
    return theirs, ours


def open_flamingo_model(*, cross=None, **sections):
    sections = OPEN_FLAMINGO | sections
    heads = {"num_heads": 4, "head_dim": 32}
    sections["cross_attention"] = sections["cross_attention"] | heads | (cross or {})
    return tiny_flamingo(**sections)


@pytest.fixture
def model():
    return open_flamingo_model()


@pytest.mark.parametrize("added", [2, 3])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_open_flamingo_checkpoint_loads_by_its_key_map(model, tmp_path, prefix, added):
    assert model.fused_layers == (1,)
    theirs, ours = open_flamingo_checkpoint(added=added)
    state = {"model_state_dict": {prefix + n: t for n, t in theirs.items()}, "epoch": 3}
    torch.save(state, tmp_path / "checkpoint.pt")
    head = model.new_tokens.head_weight.detach().clone()
    load_initial(model, str(tmp_path / "checkpoint.pt"))
    found = trained(model)
    # The head is not tied here, and open_flamingo did not train it.
    assert torch.equal(found.pop("new_tokens.head_weight"), head)
    assert found.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(found[name], value), name


def test_new_rows_are_taken_by_id_from_an_embedding_cut_down_to_the_tokenizer(tmp_path):
    # A language model with padding rows: open_flamingo has cut them off, the tower keeps them.
    model = open_flamingo_model(language={"vocab_size": VOCAB + 8, "tie_word_embeddings": True})
    theirs, ours = open_flamingo_checkpoint()
    torch.save(theirs, tmp_path / "checkpoint.pt")
    load_initial(model, str(tmp_path / "checkpoint.pt"))
    assert torch.equal(model.new_tokens.weight, ours["new_tokens.weight"])
    assert model.new_tokens.head_weight is None


def test_a_head_in_the_checkpoint_gives_the_row_of_the_end_of_chunk(model, tmp_path):
    theirs, _ = open_flamingo_checkpoint()
    head = theirs["lang_encoder.lm_head.weight"] = torch.randn(VOCAB + 3, WIDTH)
    torch.save(theirs, tmp_path / "checkpoint.pt")
    load_initial(model, str(tmp_path / "checkpoint.pt"))
    assert torch.equal(model.new_tokens.head_weight, head[VOCAB : VOCAB + 1])


def test_a_checkpoint_of_a_frozen_embedding_leaves_the_new_rows(model, tmp_path):
    theirs, ours = open_flamingo_checkpoint()
    del theirs["lang_encoder.model.embed_tokens.weight"]
    torch.save(theirs, tmp_path / "checkpoint.pt")
    before = model.new_tokens.weight.detach().clone()
    load_initial(model, str(tmp_path / "checkpoint.pt"))
    assert torch.equal(model.new_tokens.weight, before)
    assert torch.equal(model.gated_blocks[0].attn_gate, ours["gated_blocks.0.attn_gate"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cross": {"first_layer": 0}, "language": {"num_hidden_layers": 2}},
            "before the language layers 1, those of the model before 0; set "
            "model.cross_attention.first_layer = 1 and model.cross_attention.every = 2",
        ),
        (
            {"cross": {"feed_forward": "squared_relu"}},
            "those of the model squared_relu; set model.cross_attention.feed_forward = gelu",
        ),
        (
            {"resampler": OPEN_FLAMINGO["resampler"] | {"feed_forward": "relu"}},
            "those of the model relu; set model.resampler.feed_forward = gelu",
        ),
        (
            {"cross": {"feed_forward": "swiglu"}},
            "those of the model swiglu; set model.cross_attention.feed_forward = gelu",
        ),
        ({"cross": {"norm": "rms_norm"}}, "attention.norm.bias is not in the model"),
        ({"cross": {"qk_norm": True}}, "attention.k_norm.bias is missing"),
        ({"cross": {"gate": "vector"}}, r"attn_gate is \(1,\), the model has \(32,\)"),
    ],
)
def test_an_open_flamingo_checkpoint_wants_its_own_design(tmp_path, settings, message):
    model = open_flamingo_model(**settings)
    torch.save(open_flamingo_checkpoint()[0], tmp_path / "checkpoint.pt")
    before = trained(model)
    with pytest.raises(ValueError, match=message):
        load_initial(model, str(tmp_path / "checkpoint.pt"))
    assert all(torch.equal(before[n], p) for n, p in trained(model).items())


EMBEDDING = "lang_encoder.model.embed_tokens.weight"
BLOCK = "lang_encoder.model.layers.1.gated_cross_attn_layer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({f"{BLOCK}.attn.to_v.weight": torch.ones(1)}), "not in the key map"),
        (lambda w: w.pop(f"{BLOCK}.ff_gate"), "gated_blocks.0.ff_gate is missing.*model section"),
        (
            lambda w: w.update({EMBEDDING: w[EMBEDDING][: VOCAB + 1]}),
            "embed_tokens.weight has 41 rows, .* ids 40, 41; set model.language.path",
        ),
        (lambda w: w.update({EMBEDDING: torch.ones(VOCAB + 2, 8)}), r"new_tokens.weight is \(2, 8"),
        (lambda w: w.update({"perceiver.layers.0.2.weight": torch.ones(1)}), "not in the key map"),
        (lambda w: w.pop("perceiver.latents"), "resampler.latents is missing"),
        (lambda w: w.update({"perceiver.latents": torch.ones(4, 24)}), r"\(4, 24\), the model has"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(
    model, tmp_path, change, message
):
    weights, _ = open_flamingo_checkpoint()
    change(weights)
    torch.save(weights, tmp_path / "checkpoint.pt")
    before = trained(model)
    with pytest.raises(ValueError, match=message):
        load_initial(model, str(tmp_path / "checkpoint.pt"))
    assert all(torch.equal(before[n], p) for n, p in trained(model).items())


def test_a_path_without_weights_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="init_from = .*there is no .*give a checkpoint folder"):
        load_initial(model, str(tmp_path))


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.pt"])
def test_a_file_that_holds_no_weights_is_refused(model, tmp_path, name):
    (tmp_path / name).write_text("a page that says the file was not found")
    with pytest.raises(ValueError, match=f"init_from = .*{name} holds no weights .*give a check"):
        load_initial(model, str(tmp_path / name))
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list.pt holds no weights"):
        load_initial(model, str(tmp_path / "list.pt"))


def test_our_own_weights_load_from_folder_and_file(tmp_path):
    source = tiny_flamingo(seed=1)
    save_file(trained(source), tmp_path / "weights.safetensors")
    for path in (tmp_path, tmp_path / "weights.safetensors"):
        other = tiny_flamingo(seed=2)
        load_initial(other, str(path))
        assert all(torch.equal(trained(source)[n], p) for n, p in trained(other).items())


@pytest.mark.parametrize("shared", [False, True])
def test_upcycled_equals_dense_at_step_0(tmp_path, shared):
    dense = tiny_flamingo(seed=1)
    save_file(trained(dense), tmp_path / "weights.safetensors")
    experts = {"num_experts": 4, "top_k": 2, "every": 2, "shared_expert": shared}
    sparse = [tiny_flamingo(seed=seed, experts=experts) for seed in (2, 3)]
    for model in sparse:
        load_initial(model, str(tmp_path))
        # The frozen towers are not in a checkpoint.
        model.language.load_state_dict(dense.language.state_dict())
        model.vision.load_state_dict(dense.vision.state_dict())
    with torch.no_grad():
        batch = tiny_batch()
        expected = dense(**batch, with_logits=True).logits[..., : VOCAB + 1]
        found = sparse[0](**batch, with_logits=True).logits[..., : VOCAB + 1]
    real = batch["attention_mask"]  # the experts give padding 0
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)
    source = trained(dense)
    for model in sparse:
        # Bit for bit the same, but for the feed-forward of block 1.
        for name, value in trained(model).items():
            if not name.startswith("gated_blocks.1.feed_forward."):
                assert torch.equal(value, source[name]), name
        experts = model.gated_blocks[1].feed_forward.routed.experts
        for part in ("gate_up_proj", "down_proj"):
            stacked = getattr(experts, part)
            assert len(stacked) == 4
            value = source[f"gated_blocks.1.feed_forward.{part}.weight"]
            assert all(torch.equal(expert, value) for expert in stacked)
    media = torch.randn(2, 2, 3, 24)
    text, visible = torch.randn(2, 5, WIDTH), torch.ones(2, 5, 2, dtype=torch.bool)
    for index in (0, 2):
        one, two = (m.gated_blocks[index](text, media, visible) for m in (dense, sparse[0]))
        assert torch.equal(one, two)
    one, two = (model.gated_blocks[1].feed_forward.routed.gate for model in sparse)
    assert not torch.equal(one.weight, two.weight)


def test_upcycling_keeps_the_draw_of_the_router_and_of_the_shared_expert(tmp_path):
    save_file(trained(tiny_flamingo(seed=1)), tmp_path / "weights.safetensors")
    model = tiny_flamingo(
        seed=2, experts={"num_experts": 4, "top_k": 2, "every": 2, "shared_expert": True}
    )
    before = trained(model)
    load_initial(model, str(tmp_path))
    after = trained(model)
    for part in ("routed.gate.weight", "shared.gate_up_proj.weight"):
        name = f"gated_blocks.1.feed_forward.{part}"
        assert torch.equal(before[name], after[name])
    assert not after["gated_blocks.1.feed_forward.shared.down_proj.weight"].any()


@pytest.mark.parametrize(
    ("source", "experts", "message"),
    [
        ({"cross_attention": {"feed_forward": "gelu"}}, {}, "not a dense swiglu feed-forward"),
        ({}, {"backend": "native"}, "routed.experts.down_proj is not in the model"),
        ({"experts": {"num_experts": 2, "top_k": 2, "every": 2}}, {}, r"the model has \(4, "),
    ],
)
def test_weights_that_cannot_become_these_experts_are_refused(tmp_path, source, experts, message):
    save_file(trained(tiny_flamingo(**source)), tmp_path / "weights.safetensors")
    model = tiny_flamingo(experts={"num_experts": 4, "top_k": 2, "every": 2} | experts)
    before = trained(model)
    with pytest.raises(ValueError, match=message):
        load_initial(model, str(tmp_path))
    assert all(torch.equal(before[n], p) for n, p in trained(model).items())


def test_one_choice_among_several_experts_cannot_be_upcycled(tmp_path):
    save_file(trained(tiny_flamingo()), tmp_path / "weights.safetensors")
    model = tiny_flamingo(experts={"num_experts": 2, "top_k": 1})
    with pytest.raises(ValueError, match="top_k = 1.*take top_k of 2 or more"):
        load_initial(model, str(tmp_path))
