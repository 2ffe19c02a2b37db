import copy

import pytest
import torch
from torch import nn

from model.experts import ExpertFeedForward
from tests.unit.model.tiny import IMAGE, VOCAB, tiny_batch, tiny_flamingo

LANGUAGES = ["llama", "opt", "gpt_neox"]
EXPERTS = {"num_experts": 4, "top_k": 2}


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", LANGUAGES)
def test_with_closed_gates_the_model_equals_the_frozen_language_model_bit_for_bit(kind):
    model = tiny_flamingo(kind, open_gates=False, experts=EXPERTS)
    batch = tiny_batch()
    ids = batch["input_ids"]
    embedded = model.language.get_input_embeddings()(ids.masked_fill(ids == IMAGE, 0))
    embedded[ids == IMAGE] = model.image_token.weight
    with torch.no_grad():
        plain = model.language(
            inputs_embeds=embedded, attention_mask=batch["attention_mask"].long(), use_cache=False
        ).logits
    real = batch["attention_mask"]
    assert torch.equal(logits_of(model, batch)[real], plain[real])


@pytest.mark.parametrize("kind", LANGUAGES)
def test_an_image_changes_no_token_before_it(kind):
    model, batch = tiny_flamingo(kind), tiny_batch()
    before = logits_of(model, batch)
    batch["images"][1, 1] += 1.0  # its <image> token is at 5
    after = logits_of(model, batch)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1, :5], after[1, :5])
    assert (before[1, 5:] - after[1, 5:]).abs().amax(-1).min() > 1e-6


def test_an_image_reaches_no_token_behind_the_next_image_but_through_the_text():
    """Seen at one gated block: through the language model's own attention the text carries it on."""
    model, batch = tiny_flamingo(), tiny_batch()
    visible = model._visible(batch["input_ids"], batch["image_mask"])
    assert visible[1, :, 0].nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert visible[1, :, 1].nonzero().flatten().tolist() == [5, 6, 7, 8]
    block = model.gated_blocks[0]
    hidden = torch.randn(2, 9, 32)
    changed = batch["images"].clone()
    changed[1, 0] += 1.0
    with torch.no_grad():
        before = block(hidden, model.encode_images(batch["images"]), visible)
        after = block(hidden, model.encode_images(changed), visible)
    differs = (before != after).any(-1)
    assert differs.nonzero().tolist() == [[1, 1], [1, 2], [1, 3], [1, 4]]


def test_text_before_the_first_image_sees_nothing():
    model, batch = tiny_flamingo(), tiny_batch()
    before = logits_of(model, batch)
    batch["images"] = torch.randn_like(batch["images"])
    after = logits_of(model, batch)
    assert torch.equal(before[0, :2], after[0, :2])
    assert torch.equal(before[1, :1], after[1, :1])


def test_a_padded_image_is_never_seen_even_with_a_token_of_its_own():
    model, batch = tiny_flamingo(), tiny_batch()
    batch["image_mask"] = torch.tensor([[True, False], [True, False]])
    before = logits_of(model, batch)
    batch["images"][:, 1] = 1e4
    assert torch.equal(before, logits_of(model, batch))


def test_more_image_tokens_than_media_slots_are_refused():
    model, batch = tiny_flamingo(), tiny_batch()
    batch["input_ids"][1, 7] = IMAGE
    with pytest.raises(ValueError, match="3 image tokens but only 2 media slots"):
        model(**batch)


def test_a_batch_without_images_or_targets_gives_finite_losses_and_every_gradient():
    model, batch = tiny_flamingo(experts=EXPERTS).train(), tiny_batch()
    batch["input_ids"] = batch["input_ids"].clamp(max=VOCAB - 1)
    batch["image_mask"] = torch.zeros(2, 2, dtype=torch.bool)
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
    assert model.resampler.training
    frozen = [*model.vision.modules(), *model.language.modules()]
    assert not any(module.training for module in frozen)


def test_loss_sum_is_the_cross_entropy_of_the_shifted_labels():
    model, batch = tiny_flamingo(), tiny_batch()
    batch["labels"] = batch["input_ids"].masked_fill(~batch["attention_mask"], -100)
    output = model(**batch)
    expected, count = 0.0, 0
    for b in range(2):
        for t in range(8):
            target = int(batch["labels"][b, t + 1])
            if target in (-100, IMAGE):
                continue
            expected -= float(output.logits[b, t].double().log_softmax(-1)[target])
            count += 1
    assert output.num_tokens == count
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-5)


def test_right_padding_changes_nothing():
    model, batch = tiny_flamingo(experts=EXPERTS), tiny_batch()
    short = {k: v if k.startswith("image") else v[:, :7] for k, v in batch.items()}
    one = {k: v[:1] for k, v in batch.items()}
    one_short = {k: v[:1] for k, v in short.items()}
    ours, reference = model(**one), model(**one_short)
    torch.testing.assert_close(ours.loss_sum, reference.loss_sum, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.load_balance_loss, reference.load_balance_loss)
    torch.testing.assert_close(ours.z_loss, reference.z_loss)


@pytest.mark.parametrize("kind", LANGUAGES)
def test_generate_equals_greedy_steps_by_full_recomputation(kind):
    model, batch = tiny_flamingo(kind, experts=EXPERTS), tiny_batch()
    prompt = {k: v[:, :6] if v.shape[1] == 9 else v for k, v in batch.items()}
    del prompt["labels"]
    tokens = prompt["input_ids"]
    out = model.generate(**prompt, max_new_tokens=5, eos_token_id=-1, pad_token_id=0)
    for _ in range(5):
        mask = torch.ones_like(tokens, dtype=torch.bool)
        step = {**prompt, "input_ids": tokens, "attention_mask": mask, "labels": tokens}
        tokens = torch.cat([tokens, logits_of(model, step)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, tokens)


def test_generate_gives_the_same_for_a_left_padded_prompt():
    model, batch = tiny_flamingo("llama"), tiny_batch()
    images, image_mask = batch["images"][:1], batch["image_mask"][:1]
    ids = batch["input_ids"][:1, :5]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    ends = {"max_new_tokens": 4, "eos_token_id": -1, "pad_token_id": 0}
    plain = model.generate(images, image_mask, ids, torch.ones_like(ids).bool(), **ends)
    mask = torch.arange(8).unsqueeze(0) >= 3
    assert torch.equal(model.generate(images, image_mask, padded, mask, **ends)[:, 3:], plain)


def test_generate_pads_rows_that_ended_and_stops_when_all_have():
    model, batch = tiny_flamingo(), tiny_batch()
    del batch["labels"]
    batch["attention_mask"] = torch.ones(2, 9, dtype=torch.bool)
    free = model.generate(**batch, max_new_tokens=6, eos_token_id=-1, pad_token_id=0)
    eos = int(free[0, 9])
    out = model.generate(**batch, max_new_tokens=6, eos_token_id=eos, pad_token_id=0)
    assert out[0, 9] == eos
    assert (out[0, 10:] == 0).all()
    if eos in free[1, 9:]:
        assert out.shape[1] <= free.shape[1]


def test_generate_refuses_prompts_that_end_with_padding():
    model, batch = tiny_flamingo(), tiny_batch()
    del batch["labels"]
    with pytest.raises(ValueError, match="pad prompts on the left"):
        model.generate(**batch, max_new_tokens=1, eos_token_id=2, pad_token_id=0)


def test_the_image_token_is_never_generated_nor_a_target():
    model, batch = tiny_flamingo(), tiny_batch()
    model.image_token_id = 7  # inside the frozen table, as with padded vocabularies
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, 7)
    with torch.no_grad():
        model.language.lm_head.weight.zero_()
        model.language.lm_head.weight[7] = 1e3
    batch["attention_mask"] = torch.ones(2, 9, dtype=torch.bool)
    batch["image_mask"] = torch.ones(2, 2, dtype=torch.bool)
    labels = batch.pop("labels")
    batch["input_ids"][batch["input_ids"] == 7] = 8
    out = model.generate(**batch, max_new_tokens=2, eos_token_id=-1, pad_token_id=0)
    assert 7 not in out[:, 9:]
    output = model(**batch, labels=torch.full_like(labels, 7))
    assert output.num_tokens == 0


def test_router_hooks_are_attached_once_and_follow_a_replaced_module():
    model, batch = tiny_flamingo(experts=EXPERTS), tiny_batch()
    model.attach_router_hooks()
    assert list(model.expert_modules) == ["gated_blocks.1.feed_forward"]
    gate = model.gated_blocks[1].feed_forward.gate
    assert len(gate._forward_hooks) == 1

    class Replaced(nn.Module):
        """The shape of AutoEP's layer: its gate stands in a router."""

        def __init__(self, ours: ExpertFeedForward) -> None:
            super().__init__()
            self.router = nn.Module()
            self.router.gate = nn.Linear(32, 4, bias=False)
            self.router.gate.weight = ours.gate.weight
            self.ours = ours
            ours.gate = self.router.gate

        def forward(self, hidden):
            return self.ours(hidden)

    expected = model(**batch)
    model.gated_blocks[1].feed_forward = Replaced(model.gated_blocks[1].feed_forward)
    model.attach_router_hooks()
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


def test_without_experts_the_router_losses_are_zero():
    output = tiny_flamingo()(**tiny_batch())
    assert float(output.load_balance_loss) == float(output.z_loss) == 0.0
