import copy
import inspect

import pytest
import torch
from torch import nn

from model.flamingo import Flamingo
from model.media import Media, MediaEncoder, MediaInput
from model.padding import pad_left, pad_right
from model.resampler import PerceiverResampler
from model.tokens import NewTokens, TokenIds
from tests.unit.model.tiny import (
    END,
    FAMILIES,
    IMAGE,
    NEEDS_CXX,
    VOCAB,
    tiny_batch,
    tiny_flamingo,
    tiny_language,
    tiny_media,
)

LANGUAGES = ["llama", "opt", "gpt_neox"]
ENDLESS = {"eos_token_id": -1, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "top_k": 2}


def logits_of(model, batch):
    """Without the column of <image>, which is minus infinity."""
    with torch.no_grad():
        return model(**batch, with_logits=True).logits[..., : VOCAB + 1]


def pixels(batch):
    return batch["media"].inputs["image"].data


def plain_embeddings(model, ids):
    embedded = model.language.get_input_embeddings()(ids.masked_fill(ids >= VOCAB, 0))
    rows, _ = model.new_tokens()
    embedded[ids == END], embedded[ids == IMAGE] = rows[0], rows[1]
    return embedded


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", FAMILIES)
def test_with_closed_gates_the_model_equals_the_frozen_language_model_bit_for_bit(kind):
    model = tiny_flamingo(kind, open_gates=False, experts=EXPERTS)
    batch = tiny_batch()
    mask = batch["attention_mask"].long()
    keywords = {}
    if "position_ids" in inspect.signature(model.language.forward).parameters:
        keywords["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model.language(
            inputs_embeds=plain_embeddings(model, batch["input_ids"]),
            attention_mask=mask,
            use_cache=False,
            **keywords,
        ).logits
    real = batch["attention_mask"]
    assert torch.equal(logits_of(model, batch)[real][:, :VOCAB], plain[real])


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_learns_and_generates_what_it_computes(kind):
    """Loss and gradients against the full logits; cached generation against recomputation."""
    model, batch = tiny_flamingo(kind, experts=EXPERTS).train(), tiny_batch()
    output = model(**batch, with_logits=True)
    targets = batch["labels"][:, 1:].flatten()
    expected = nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), targets, ignore_index=-100, reduction="sum"
    )
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=0)
    parameters = list(trainable(model).values())
    ours = torch.autograd.grad(output.loss_sum, parameters, retain_graph=True)
    reference = torch.autograd.grad(expected, parameters)
    for name, one, two in zip(trainable(model), ours, reference, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)
    model.eval()
    prompt = {"media": batch["media"], "input_ids": batch["input_ids"][:, :6]}
    prompt["media"] = Media(torch.tensor([[0, -1], [1, 2]]), batch["media"].inputs)
    tokens = prompt["input_ids"]
    ones = torch.ones_like(tokens, dtype=torch.bool)
    out = model.generate(**prompt, attention_mask=ones, max_new_tokens=3, **ENDLESS)
    for _ in range(3):
        ones = torch.ones_like(tokens, dtype=torch.bool)
        step = prompt | {"input_ids": tokens, "attention_mask": ones, "labels": tokens}
        tokens = torch.cat([tokens, logits_of(model, step)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, tokens)


@pytest.mark.parametrize("kind", LANGUAGES)
def test_an_image_changes_no_token_before_it(kind):
    model, batch = tiny_flamingo(kind), tiny_batch()
    before = logits_of(model, batch)
    pixels(batch)[2] += 1.0  # the second of row 1; its <image> token is at 5
    after = logits_of(model, batch)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1, :5], after[1, :5])
    assert (before[1, 5:] - after[1, 5:]).abs().amax(-1).min() > 1e-6


def test_text_before_the_first_image_sees_nothing():
    model, batch = tiny_flamingo(), tiny_batch()
    before = logits_of(model, batch)
    pixels(batch).normal_()
    after = logits_of(model, batch)
    assert torch.equal(before[0, :2], after[0, :2])
    assert torch.equal(before[1, :1], after[1, :1])


@pytest.mark.parametrize("attend", ["latest", "all_previous"])
def test_the_first_image_is_seen_behind_the_second_only_when_told_so(attend):
    """At one block: through the language model's own attention the text carries it on anyway."""
    model, batch = tiny_flamingo(cross_attention={"attend": attend}), tiny_batch()
    seen = []
    model.gated_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    logits_of(model, batch)
    assert seen[0][1, :, 0].nonzero().flatten().tolist() == (
        [1, 2, 3, 4] if attend == "latest" else list(range(1, 9))
    )


def test_more_image_tokens_than_images_are_refused():
    model, batch = tiny_flamingo(), tiny_batch()
    batch["input_ids"][0, 4] = IMAGE
    with pytest.raises(ValueError, match="row 0 has 2 media tokens but 1 media"):
        model(**batch)


def test_a_batch_without_images_or_targets_gives_finite_losses_and_every_gradient():
    model, batch = tiny_flamingo(experts=EXPERTS).train(), tiny_batch()
    batch["input_ids"] = batch["input_ids"].clamp(max=VOCAB - 1)
    batch["media"] = Media(torch.full((2, 1), -1))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    output = model(**batch)
    total = output.loss_sum + output.load_balance_loss + output.z_loss
    total.backward()
    assert output.num_tokens == 0
    assert output.loss_sum.item() == 0.0
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_open_gates_give_every_trainable_part_a_gradient_and_frozen_parts_none():
    model, batch = tiny_flamingo(experts={"num_experts": 2, "top_k": 2}), tiny_batch()
    model.train()
    output = model(**batch)
    (output.loss_sum + output.z_loss).backward()
    for name, parameter in trainable(model).items():
        assert parameter.grad.abs().sum() > 0, name
    for part in (model.vision, model.language):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())


def test_frozen_towers_stay_in_eval_mode():
    model = tiny_flamingo()
    model.train()
    assert model.training
    assert model.media_encoders["image"].resampler.training
    frozen = [*model.vision.modules(), *model.language.modules()]
    assert not any(module.training for module in frozen)


def test_loss_sum_is_the_cross_entropy_of_the_shifted_labels():
    model, batch = tiny_flamingo(), tiny_batch()
    batch["labels"] = batch["input_ids"].masked_fill(~batch["attention_mask"], -100)
    output = model(**batch, with_logits=True)
    expected, count = 0.0, 0
    for b in range(2):
        for t in range(8):
            target = int(batch["labels"][b, t + 1])
            if target in (-100, IMAGE):
                continue
            expected -= float(output.logits[b, t].detach().double().log_softmax(-1)[target])
            count += 1
    assert output.num_tokens == count
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-5)
    each = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].detach().flatten(0, 1).double(),
        batch["labels"].masked_fill(batch["labels"] == IMAGE, -100)[:, 1:].flatten(),
        reduction="none",
    )
    torch.testing.assert_close(output.token_losses.flatten(), each.float(), rtol=1e-4, atol=1e-5)
    assert not output.token_losses.requires_grad


def test_right_padding_changes_nothing():
    """Neither the loss, nor the router losses, nor what experts of a small capacity take."""
    experts = EXPERTS | {"capacity_factor": 0.5}
    model, batch = tiny_flamingo(experts=experts).train(), tiny_batch()
    media = Media(torch.tensor([[0]]), batch["media"].inputs)
    tensors = {k: v[:1] for k, v in batch.items() if k != "media"}
    short = model(media, **{k: v[:, :7] for k, v in tensors.items()})
    tensors["input_ids"][0, 7:] = 5
    padded = model(media, **tensors)
    torch.testing.assert_close(padded.loss_sum, short.loss_sum, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded.load_balance_loss, short.load_balance_loss)
    torch.testing.assert_close(padded.z_loss, short.z_loss)


def test_rows_are_padded_on_the_side_that_is_asked_for():
    ids, mask = pad_right([[4], [5, 6, 7]], 9)
    assert ids.tolist() == [[4, 9, 9], [5, 6, 7]]
    assert mask.tolist() == [[True, False, False], [True] * 3]
    ids, mask = pad_left([[4], [5, 6, 7]], 9)
    assert ids.tolist() == [[9, 9, 4], [5, 6, 7]]
    assert mask.tolist() == [[False, False, True], [True] * 3]


def test_the_language_model_says_how_many_positions_it_has():
    assert tiny_flamingo().max_positions == 64
    model = tiny_flamingo("bloom")
    del model.language.config.max_position_embeddings  # SIZES gives it one that it does not know
    assert model.max_positions is None


def test_beams_keep_their_images():
    """Beam search by hand: every step recomputed from scratch for each beam."""
    model, batch = tiny_flamingo(seed=3), tiny_batch(3)
    ids = batch["input_ids"][:, :6]
    mask = torch.ones_like(ids, dtype=torch.bool)
    out = model.generate(
        batch["media"], ids, mask, num_beams=3, max_new_tokens=3, length_penalty=0.0, **ENDLESS
    )
    for row in range(2):
        media = Media(batch["media"].slots[row : row + 1], batch["media"].inputs)
        beams = [(0.0, ids[row : row + 1])]
        for _ in range(3):
            grown = []
            for score, tokens in beams:
                ones = torch.ones_like(tokens, dtype=torch.bool)
                step = {"media": media, "input_ids": tokens, "attention_mask": ones}
                logits = logits_of(model, step | {"labels": tokens})[0, -1].log_softmax(-1)
                for value, token in zip(*logits.topk(3), strict=True):
                    grown.append((score + float(value), torch.cat([tokens, token.view(1, 1)], 1)))
            beams = sorted(grown, key=lambda beam: -beam[0])[:3]
        assert torch.equal(out[row], beams[0][1][0])


def test_sampling_follows_its_seed():
    model, batch = tiny_flamingo(), tiny_batch()
    ids = batch["input_ids"][:, :6]
    mask = torch.ones_like(ids, dtype=torch.bool)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(
            model.generate(
                batch["media"], ids, mask, do_sample=True, temperature=2.0, top_k=0,
                max_new_tokens=8, **ENDLESS,
            )
        )  # fmt: skip
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", LANGUAGES)
def test_prompts_of_different_lengths_give_the_same_text_together_as_alone(kind):
    """Few-shot too: the second prompt has an example with an image of its own."""
    model, images = tiny_flamingo(kind), tiny_media().inputs
    prompts = [[IMAGE, 4], [IMAGE, 5, 6, END, IMAGE, 7, 8]]
    slots = torch.tensor([[0, -1], [1, 2]])
    settings = {"max_new_tokens": 6, **ENDLESS}
    together = model.generate(Media(slots, images), *pad_left(prompts, 0), **settings)
    for row, prompt in enumerate(prompts):
        alone = model.generate(
            Media(slots[row : row + 1], images), *pad_left([prompt], 0), **settings
        )
        assert torch.equal(together[row, -6:], alone[0, -6:])


def test_generate_pads_rows_that_ended_and_stops_when_all_have():
    model, batch = tiny_flamingo(), tiny_batch()
    prompt = {"media": batch["media"], "input_ids": batch["input_ids"]}
    prompt["attention_mask"] = torch.ones(2, 9, dtype=torch.bool)
    free = model.generate(**prompt, max_new_tokens=6, **ENDLESS)
    eos = int(free[0, 9])
    out = model.generate(**prompt, max_new_tokens=6, eos_token_id=eos, pad_token_id=0)
    assert out[0, 9] == eos
    assert (out[0, 10:] == 0).all()
    if eos in free[1, 9:]:
        assert out.shape[1] <= free.shape[1]


def test_generate_refuses_prompts_that_end_with_padding():
    model, batch = tiny_flamingo(), tiny_batch()
    del batch["labels"]
    with pytest.raises(ValueError, match="pad prompts on the left"):
        model.generate(**batch, max_new_tokens=1, eos_token_id=2, pad_token_id=0)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("inside", [False, True])
def test_the_image_token_is_never_generated_and_the_end_of_chunk_can_be(kind, inside):
    """Also where both are padding rows of the frozen vocabulary."""
    ids = TokenIds({"image": 7}, (6,)) if inside else TokenIds({"image": IMAGE}, (END,))
    language = tiny_language(kind)
    new = NewTokens(language.get_input_embeddings(), language.get_output_embeddings(), ids)
    base = tiny_flamingo(kind)
    model = Flamingo(
        dict(base.media_encoders),
        language,
        new_tokens=new,
        gated_blocks=base.gated_blocks,
        decoder_layers=language.model.layers,
        layers=[0, 1, 2],
    ).eval()
    tokens = torch.tensor([[ids.media["image"], 4, 5]])
    media = Media(torch.tensor([[0]]), tiny_media().inputs)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    labels = torch.tensor([[-100, ids.media["image"], 5]])
    output = model(media, tokens, mask, labels, with_logits=True)
    assert output.num_tokens == 1
    assert output.logits.shape[-1] == (VOCAB if inside else VOCAB + 2)
    # The head's input at the last token, so that the end of chunk can be made the likeliest.
    seen = []
    frozen_head = model.language.get_output_embeddings()
    frozen_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head = new.weight if new.head_weight is None else new.head_weight
    with torch.no_grad():
        if inside:
            frozen_head.weight[7] = 100 * model(media, tokens, mask, labels).loss_sum
        model(media, tokens, mask, labels, with_logits=True)
        head[0] = 100 * seen[-1][0, -1]
    out = model.generate(media, tokens, mask, max_new_tokens=3, **ENDLESS)[0, 3:]
    assert ids.media["image"] not in out
    assert out[0] == ids.text[0]


def test_new_tokens_are_trained_beside_a_frozen_embedding():
    for kind, tied in (("llama", False), ("gemma", True)):
        model, batch = tiny_flamingo(kind).train(), tiny_batch()
        assert (model.new_tokens.head_weight is None) == tied
        model(**batch).loss_sum.backward()
        for parameter in model.new_tokens.parameters():
            assert (parameter.grad.abs().sum(1) > 0).all()
        assert model.language.get_input_embeddings().weight.grad is None


def test_without_trained_tokens_nothing_is_kept_below_the_first_block():
    """Counted by the tensors that autograd saves during the layers below."""
    saved = {}
    for train in (True, False):
        section = {"language_section": {"train_new_tokens": train}}
        model = tiny_flamingo(cross_attention={"first_layer": 2}, **section).train()
        model.checkpoint_activations()
        layers, count = model.language.model.layers, []
        below = {"on": False}
        layers[0].register_forward_pre_hook(lambda *_, b=below: b.update(on=True))
        layers[1].register_forward_hook(lambda *_, b=below: b.update(on=False))

        def pack(tensor, b=below, c=count):
            c.append(b["on"])
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**tiny_batch()).loss_sum.backward()
        saved[train] = sum(count)
    assert saved[True] > 0 and saved[False] == 0


def test_router_hooks_are_attached_once_and_follow_a_replaced_module():
    model, batch = tiny_flamingo(experts=EXPERTS), tiny_batch()
    model.routers.attach()
    assert list(model.expert_modules) == ["gated_blocks.1.feed_forward.routed"]
    routed = model.gated_blocks[1].feed_forward.routed
    assert len(routed.gate._forward_hooks) == 1

    class Replaced(nn.Module):
        """The shape of AutoEP's layer: its gate stands in a router."""

        def __init__(self, ours: nn.Module) -> None:
            super().__init__()
            self.router = nn.Module()
            self.router.gate = nn.Linear(32, 4, bias=False)
            self.router.gate.weight = ours.gate.weight
            self.ours = ours
            ours.gate = self.router.gate

        def forward(self, hidden):
            return self.ours(hidden)

    expected = model(**batch)
    model.gated_blocks[1].feed_forward.routed = Replaced(routed)
    model.routers.attach()
    replaced = model(**batch)
    assert float(expected.load_balance_loss) >= 0.9
    torch.testing.assert_close(replaced.load_balance_loss, expected.load_balance_loss)
    torch.testing.assert_close(replaced.z_loss, expected.z_loss)


def test_a_copied_model_uses_its_own_blocks():
    model, batch = tiny_flamingo(), tiny_batch()
    copied = copy.deepcopy(model)
    before = logits_of(model, batch)
    for block in copied.gated_blocks:
        nn.init.zeros_(block.attn_gate)
    assert torch.equal(before, logits_of(model, batch))
    assert not torch.equal(before, logits_of(copied, batch))


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_activation_checkpointing_changes_no_gradient(kind):
    found = []
    for checkpointing in (False, True):
        model = tiny_flamingo(kind, experts=EXPERTS | {"jitter": 0.1}).train()
        if checkpointing:
            model.checkpoint_activations()
            model.checkpoint_activations()
        torch.manual_seed(5)
        output = model(**tiny_batch())
        (output.loss_sum + output.load_balance_loss + output.z_loss).backward()
        found.append({n: p.grad for n, p in trainable(model).items()})
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


@pytest.mark.parametrize(
    ("backend", "kind", "sections"),
    [
        ("aot_eager", "llama", {"experts": EXPERTS}),
        ("aot_eager", "opt", {"experts": EXPERTS}),
        # One layer, no experts: generating and compiling the C++ takes half a minute.
        pytest.param("inductor", "llama", {"language": {"num_hidden_layers": 1}}, marks=NEEDS_CXX),
    ],
)
def test_a_compiled_model_computes_the_same(backend, kind, sections):
    model, batch = tiny_flamingo(kind, **sections).train(), tiny_batch()
    compiled = torch.compile(copy.deepcopy(model), backend=backend)
    one, two = model(**batch), compiled(**batch)
    torch.testing.assert_close(one.loss_sum, two.loss_sum)
    one.loss_sum.backward()
    two.loss_sum.backward()
    ours = {n.removeprefix("_orig_mod."): p.grad for n, p in compiled.named_parameters()}
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


class TinyHearing(nn.Module):
    """A frozen sound encoder: pieces of 32 samples to features."""

    input_shape, num_patches, width = (128,), 4, 10

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 10), requires_grad=False)

    def forward(self, sound):
        return sound.unflatten(-1, (4, 32)) @ self.weight


def test_a_sound_encoder_joins_without_touching_the_blocks():
    torch.manual_seed(0)
    base, language = tiny_flamingo(), tiny_language()
    sound = IMAGE + 1
    ids = TokenIds({"image": IMAGE, "sound": sound}, (END,))
    resampler = PerceiverResampler(
        24, depth=1, num_latents=3, num_heads=2, head_dim=8, ff_mult=2, feature_width=10
    )
    model = Flamingo(
        {"image": base.media_encoders["image"], "sound": MediaEncoder(TinyHearing(), resampler)},
        language,
        new_tokens=NewTokens(
            language.get_input_embeddings(), language.get_output_embeddings(), ids
        ),
        gated_blocks=base.gated_blocks,
        decoder_layers=language.model.layers,
        layers=[0, 1, 2],
    ).eval()
    batch = tiny_batch()
    batch["input_ids"][1, 7] = sound
    images = batch["media"].inputs["image"]
    heard = MediaInput(torch.randn(1, 1, 128))
    batch["media"] = Media(
        torch.tensor([[0, -1, -1], [1, 2, 3]]), {"image": images, "sound": heard}
    )
    before = logits_of(model, batch)
    heard.data[:] = torch.randn(1, 1, 128)
    after = logits_of(model, batch)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1, :7], after[1, :7])
    assert not torch.equal(before[1, 7:], after[1, 7:])
    # A rank without sounds still uses every parameter, and its images keep their numbers.
    without = tiny_batch()
    model.train()
    model(**without).loss_sum.backward()
    assert all(p.grad is not None for p in trainable(model).values())
    torch.testing.assert_close(
        model.encode_media(without["media"])[1, 1],
        model.media_encoders["image"](images)[2],
    )


def test_the_language_loss_sees_no_media():
    model, batch = tiny_flamingo(losses={"language": 1.0}, experts=EXPERTS).train(), tiny_batch()
    first = model(**batch)
    pixels(batch).normal_()
    second = model(**batch)
    assert torch.equal(first.language_loss_sum, second.language_loss_sum)
    assert not torch.equal(first.loss_sum, second.loss_sum)
    batch["media"] = Media(torch.full((2, 1), -1))
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, 9)
    alone = model(**batch)
    torch.testing.assert_close(alone.loss_sum, alone.language_loss_sum)


@pytest.mark.parametrize("form", ["info_nce", "sigmoid"])
def test_the_contrastive_loss_trains_the_resampler(form):
    losses = {"contrastive": 1.0, "contrastive_form": form}
    model, batch = tiny_flamingo(losses=losses).train(), tiny_batch()
    output = model(**batch)
    output.contrastive_loss.backward()
    assert 0 <= float(output.contrastive_accuracy) <= 1
    resampler = model.media_encoders["image"].resampler
    assert all((p.grad.abs() > 0).any() for p in resampler.parameters())
    assert all(p.grad is not None for p in model.contrastive.parameters())


def test_without_experts_the_router_losses_are_zero():
    output = tiny_flamingo()(**tiny_batch())
    assert float(output.load_balance_loss) == float(output.z_loss) == 0.0
