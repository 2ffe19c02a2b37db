"""COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}."""

from pipeline.evaluation.layouts.draft import Draft, Found
from pipeline.evaluation.layouts.faults import Faults


def read_coco(data: dict, faults: Faults) -> Found:
    """A record an image, with all of its captions; images without any are counted and left out."""
    files: dict[str, str] = {}
    for where, entry in faults.entries(data, "images"):
        number = faults.number(entry, "id", where)
        name = faults.file_name(entry, "file_name", where)
        if number is None or name is None:
            continue
        if number in files:
            faults.add("every image has an id of its own", "remove one of the two", where)
        files[number] = name
    captions: dict[str, list[str]] = {number: [] for number in files}
    numbers: set[str] = set()
    empty = 0
    for where, entry in faults.entries(data, "annotations"):
        image = faults.number(entry, "image_id", where)
        caption = faults.text(entry, "caption", where)
        number = faults.number(entry, "id", where) if "id" in entry else None
        if number is not None and number in numbers:
            faults.add("every annotation has an id of its own", "remove one of the two", where)
        numbers.add(number or "")
        if image is None or caption is None:
            continue
        if image not in captions:
            faults.add("every image_id is the id of an image", "name the whole file", where)
        elif caption:
            captions[image].append(caption)
        else:
            empty += 1
    drafts = [
        Draft(number, (name,), tuple(captions[number]))
        for number, name in files.items()
        if captions[number]
    ]
    counts = {"found": len(files), "without_captions": len(files) - len(drafts)}
    return Found(drafts, counts | {"empty_captions": empty, "in_split": len(drafts)})
