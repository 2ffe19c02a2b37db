"""Karpathy's splits of COCO, Flickr30k and Flickr8k: {"images": [{"filename", "split", "sentences"}]}."""

from pipeline.evaluation.layouts.draft import Draft, Found
from pipeline.evaluation.layouts.faults import Faults

DEFAULT_SPLIT = "test"


def read_karpathy(data: dict, split: str, faults: Faults) -> Found:
    """A record an image of the split, with all of its captions as written.

    An image lies at filepath/filename below the folder (of COCO, filepath is val2014 or train2014), or
    right in it.

    Args:
        data: the file.
        split: names of splits, joined by ``+``.
        faults: gets what is broken.
    """
    wanted = {name.strip() for name in split.split("+")}
    seen: dict[str, int] = {}
    drafts: dict[str, Draft] = {}
    without = empty = 0
    for where, entry in faults.entries(data, "images"):
        name = faults.file_name(entry, "filename", where)
        part = faults.text(entry, "split", where)
        above = faults.file_name(entry, "filepath", where) if "filepath" in entry else None
        texts = [
            faults.text(sentence, "raw", f"{where}.{place}")
            for place, sentence in faults.entries(entry, "sentences")
        ]
        if part is not None:
            seen[part] = seen.get(part, 0) + 1
        if name is None or part not in wanted:
            continue
        empty += texts.count("")
        captions = tuple(text for text in texts if text)
        without += not captions
        if name in drafts:
            faults.add("every image has a filename of its own", "remove one of the two", where)
        if captions:
            names = (f"{above}/{name}", name) if above else (name,)
            drafts[name] = Draft(name, names, captions)
    for missing in sorted(wanted - seen.keys()):
        there = ", ".join(f"{name} ({count:,})" for name, count in sorted(seen.items()))
        faults.add(f"has the split {missing!r}", f"set split to one of: {there}", "any image")
    counts = {"found": sum(seen.values()), "without_captions": without, "empty_captions": empty}
    return Found([*drafts.values()], counts | {"in_split": len(drafts)})
