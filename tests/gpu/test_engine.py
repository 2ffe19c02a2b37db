"""The engine on each device: steps, checkpoints, skipped steps, and a whole run that is resumed."""

import io
import json
from functools import cache

import pytest
import torch
import transformers
from PIL import Image

from data_prep.storage import Folder
from pipeline.batch_plan import BatchPlan
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.resume import engine_state, restore_engine
from pipeline.checkpoint.store import find_checkpoint
from pipeline.checkpoint.writer import CheckpointWriter
from pipeline.data.held_out import HeldOut
from pipeline.distributed import DistInfo, start_group
from pipeline.engine.fragments import view_engine
from pipeline.engine.logical import take_chunks
from pipeline.engine.start import DTYPES, start_engine, state_bytes
from pipeline.export.export import export_model
from pipeline.healing.guard import poison, skip_reason, watch_gradients
from pipeline.objectives import FlamingoObjective, LossScale
from pipeline.trained import open_trained
from tests.helpers.command import forked, run
from tests.helpers.forks import REPOSITORY, rank_environment
from tests.helpers.processes import run_processes
from tests.helpers.tiny import tiny_config
from tests.unit.pipeline.export.cases import TEXTS, pictures, with_towers

pytestmark = pytest.mark.distributed
SAMPLES = 8
WIDE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
CASES = [
    (1, "adamw", "bf16"),
    (2, "adamw_8bit", "bf16"),
    (2, "adamw_8bit", "fp16"),
    (3, "adamw_8bit", "bf16"),
    (2, "lion_8bit", "bf16"),
    (0, "adamw_8bit", "fp32"),
]


def on(device, function, *arguments):
    """Call ``function(info, *arguments)`` in a group of one rank; on a CPU in a process of its own."""
    if device == "cpu":
        return run_processes(function, 1, *arguments)[0]
    return function(_group(), *arguments)


@cache
def _group():
    return start_group()


def config_of(root, case):
    stage, optimizer, precision = case
    return tiny_config(
        root,
        f"optim={{name: {optimizer}, min_8bit_numel: 500, warmup_steps: 0}}",
        "model.experts={num_experts: 4, top_k: 2, every: 1, shared_expert: true}",
        "model.cross_attention={every: 1, num_heads: 2, head_dim: 8, gate_init: 1.0}",
        f"engine={{strategy: zero{stage}, expert_parallel: 1}}",
        f"train.precision={precision}",
    )


class Training:
    """An engine with one batch, which it is trained on again and again."""

    def __init__(self, info, config, case):
        self.info, (self.stage, _, self.precision) = info, case
        self.dtype = DTYPES[self.precision]
        self.objective = FlamingoObjective(config, self.dtype)
        model = self.objective.model.to(info.device)
        self.engine = start_engine(config, model, BatchPlan(SAMPLES, SAMPLES, 1), self.precision)
        watch_gradients(self.engine)
        self.engine.train()
        held_out = HeldOut(config.data, self.objective.text, self.objective.image)
        (self.batch,) = held_out.batches(SAMPLES, SAMPLES, 0, 1)

    def step(self, factor=1.0):
        """One step; the loss, and why it was skipped, if it was."""
        scale = LossScale(self.batch.num_target_tokens, 1)
        batch = self.batch.to(self.info.device, self.dtype)
        loss, _ = self.objective.loss(self.engine, batch, scale)
        loss = loss * factor
        self.engine.backward(poison(loss))
        self.engine.step()
        return float(loss), skip_reason(
            self.engine, loss_was_finite=bool(torch.isfinite(loss.detach()))
        )

    def steps(self, count):
        """So many that were taken, whatever the loss scale does; their losses."""
        losses = []
        for _ in range(40):
            if len(losses) == count:
                return losses
            loss, reason = self.step()
            losses += [] if reason else [loss]
        raise AssertionError("no step is taken")

    def chunks(self):
        """Copies of everything that is learnt."""
        view = view_engine(self.engine, self.stage)
        owned = view.owned(0, 1, stage=self.stage)
        return {(c.kind, c.name, c.start): c.values.cpu().clone() for c in take_chunks(view, owned)}


def saved_and_restored(info, root, folder, case):
    """Losses of three steps and two more; the same two from a checkpoint; what both engines hold."""
    config = config_of(root, case)
    one = Training(info, config, case)
    before = one.steps(3)
    store = Folder(folder, "checkpoint.folder")
    writer = CheckpointWriter(store, CheckpointConfig(), info)
    state = {"step": 3, "engine": engine_state(one.engine), "config": {}, "frozen": {}}
    writer.save(view_engine(one.engine, one.stage), one.stage, state)
    writer.settle(survive=False)
    saved = one.chunks()
    after = one.steps(2)
    other = Training(info, config, case)
    restore_engine(other.engine, other.stage, find_checkpoint(store, info))
    sizes = state_bytes(view_engine(one.engine, one.stage))
    result = {
        "losses": before + after,
        "restored": other.chunks(),
        "saved": saved,
        "again": other.steps(2),
        "ends": (one.chunks(), other.chunks()),
        "devices": sorted({str(p.device).split(":")[0] for p in one.engine.module.parameters()}),
        "sizes": sizes,
    }
    one.engine.destroy()
    other.engine.destroy()
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: "zero{} {} {}".format(*case))
def test_a_checkpoint_goes_on_to_the_bit(device, tiny_root, tmp_path, case):
    if device == "cpu" and case[2] == "fp16":
        pytest.skip("DeepSpeed has no fp16 on a CPU")
    found = on(device, saved_and_restored, tiny_root, str(tmp_path / "store"), case)
    assert found["devices"] == [device]
    assert found["losses"][-1] < found["losses"][0]
    assert_equal(found["restored"], found["saved"])
    assert found["again"] == found["losses"][3:]
    assert_equal(*found["ends"])
    assert ("uint8" in found["sizes"]) == case[1].endswith("8bit")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert torch.equal(values, other[key]), key


def bad_step(info, root, case):
    """What a step with a loss of NaN changes, and one with a loss of infinity."""
    training = Training(info, config_of(root, case), case)
    training.steps(2)
    before = training.chunks()
    reasons = [training.step(factor)[1] for factor in (float("nan"), float("inf"))]
    after = training.chunks()
    training.engine.destroy()
    return reasons, before, after


@pytest.mark.parametrize("case", CASES[1:4], ids=lambda case: "zero{} {} {}".format(*case))
def test_a_loss_that_is_not_finite_changes_nothing(device, tiny_root, case):
    if device == "cpu" and case[2] == "fp16":
        pytest.skip("DeepSpeed has no fp16 on a CPU")
    reasons, before, after = on(device, bad_step, tiny_root, case)
    assert reasons == ["skip", "skip"]
    assert_equal(before, after)


def updated(info, rule, bits):
    """Weights and moments after five updates of 8-bit or 32-bit moments on a device, from fixed gradients.

    Without decay, which bitsandbytes takes before the update on a CPU and behind it on a GPU.
    """
    from pipeline.engine.blockwise import BlockwiseOptimizer
    from pipeline.engine.fragments import Fragment

    generator = torch.Generator().manual_seed(1)
    key = torch.nn.Parameter(torch.randn(5000, generator=generator).to(info.device))
    groups = [{"params": [key]}]
    optimizer = BlockwiseOptimizer(groups, rule, lr=1e-2, betas=(0.9, 0.98), min_8bit_numel=1)
    # Two parameters, neither of whole blocks, and padding in front.
    fragments = [Fragment("a", 3000, 0, 3000, 0, 7), Fragment("b", 1900, 0, 1900, 0, 3007)]
    optimizer.place([key], fragments, [bits])
    for _ in range(5):
        key.grad = torch.randn(5000, generator=generator).to(info.device)
        optimizer.step()
    state = {n: t.cpu() for n, t in optimizer.state[key].items() if torch.is_tensor(t)}
    return key.detach().cpu(), state


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("rule", ["adam", "lion"])
@pytest.mark.parametrize("bits", [8, 32])
def test_moments_are_updated_on_a_gpu_as_on_a_cpu(rule, bits):
    """A moment between two values of the code may be rounded to the other one, and then weights differ."""
    (weights, state), (expected, wanted) = (
        updated(info, rule, bits) for info in (DistInfo.one(), DistInfo.alone())
    )
    close = torch.isclose(weights, expected, rtol=1e-4, atol=1e-5)
    assert close.float().mean() > (0.999 if bits == 32 else 0.97)
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if name.startswith("codes"):
            distance = (state[name].int() - tensor.int()).abs()
            assert distance.max() <= 1 and (distance > 0).float().mean() < 0.03, name
        else:
            torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-6)


def trained(device, root, name, steps):
    """`roseate train` on one process; its summary."""
    settings = [
        *(f"root={root}", f"name={name}", "tracking.uri=", "engine.expert_parallel=1"),
        "model.resampler={depth: 1, num_latents: 4, num_heads: 2, head_dim: 8}",
        "model.cross_attention={every: 1, num_heads: 2, head_dim: 8}",
        "batch={global_size: 8, micro_size: 4}",
        "optim={warmup_steps: 0, schedule: constant}",
        f"train={{steps: {steps}, log_every_steps: 1, validate_every_steps: 3, validate_samples: 16}}",
        "evaluation={max_samples: 16, speed_batches: [2]}",
        "checkpoint.every_steps=3",
    ]
    path = root / f"{name}_{steps}.json"
    command(device, "train", "demo", *settings, "--json", path)
    return json.loads(path.read_text())


def command(device, *arguments):
    """On a CPU forked; on a GPU as a person calls it, by no launcher, since Python knows it from its start."""
    if device == "cpu":
        return forked(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        for name in rank_environment(0, 1, 0):
            patch.delenv(name, raising=False)
        return run(*arguments, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def train(tiny_root):
    """Train the run {name}_{device} to its step n, once; its summary."""

    @cache
    def summary(device, name, steps):
        return trained(device, tiny_root, f"{name}_{device}", steps)

    return summary


def test_a_run_that_is_resumed_ends_as_one_that_was_not(device, tiny_root, train):
    once = train(device, "once", 6)
    train(device, "twice", 3)
    twice = train(device, "twice", 6)
    assert twice["resumed_at"] == 3 and twice["precision"] == once["precision"]
    assert device == "cpu" or once["precision"] == "bf16"
    assert twice["loss"] == once["loss"]
    assert twice["held_out_loss"] == once["held_out_loss"]
    ends = []
    for name in ("once", "twice"):
        folder = tiny_root / f"{name}_{device}" / "checkpoints"
        ends.append(find_checkpoint(Folder(str(folder), "checkpoint.folder"), None).weights())
    assert_equal(*ends)


def test_what_was_trained_captions_and_is_measured(device, tiny_root, train, tmp_path):
    train(device, "once", 6)
    place, figures = tiny_root / f"once_{device}", tmp_path / "figures.json"
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    said = command(device, "generate", place, tmp_path / "red.png", "--max-new-tokens", "4")
    assert "red.png" in said.stdout
    command(device, "evaluate", place, "--suite", "speed,perplexity", "--json", figures)
    found = json.dumps(json.loads(figures.read_text()))
    for precision in ("fp32", "bf16", *(["fp16"] if device == "cuda" else [])):
        assert f"{precision}_batch_2" in found


@pytest.mark.parametrize(("bits", "error"), [(8, 0.03), (4, 0.3)])
def test_what_is_exported_loads_in_few_bits_on_a_gpu(
    device, tiny_root, train, tmp_path, bits, error
):
    if device == "cpu":
        pytest.skip("tests/unit/pipeline/export has it")
    train(device, "once", 6)
    language = transformers.LlamaConfig(
        vocab_size=400, intermediate_size=256, num_key_value_heads=4, **WIDE
    )
    vision = transformers.ViTConfig(intermediate_size=256, image_size=32, patch_size=8, **WIDE)
    heads = {"num_heads": 4, "head_dim": 32}
    start = open_trained(str(tiny_root / f"once_{device}"))
    sizes = {"cross_attention": heads, "resampler": heads}
    model = with_towers(start, tmp_path / "towers", language, vision, **sizes)
    export_model(model, tmp_path / "model")
    images = [[Image.open(io.BytesIO(data)) for data in row] for row in pictures()]
    few = {
        8: transformers.BitsAndBytesConfig(load_in_8bit=True),
        4: transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    }[bits]
    places = {"trust_remote_code": True, "device_map": {"": 0}}
    auto = transformers.AutoModelForImageTextToText
    logits = []
    for options in ({}, {"quantization_config": few}):
        loaded = auto.from_pretrained(tmp_path / "model", **places, **options)
        processor = transformers.AutoProcessor.from_pretrained(
            tmp_path / "model", trust_remote_code=True
        )
        inputs = processor(images=images, text=TEXTS).to("cuda")
        with torch.no_grad():
            logits.append(loaded(**inputs).logits[inputs["attention_mask"].bool()].float())
        assert len(loaded.generate(**inputs, max_new_tokens=4)) == len(TEXTS)
    want, got = logits
    finite = torch.isfinite(want)
    assert (got[finite] - want[finite]).norm() < error * want[finite].norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_what_a_node_and_a_rank_tell_of_their_gpu(tmp_path):
    from pipeline.curves.mfu import device_peak
    from pipeline.curves.throughput import memory
    from pipeline.tracking.system import Node

    figures = Node(tmp_path).figures()
    told = torch.cuda.get_device_properties(0).total_memory
    used, share = (figures[f"gpu_0_memory_usage_{u}"] for u in ("megabytes", "percentage"))
    assert 0 < used < 1e-6 * told * 1.1 and 0 < share < 100
    assert 0 <= figures["gpu_0_utilization_percentage"] <= 100
    assert figures["gpu_0_power_usage_watts"] > 10
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert memory()["memory/gpu_peak_allocated_gb"] >= held.numel() / 1e9
    peak = device_peak("auto", held.device, "bf16")
    measured = device_peak("measured", held.device, "bf16")
    assert peak is None or 0.1 * peak < measured < 1.1 * peak
