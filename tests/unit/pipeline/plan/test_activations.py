"""Planned activations against what autograd keeps in a real forward pass, and a real step's peak."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from model import experts
from model.media import Media, MediaInput
from model.plan import compute_plan
from pipeline.plan.activations import Activations
from tests.helpers.living_bytes import LivingBytes
from tests.unit.model.tiny import IMAGE, VOCAB, tiny_flamingo

ROWS, TOKENS = 4, 64
EXPERTS = {"num_experts": 4, "top_k": 2, "every": 2}
LANGUAGE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
SECTIONS = {
    "cross_attention": {"every": 2, "num_heads": 4, "head_dim": 32},
    "language": LANGUAGE,
    "resampler": {"num_latents": 8, "num_heads": 4, "head_dim": 32},
}


def run(model):
    ids = torch.randint(3, VOCAB, (ROWS, TOKENS))
    ids[:, 0] = IMAGE
    pixels = torch.randn(ROWS, 1, 3, 16, 16)
    media = Media(torch.arange(ROWS)[:, None], {"image": MediaInput(pixels)})
    output = model(media, ids, torch.ones_like(ids, dtype=torch.bool), ids)
    terms = (output.load_balance_loss, output.z_loss, output.language_loss_sum)
    return output.loss_sum + sum(term for term in terms if term is not None)


def planned(model, *, checkpointing=False, passes=1):
    plan = compute_plan(model.to("meta"), num_tokens=TOKENS, num_images=1)
    return Activations(plan, model.fused_layers[0], passes, checkpointing, weight_bytes=4)


def build(losses=None, **sections):
    return tiny_flamingo(losses=losses, **SECTIONS | sections).train()


@pytest.mark.parametrize(
    ("losses", "sections"),
    [
        (None, {}),
        (None, {"experts": EXPERTS}),
        ({"language": 1.0}, {}),
        (None, {"language_section": {"train_new_tokens": False}}),
    ],
)
def test_a_forward_keeps_what_was_planned(losses, sections, monkeypatch):
    # As on a GPU: on a CPU experts compute more again and keep less.
    monkeypatch.setattr(experts, "looped_experts", experts.grouped_experts)
    model = build(losses, **sections)
    fixed = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run(model)
    found = sum(storage.nbytes() for storage in kept.values())
    del loss
    assert ROWS * planned(model).kept == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_at_its_fullest_no_more_than_was_planned(checkpointing):
    model = build()
    if checkpointing:
        model.checkpoint_activations()
    gradients = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    with LivingBytes([*model.parameters(), *model.buffers()]) as living:
        loss = run(model)
        after_forward = living.now
        loss.backward()
    activations = planned(build(), checkpointing=checkpointing)
    assert after_forward == pytest.approx(ROWS * activations.kept, rel=0.1)
    most = ROWS * activations.kept + activations.working(ROWS) + gradients
    # Planned as if all activations and all gradients were there at once, as they nearly are when an
    # earlier micro-batch has left its gradients.
    assert 0.45 * most < living.most < 1.05 * most


def test_checkpointing_keeps_the_inputs_of_layers_and_blocks():
    plan = planned(build(), checkpointing=True)
    full = planned(build())
    saved = sum(plan.plan.layer_bytes) + sum(plan.plan.block_bytes)
    inputs = (4 + 2) * TOKENS * 128 * 4
    assert plan.kept == full.kept - saved + inputs
    assert plan.kept < 0.5 * full.kept
