"""Files in one of the field's layouts to records."""

import hashlib
import json

from data_prep.errors import ConfigError, Problem
from data_prep.schema import MANIFEST_NAME
from data_prep.storage import Folder
from pipeline.evaluation.config import EvaluationData
from pipeline.evaluation.layouts.coco import read_coco
from pipeline.evaluation.layouts.dataset_folder import open_dataset, read_pairs
from pipeline.evaluation.layouts.draft import Found
from pipeline.evaluation.layouts.faults import Faults
from pipeline.evaluation.layouts.image_files import ImageFiles
from pipeline.evaluation.layouts.image_folder import read_image_folder
from pipeline.evaluation.layouts.json_file import check_kind, kind_of, load_json
from pipeline.evaluation.layouts.karpathy import DEFAULT_SPLIT, read_karpathy
from pipeline.evaluation.layouts.record import FileImage, Record, Records
from pipeline.evaluation.layouts.vqa import read_vqa

SHOWN = 20
# Settings that a layout has a use for, beside path, limit, seed and max_missing.
_USES = {
    "coco": {"annotations"},
    "karpathy": {"annotations", "split"},
    "vqa": {"annotations", "questions"},
    "image_folder": {"class_names"},
    "dataset": {"held_out_fraction", "bitmaps"},
}
_NEEDS = {"coco": ["annotations"], "karpathy": ["annotations"], "vqa": ["questions", "annotations"]}


def read_records(config: EvaluationData, key: str = "evaluation.data") -> Records:
    """The records that a section names; no image is opened but those of a dataset folder.

    A subset is drawn before images are looked for: it is the same one whatever is missing, wherever
    the files lie, and that of a smaller limit is in it.

    Args:
        config: the section.
        key: its dotted name, for messages.

    Raises:
        ConfigError: with all problems found: the files are of no layout or of another one, entries are
            broken, given twice or without a counterpart, more images are missing than
            `max_missing`, or nothing is left.
    """
    loaded: dict[str, dict] = {}
    layout = config.layout if config.layout != "auto" else _known_by(config, key, loaded)
    problems = _check_settings(config, layout, key)
    if problems:
        raise ConfigError(problems)
    if layout == "dataset":
        return _read_dataset(config, key)
    found, files = _read_files(config, layout, key, loaded)
    drawn = draw([draft.key for draft in found.drafts], config.limit, config.seed)
    items, missing, images = [], [], set()
    for draft in (found.drafts[i] for i in drawn):
        name = files.first(draft.image_names)
        images.add(draft.image_names[0])
        if name is None:
            missing.append(draft.image_names[0])
            continue
        image = FileImage(files.folder, name)
        items.append(
            Record(
                draft.key,
                image,
                draft.texts,
                question=draft.question,
                label=draft.label,
                kind=draft.kind,
                image_key=draft.image_key,
            )
        )
    gone = [*dict.fromkeys(missing)]
    counts = found.counts | {
        "limited": len(found.drafts) - len(drawn),
        "missing_images": len(gone),
        "without_image": len(missing),
        "kept": len(items),
    }
    _check_missing(config, key, gone, len(images), "images that are there")
    return _records(layout, items, counts, gone, found.class_names)


def draw(keys: list[str], limit: int | None, seed: int) -> list[int]:
    """Numbers of the keys drawn, ascending; a function of each key and the seed alone."""
    if limit is None or limit >= len(keys):
        return [*range(len(keys))]
    hashes = [hashlib.sha256(f"{seed} {key}".encode("utf-8", "replace")).digest() for key in keys]
    return sorted(sorted(range(len(keys)), key=hashes.__getitem__)[:limit])


def _known_by(config: EvaluationData, key: str, loaded: dict[str, dict]) -> str:
    """The layout that the files are of; what was read on the way goes into `loaded`.

    Raises:
        ConfigError: they are of none.
    """
    if config.questions is not None:
        return "vqa"
    if config.annotations is not None:
        problems = []
        try:
            loaded["annotations"] = load_json(config.annotations, f"{key}.annotations")
            kind, seen = kind_of(loaded["annotations"])
            if kind in ("coco", "karpathy"):
                return kind
            if kind in ("vqa_annotations", "vqa_questions"):
                return "vqa"
            rule = f"holds COCO captions, a Karpathy split or VQAv2 annotations; seen: {seen}"
            problem = Problem(f"{key}.annotations", config.annotations, rule, "name another file")
            problems = [problem]
        except ConfigError as error:
            problems = error.problems
        raise ConfigError(problems + _folder_problems(config, key))
    folder = Folder(config.path, f"{key}.path")
    if folder.exists(MANIFEST_NAME):
        return "dataset"
    if folder.is_local and folder.path.is_dir() and any(p.is_dir() for p in folder.path.iterdir()):
        return "image_folder"
    rule = f"without annotations, a dataset folder ({MANIFEST_NAME}) or a folder for each class"
    seen = "nothing is there"
    if folder.exists():
        names = [f.name for f in folder.files()]
        seen = f"seen: {len(names):,} files" + (f", such as {names[0]}" if names else "")
    remedy = "name the annotations' JSON file, or another folder"
    raise ConfigError([Problem(f"{key}.path", config.path, f"{rule}; {seen}", remedy)])


def _folder_problems(config: EvaluationData, key: str) -> list[Problem]:
    try:
        ImageFiles(config.path, f"{key}.path")
    except ConfigError as error:
        return error.problems
    return []


def _check_settings(config: EvaluationData, layout: str, key: str) -> list[Problem]:
    """Settings that the layout needs and has not, and those it would not look at."""
    problems = [
        Problem(f"{key}.{name}", None, f"is named for layout {layout}", f"set {key}.{name}")
        for name in _NEEDS.get(layout, [])
        if getattr(config, name) is None
    ]
    every = sorted(set().union(*_USES.values()))
    for name in (n for n in every if n not in _USES[layout]):
        value = getattr(config, name)
        if value != EvaluationData.model_fields[name].get_default(call_default_factory=True):
            rule = f"is not set for layout {layout}, which has no use for it"
            problems.append(Problem(f"{key}.{name}", value, rule, "remove it, or name the layout"))
    return problems


def _read_files(
    config: EvaluationData, layout: str, key: str, loaded: dict[str, dict]
) -> tuple[Found, ImageFiles]:
    """What a layout's files hold, and the folder of its images; `loaded` has files read before.

    Raises:
        ConfigError: with the problems of all files.
    """
    problems: list[Problem] = []
    files = None
    names = [n for n in ("questions", "annotations") if n in _USES[layout]]
    for name in names:
        path = getattr(config, name)
        kind = f"vqa_{name}" if layout == "vqa" else layout
        try:
            loaded[name] = loaded.get(name) or load_json(path, f"{key}.{name}")
            problems += check_kind(loaded[name], kind, path, f"{key}.{name}")
        except ConfigError as error:
            problems += error.problems
    try:
        files = ImageFiles(config.path, f"{key}.path")
        if layout == "image_folder" and not files.folder.is_local:
            rule = "is a folder on this machine, for layout image_folder"
            remedy = "copy it, or make it a dataset folder with roseate index"
            problems.append(Problem(f"{key}.path", config.path, rule, remedy))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    if layout == "image_folder":
        return read_image_folder(files.folder.path, config.class_names, key), files
    faults = {n: Faults(f"{key}.{n}", getattr(config, n)) for n in names}
    if layout == "coco":
        found = read_coco(loaded["annotations"], faults["annotations"])
    elif layout == "karpathy":
        split = config.split or DEFAULT_SPLIT
        found = read_karpathy(loaded["annotations"], split, faults["annotations"])
    else:
        found = read_vqa(
            loaded["questions"],
            loaded["annotations"],
            faults["questions"],
            faults["annotations"],
        )
    problems = [p for part in faults.values() for p in part.problems()]
    if not problems and not found.drafts:
        rule = f"holds something to evaluate; its entries: {found.counts}"
        problems = [Problem(f"{key}.annotations", config.annotations, rule, "name another file")]
    if problems:
        raise ConfigError(problems)
    return found, files


def _read_dataset(config: EvaluationData, key: str) -> Records:
    dataset = open_dataset(config, key)
    numbers = draw([str(n) for n in range(len(dataset))], config.limit, config.seed)
    items, unusable, documents = read_pairs(dataset, numbers)
    counts = {
        "found": sum(shard.samples for shard in dataset.manifest.shards),
        "in_split": len(dataset),
        "limited": len(dataset) - len(numbers),
        "documents": documents,
        "unusable": len(unusable),
        "kept": len(items),
    }
    reasons = [f"{name}: {reason}" for name, reason in unusable]
    _check_missing(config, key, reasons, len(numbers), "samples that can be used")
    if not items:
        rule = f"holds pairs of an image and a text; its samples: {counts}"
        raise ConfigError([Problem(f"{key}.path", config.path, rule, "name another folder")])
    return _records("dataset", items, counts, reasons, [])


def _check_missing(
    config: EvaluationData, key: str, missing: list[str], total: int, what: str
) -> None:
    """Raises ConfigError where more is missing than may be, or all of it."""
    if len(missing) <= config.max_missing * total and len(missing) < max(total, 1):
        return
    first = ", ".join(missing[:5]) + (" and more" if len(missing) > 5 else "")
    rule = f"holds {what}, all but {config.max_missing:.4g} of {total:,}"
    rule += f"; {len(missing):,} are not: {first}"
    remedy = f"name the folder that has them, or raise {key}.max_missing"
    raise ConfigError([Problem(f"{key}.path", config.path, rule, remedy)])


def _records(
    layout: str, items: list[Record], counts: dict, missing: list[str], class_names: list[str]
) -> Records:
    asked = [[r.key, r.image_key, r.texts, r.question, r.label, r.kind] for r in items]
    text = json.dumps([asked, class_names])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Records(layout, items, counts, missing[:SHOWN], class_names, digest[:16])
