import json

import pytest
import torch

from model.media import Media, MediaInput
from pipeline.data.batch import Batch
from pipeline.healing.quarantine import Quarantine, read_quarantine, summarise_quarantine


def batch(*positions):
    tokens = torch.zeros(len(positions), 2, dtype=torch.int64)
    media = Media(torch.full((len(positions), 1), -1), {"image": MediaInput(torch.zeros(1))})
    return Batch(
        media=media,
        input_ids=tokens,
        attention_mask=tokens > 0,
        labels=tokens,
        documents=None,
        samples=tokens,
        keys=[f"laion/{p:06d}" for p in positions],
        texts=["" for _ in positions],
        positions=list(positions),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        replaced=[],
    )


def test_only_micro_batches_with_a_bad_loss_are_suspect(tmp_path):
    step = [batch(0, 1), batch(4, 5)]
    assert Quarantine(tmp_path, 0).add(7, step, [True, False], any_loss_bad=True) == 2
    assert Quarantine(tmp_path, 3).add(7, [batch(2, 3)], [True], any_loss_bad=True) == 0
    lines = (tmp_path / "quarantine" / "rank_00000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 7, "position": 4, "key": "laion/000004", "reason": "loss"},
        {"step": 7, "position": 5, "key": "laion/000005", "reason": "loss"},
    ]
    assert not (tmp_path / "quarantine" / "rank_00003.jsonl").exists()


def test_all_are_suspect_where_only_the_gradient_was_bad(tmp_path):
    step = [batch(0, 1), batch(4, 5)]
    assert Quarantine(tmp_path, 0).add(7, step, [True, True], any_loss_bad=False) == 4
    assert {row["reason"] for row in read_quarantine(tmp_path)} == {"gradient"}


def test_a_verdict_is_needed_for_each_micro_batch(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        Quarantine(tmp_path, 0).add(7, [batch(0), batch(1)], [True], any_loss_bad=False)


def test_ranks_are_merged_in_the_order_of_the_data_and_repeats_stand_once(tmp_path):
    one, two = Quarantine(tmp_path, 0), Quarantine(tmp_path, 1)
    two.add(7, [batch(2, 3)], [False], any_loss_bad=True)
    one.add(9, [batch(8, 9)], [False], any_loss_bad=True)
    one.add(7, [batch(0, 1)], [True], any_loss_bad=False)
    one.add(9, [batch(8, 9)], [False], any_loss_bad=True)
    rows = read_quarantine(tmp_path)
    assert [(r["step"], r["position"]) for r in rows] == [
        *((7, 0), (7, 1), (7, 2), (7, 3)),
        *((9, 8), (9, 9)),
    ]


def test_no_quarantine_is_an_empty_one(tmp_path):
    assert read_quarantine(tmp_path) == []
    told = {"steps": 0, "samples": 0, "by_reason": {}, "suspects": []}
    assert summarise_quarantine(tmp_path) == told


def test_the_worst_suspects_are_told_first(tmp_path):
    quarantine = Quarantine(tmp_path, 0)
    quarantine.add(1, [batch(0, 1)], [True], any_loss_bad=False)
    quarantine.add(2, [batch(1, 2)], [True], any_loss_bad=False)
    quarantine.add(3, [batch(3)], [False], any_loss_bad=True)
    told = summarise_quarantine(tmp_path, most=2)
    assert told == {
        "steps": 3,
        "samples": 4,
        "by_reason": {"gradient": 4, "loss": 1},
        "suspects": [
            {"key": "laion/000003", "loss": 1, "gradient": 0},
            {"key": "laion/000001", "loss": 0, "gradient": 2},
        ],
    }
