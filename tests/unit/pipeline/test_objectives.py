"""A batch gives the same gradient however it is split; the control sees no image; towers must be there."""

from dataclasses import replace

import pytest
import torch

from data_prep.errors import ConfigError
from model.media import Media, MediaInput
from pipeline.data.batch import Batch
from pipeline.data.held_out import HeldOut
from pipeline.distributed import DistInfo
from pipeline.objectives import FlamingoObjective, LossScale, check_towers, run_flamingo
from pipeline.validation import held_out_losses
from tests.helpers.dataset import write_scenes
from tests.helpers.tiny import tiny_config, write_towers


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("objectives")
    write_towers(root)
    write_scenes(root / "data" / "held_out", 12, held_out=True)
    # One expert: the load-balance loss of a batch is not the mean of those of its parts.
    return tiny_config(
        root, "model.cross_attention.gate_init=1.0", "model.experts={num_experts: 1}"
    )


@pytest.fixture(scope="module")
def objective(config):
    objective = FlamingoObjective(config)
    objective.model.double()
    return objective


@pytest.fixture(scope="module")
def batch(config, objective):
    (batch,) = HeldOut(config.data, objective.text, objective.image).batches(12, 12)
    return batch


def moved(batch: Batch) -> Batch:
    return batch.to(torch.device("cpu"), torch.float64)


def part(batch: Batch, rows: slice) -> Batch:
    tensors = {n: getattr(batch, n)[rows] for n in ("input_ids", "attention_mask", "labels")}
    images = batch.media.inputs["image"].data[rows]
    media = Media(torch.arange(len(images)).unsqueeze(1), {"image": MediaInput(images)})
    tensors["samples"] = (batch.samples[rows] - (rows.start or 0)).clamp(min=-1)
    lists = {n: getattr(batch, n)[rows] for n in ("keys", "texts", "positions")}
    return replace(batch, media=media, **tensors, **lists)


def gradients(objective, batches: list[Batch], tokens: int) -> dict[str, torch.Tensor]:
    """As DeepSpeed does it: the mean over the parts."""
    objective.model.zero_grad()
    for piece in batches:
        loss, _ = objective.loss(objective.model, moved(piece), LossScale(tokens, len(batches)))
        (loss / len(batches)).backward()
    named = objective.model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None}


def test_any_split_of_a_batch_gives_the_same_gradient(objective, batch):
    tokens = batch.num_target_tokens
    whole = gradients(objective, [batch], tokens)
    split = [part(batch, slice(0, 3)), part(batch, slice(3, 4)), part(batch, slice(4, 12))]
    assert len({p.num_target_tokens / len(p.keys) for p in split}) > 1, "parts of equal length"
    for name, gradient in gradients(objective, split, tokens).items():
        # 1e-9: float64, only the order of sums differs.
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-9, msg=name)


def test_the_control_does_not_see_the_image(objective, batch):
    noise = MediaInput(torch.randint_like(batch.media.inputs["image"].data, 256))
    other = replace(batch, media=Media(batch.media.slots, {"image": noise}))
    with torch.no_grad():
        for black, equal in ((True, True), (False, False)):
            one, two = (
                run_flamingo(objective.model, moved(b.zero_images() if black else b)).loss_sum
                for b in (batch, other)
            )
            assert torch.equal(one, two) == equal


def test_held_out_loss_does_not_depend_on_the_batch_size(config, objective):
    alone = DistInfo(0, 1, torch.device("cpu"))
    held_out = HeldOut(config.data, objective.text, objective.image)
    objective.model.train()
    losses = [
        held_out_losses(objective.model, held_out.batches(12, size), alone, torch.float64)
        for size in (12, 4, 1)
    ]
    assert objective.model.training
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-6)  # the losses are summed in fp32


def test_every_missing_tower_is_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        check_towers(tiny_config(tmp_path))
    keys = [p.key for p in error.value.problems]
    assert keys == ["model.vision.path", "model.language.path"]


def test_towers_that_do_not_fit_are_refused_as_configuration(config):
    far = config.model_copy(deep=True)
    object.__setattr__(far.model.cross_attention, "first_layer", 99)
    with pytest.raises(ConfigError, match="first_layer = 99"):
        FlamingoObjective(far)
