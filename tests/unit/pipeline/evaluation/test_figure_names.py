import pytest

from pipeline.evaluation.figure_names import (
    condition_label,
    figure_better,
    figure_label,
    figure_meaning,
    key_label,
)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cider_d", "CIDEr-D"),
        ("bleu_4", "BLEU-4"),
        ("accuracy_5", "Accuracy@5"),
        ("balanced_accuracy", "Balanced accuracy"),
        ("vqa_accuracy", "VQA accuracy"),
        ("image_to_text_recall_10", "image to text: Recall@10"),
        ("text_to_image_median_rank", "text to image: Median rank"),
        ("map", "mAP"),
        ("tokens_per_second", "tokens per second"),
    ],
)
def test_labels(name, label):
    assert figure_label(name) == label
    assert bool(figure_meaning(name)) == (name != "tokens_per_second")


def test_better_is_lower_for_ranks_and_perplexity_alone():
    lower = ["perplexity", "mean_rank", "image_to_text_median_rank"]
    assert {figure_better(n) for n in lower} == {"lower"}
    assert {figure_better(n) for n in ("cider_d", "map", "unheard_of")} == {"higher"}


@pytest.mark.parametrize(
    ("condition", "label"),
    [
        ("", "with its image"),
        ("zero_image", "image zeroed"),
        ("minus_zero_image", "difference to image zeroed"),
        ("shots_1", "1 example"),
        ("shots_16", "16 examples"),
        ("shots_4_zero_image", "4 examples, image zeroed"),
        ("bf16_batch_8", "bf16 batch 8"),
    ],
)
def test_conditions(condition, label):
    assert condition_label(condition) == label


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("cider_d", "CIDEr-D"),
        ("bleu_4_zero_image", "BLEU-4, image zeroed"),
        ("vqa_accuracy_shots_32", "VQA accuracy, 32 examples"),
        ("image_to_text_recall_1_zero_image", "image to text: Recall@1, image zeroed"),
        ("nats_per_token", "nats per token"),
    ],
)
def test_keys(key, label):
    assert key_label(key) == label
