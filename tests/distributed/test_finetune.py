"""Fine-tuning whole: from a checkpoint, all parts, gates alone or adapters alone, and its early end."""

import shutil

import mlflow
import pytest
import torch

from data_prep.errors import ConfigError
from data_prep.storage import Folder
from pipeline.checkpoint.store import find_checkpoint, names
from pipeline.finetune.start import GATES
from pipeline.trained import open_trained
from tests.distributed.test_train import newest, train, weights

pytestmark = pytest.mark.distributed
ALONE = "engine.expert_parallel=1"
ADAPTERS = "train.trainable=lora"


@pytest.fixture(scope="module")
def base(tiny_root):
    train(tiny_root, "base", ALONE, processes=1)
    return str(tiny_root / "base")


def model_of(root, name):
    model = open_trained(str(root / name)).objective.model
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def differing(one, two):
    assert one.keys() == two.keys()
    return {n for n in one if not torch.equal(one[n], two[n])}


def test_a_run_begins_with_the_weights_and_with_nothing_else(tiny_root, base):
    start = f"train.start_from={base}"
    summary = train(tiny_root, "all", start, ALONE, "optim.lr=1e-12", "train.steps=1", processes=1)
    assert summary["resumed_at"] is None
    before, after = model_of(tiny_root, "base"), model_of(tiny_root, "all")
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    state = newest(tiny_root, "all").state
    assert state["data"]["position"] == 8 and state["start_from"].endswith("step_000006")


def test_a_start_whose_weights_are_all_trained_need_not_stay(tiny_root, base):
    moved = tiny_root / "moved"
    shutil.copytree(base, moved)
    run = (f"train.start_from={moved}", ALONE, "checkpoint.every_steps=3")
    train(tiny_root, "alone", *run, processes=1)
    whole = weights(tiny_root, "alone")[0]
    shutil.rmtree(moved)
    shutil.rmtree(tiny_root / "alone" / "checkpoints" / "step_000006")
    assert train(tiny_root, "alone", *run, processes=1)["resumed_at"] == 3
    again, state = weights(tiny_root, "alone")
    assert differing(whole, again) == set()
    assert state["start_from"].startswith(str(moved)) and state["start_needed"] is False
    assert open_trained(str(tiny_root / "alone")).step == 6


def test_what_only_the_start_has_trained_of_a_tower_stays(tiny_root, base):
    """Also through a second fine-tuning, which gets it from the start of its start."""
    entry = r"train.unfreeze=[{step: 0, parameters: 'language.*layers\.1\..*'}]"
    train(tiny_root, "thawed", f"train.start_from={base}", entry, ALONE, processes=1)
    thawed, plain = model_of(tiny_root, "thawed"), model_of(tiny_root, "base")
    towers = {n for n in thawed if n.startswith("language.")}
    assert differing(plain, thawed) & towers
    start = "thawed"
    for name in ("second", "third"):
        run = (f"train.start_from={tiny_root / start}", ALONE, "train.steps=2")
        train(tiny_root, name, *run, "checkpoint.every_steps=1", processes=1)
        held, state = weights(tiny_root, name)
        assert not towers & held.keys() and state["start_needed"]
        tuned = model_of(tiny_root, name)
        changed = differing(thawed, tuned)
        assert changed and not changed & towers
        start = name
    shutil.rmtree(tiny_root / "third" / "checkpoints" / "step_000002")
    assert train(tiny_root, "third", *run, processes=1)["resumed_at"] == 1
    assert differing(tuned, model_of(tiny_root, "third")) == set()
    (tiny_root / "second").rename(tiny_root / "away")
    with pytest.raises(ConfigError, match="train.start_from"):
        open_trained(str(tiny_root / "third"))


def test_a_tower_that_is_divided_is_filled_from_the_start_too(tiny_root, base):
    """The first loss is that of one process, whose tower is whole."""
    entry = r"train.unfreeze=[{step: 0, parameters: 'language.*layers\.1\..*'}]"
    train(tiny_root, "melted", f"train.start_from={base}", entry, ALONE, processes=1)
    run = (f"train.start_from={tiny_root / 'melted'}", "train.steps=1")
    whole = train(tiny_root, "undivided", *run, ALONE, processes=1)
    zero3 = "engine={strategy: zero3, expert_parallel: 1}"
    divided = train(tiny_root, "divided", *run, zero3, processes=2)
    assert divided["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert weights(tiny_root, "divided")[1]["start_needed"]


@pytest.mark.parametrize("processes", [1, 2])
def test_gates_alone(tiny_root, base, processes):
    name = f"gates_{processes}"
    start = f"train.start_from={base}"
    train(tiny_root, name, start, ALONE, "train.trainable=gates", processes=processes)
    held, _ = weights(tiny_root, name)
    assert held and all(GATES.fullmatch(n) for n in held)
    assert differing(model_of(tiny_root, "base"), model_of(tiny_root, name)) == set(held)


@pytest.mark.parametrize(("processes", "stage"), [(1, 2), (2, 2), (2, 3)])
def test_adapters_alone(tiny_root, base, processes, stage):
    name, start = f"lora_{processes}_{stage}", f"train.start_from={base}"
    engine = f"engine={{strategy: zero{stage}, expert_parallel: 1}}"
    targets = (
        r"train.lora={targets: '(gated_blocks\.\d+\.attention|language.*self_attn)\.\w+', rank: 4}"
    )
    train(tiny_root, name, start, engine, ADAPTERS, targets, processes=processes)
    held, _ = weights(tiny_root, name)
    assert held and all(".lora_" in n for n in held)
    changed = differing(model_of(tiny_root, "base"), model_of(tiny_root, name))
    expected = {n.partition(".lora_")[0] + ".weight" for n in held}
    assert changed and changed <= expected
    assert any(n.startswith("language.") for n in changed)


def test_a_fine_tuning_that_is_resumed_is_an_undisturbed_one(tiny_root, base):
    start = f"train.start_from={base}"
    run = (start, ALONE, ADAPTERS, "checkpoint.every_steps=3")
    train(tiny_root, "tuned", *run, processes=1)
    train(tiny_root, "cut", *run, processes=1)
    shutil.rmtree(tiny_root / "cut" / "checkpoints" / "step_000006")
    assert train(tiny_root, "cut", *run, processes=1)["resumed_at"] == 3
    one, two = weights(tiny_root, "tuned")[0], weights(tiny_root, "cut")[0]
    assert differing(one, two) == set()


def test_it_ends_early_and_keeps_the_best(tiny_root, base):
    """A learning rate that destroys: the first measurement is the best."""
    start = f"train.start_from={base}"
    settings = (
        "train={steps: 40, log_every_steps: 1, validate_every_steps: 2, validate_samples: 16, "
        "precision: fp32, early_stop: {patience: 3}}"
    )
    options = (
        settings,
        start,
        ALONE,
        "optim.lr=0.5",
        "healing.spike_steps=100",
        "checkpoint.every_steps=100",
    )
    summary = train(tiny_root, "early", *options, processes=2)
    stopped, best = summary["stopped_early_at"], summary["best_step"]
    assert stopped < 40 and stopped - best == 6 and summary["finished"]
    store = Folder(tiny_root / "early" / "checkpoints", "checkpoint.folder")
    assert f"step_{best:06d}" in names(store)
    database = f"sqlite:///{tiny_root}/mlflow.db"
    client = mlflow.MlflowClient(database, database)
    version = client.get_model_version_by_alias("demo.early", "newest")
    assert version.tags["roseate.url"].endswith(f"checkpoints/step_{stopped:06d}")
    again = train(tiny_root, "early", *options, processes=2)
    assert again["stopped_early_at"] == stopped and find_checkpoint(store).step == stopped


def test_what_cannot_be_is_refused_all_at_once(tiny_root):
    wrong = ("train.trainable=lora", "engine.expert_parallel=2")
    unknown = "train.early_stop={metric: evaluation/vqa/accuracy}"
    told = train(tiny_root, "wrong", *wrong, unknown, expect=2)
    for key in ("engine.expert_parallel", "train.start_from", "train.early_stop.metric"):
        assert key in told
    assert "3 problems" in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.start_from=nowhere", "train.start_from = 'nowhere'"),
        ("model.resampler.num_latents=5", "and the configured model have the same parameters"),
        ("train.lora.targets=nothing", "matches linear layers"),
    ],
)
def test_a_start_that_does_not_fit_is_named(tiny_root, base, override, told):
    options = (f"train.start_from={base}", ALONE, ADAPTERS, override)
    assert told in train(tiny_root, "unfit", *options, processes=1, expect=2)
