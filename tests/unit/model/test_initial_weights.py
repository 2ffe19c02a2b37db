import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.initial_weights import load_initial
from tests.unit.model.tiny import VOCAB, WIDTH, tiny_batch, tiny_flamingo

OPEN_FLAMINGO = {
    "resampler": {"depth": 2, "num_latents": 3, "num_heads": 2, "head_dim": 8, "max_frames": 2},
    "cross_attention": {"every": 2, "first_layer": 1, "feed_forward": "gelu", "ff_mult": 4},
}


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def open_flamingo_checkpoint(seed=0):
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
    # <|endofchunk|>, <image> and a pad token behind the frozen rows.
    embedding = draw(VOCAB + 3, WIDTH)
    theirs["lang_encoder.model.embed_tokens.weight"] = embedding
    ours["new_tokens.weight"] = embedding[VOCAB : VOCAB + 2]
    for name in [n for n in theirs if ".gated_cross_attn_layer." in n]:
        alias = name.replace("model.layers.1.gated_cross_attn_layer", "gated_cross_attn_layers.1")
        theirs[alias] = theirs[name]
    return theirs, ours


@pytest.fixture
def model():
    sections = dict(OPEN_FLAMINGO)
    sections["cross_attention"] = sections["cross_attention"] | {"num_heads": 4, "head_dim": 32}
    return tiny_flamingo(**sections)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_open_flamingo_checkpoint_loads_by_its_key_map(model, tmp_path, prefix):
    theirs, ours = open_flamingo_checkpoint()
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
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
    one, two = (model.gated_blocks[1].feed_forward.routed for model in sparse)
    assert all(torch.equal(one.experts.down_proj[0], expert) for expert in one.experts.down_proj)
    assert not torch.equal(one.gate.weight, two.gate.weight)


def test_one_choice_among_several_experts_cannot_be_upcycled(tmp_path):
    save_file(trained(tiny_flamingo()), tmp_path / "weights.safetensors")
    model = tiny_flamingo(experts={"num_experts": 2, "top_k": 1})
    with pytest.raises(ValueError, match="top_k = 1.*take top_k of 2 or more"):
        load_initial(model, str(tmp_path))
    assert isinstance(model, nn.Module)
