"""What figures and conditions are called on pages, and what they mean."""

import re

# Label, and one sentence for a person who meets the figure for the first time.
_FIGURES = {
    "cider_d": ("CIDEr-D", "likeness to people's captions, rare words counting most; 0 to 10"),
    "bleu": (
        "BLEU-{}",
        "runs of up to {} words shared with people's captions; 0 to 1",
    ),
    "rouge_l": ("ROUGE-L", "longest run of words in common with a person's caption; 0 to 1"),
    "exact_match": ("Exact match", "captions right word for word; 0 to 1"),
    "vqa_accuracy": ("VQA accuracy", "answers that at least 3 of 10 people gave; 0 to 1"),
    "accuracy": ("Accuracy@{}", "right class among the {} likeliest; 0 to 1"),
    "balanced_accuracy": ("Balanced accuracy", "accuracy, every class counting alike; 0 to 1"),
    "map": ("mAP", "mean average precision of the ranked lists; 0 to 1"),
    "recall": ("Recall@{}", "queries with a right item among the first {}; 0 to 1"),
    "mean_rank": ("Mean rank", "place of the first right item, 1 is best"),
    "median_rank": ("Median rank", "place of the first right item, 1 is best"),
    "perplexity": ("Perplexity", "words the model hesitates between, on average; 1 is best"),
}
_LOWER = {"mean_rank", "median_rank", "perplexity"}
_CONDITIONS = {
    "": "with its image",
    "zero_image": "image zeroed",
    "shuffled_image": "another sample's image",
}


def figure_label(name: str) -> str:
    """What a figure is called: ``recall_5`` is Recall@5; a direction stands before it."""
    before, known, number = _known(name)
    if known is None:
        return name.replace("_", " ")
    label = _FIGURES[known][0].format(number)
    return f"{before.replace('_', ' ')}: {label}" if before else label


def figure_meaning(name: str) -> str:
    """A sentence about a figure, empty for one that has no entry."""
    _, known, number = _known(name)
    return _FIGURES[known][1].format(number) if known else ""


def figure_better(name: str) -> str:
    """``lower`` or ``higher``."""
    return "lower" if _known(name)[1] in _LOWER else "higher"


def condition_label(condition: str) -> str:
    """What a condition is called: ``shots_4`` is 4 examples, ``minus_zero_image`` a difference to it."""
    if condition in _CONDITIONS:
        return _CONDITIONS[condition]
    if condition.startswith("minus_"):
        return f"difference to {condition_label(condition.removeprefix('minus_'))}"
    if shots := re.fullmatch(r"shots_(\d+)(?:_(\w+))?", condition):
        number = f"{shots[1]} example" + ("" if shots[1] == "1" else "s")
        return f"{number}, {condition_label(shots[2])}" if shots[2] else number
    return condition.replace("_", " ")


def key_label(key: str) -> str:
    """What a `Figure.key` is called: ``cider_d_shots_4`` is CIDEr-D, 4 examples."""
    parts = key.split("_")
    for end in range(len(parts), 0, -1):
        name, condition = "_".join(parts[:end]), "_".join(parts[end:])
        if _known(name)[1]:
            label = figure_label(name)
            return f"{label}, {condition_label(condition)}" if condition else label
    return figure_label(key)


def _known(name: str) -> tuple[str, str | None, str]:
    """What stands before the figure's name, its entry, and the number behind it."""
    for known in sorted(_FIGURES, key=len, reverse=True):
        numbered = "_{}".format(r"(\d+)") if "{}" in _FIGURES[known][0] else "()"
        if found := re.fullmatch(rf"(?:(\w+?)_)?{known}{numbered}", name):
            return found[1] or "", known, found[2]
    return "", None, ""
