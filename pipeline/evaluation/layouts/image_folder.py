"""A folder of images per class, as torchvision's ImageFolder and ImageNet's validation have it."""

import json
import os
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from pipeline.evaluation.layouts.draft import Draft, Found
from pipeline.evaluation.layouts.image_files import is_image


def read_image_folder(root: Path, names_file: str | None, key: str) -> Found:
    """A record an image; labels are the folders' numbers in order of their names.

    Hidden files and folders are left out, files that are no images by their extension are counted.

    Raises:
        ConfigError: there is no class, one has no image, or the names are of other classes.
    """
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = [p.name for p in root.iterdir() if p.is_file() and is_image(p.name)]
    problems = []
    if not classes:
        rule = f"holds a folder for each class; seen: {len(loose):,} images and no folder"
        problems.append(Problem(f"{key}.path", str(root), rule, "name the folder above them"))
    drafts, others, empty = [], 0, []
    names = _class_names(names_file, classes, key, problems) if names_file else classes
    for label, folder in enumerate(classes):
        files = sorted(_below(root, folder))
        images = [name for name in files if is_image(name)]
        others += len(files) - len(images)
        if not images:
            empty.append(folder)
        name = names[label] if label < len(names) else folder
        drafts += [Draft(file, (file,), (name,), label=label) for file in images]
    if empty:
        rule = f"every class has an image; not so: {', '.join(empty[:5])}"
        rule += f" and {len(empty) - 5:,} more" if len(empty) > 5 else ""
        remedy = "remove the empty folders, or name the folder above the classes"
        problems.append(Problem(f"{key}.path", str(root), rule, remedy))
    if problems:
        raise ConfigError(problems)
    counts = {"found": len(drafts), "classes": len(classes), "not_images": others}
    counts |= {"images_beside_classes": len(loose), "in_split": len(drafts)}
    return Found(drafts, counts, names)


def _below(root: Path, folder: str) -> list[str]:
    """Names below root of all files in a folder and those below it."""
    found = []
    for above, folders, files in os.walk(root / folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(above).relative_to(root)
        found += [(place / name).as_posix() for name in files if not name.startswith(".")]
    return found


def _class_names(path: str, classes: list[str], key: str, problems: list[Problem]) -> list[str]:
    """A name for each class, by folder or in order.

    Of a text file the lines are names in order of the folders or, as ImageNet's synset list, begin
    with the folder each; JSON is {folder: name}, or as ImageNet's class index {number: [folder, name]}.
    """
    key = f"{key}.class_names"
    remedy = "name a text file with a line, or a JSON object with an entry, for every folder"
    try:
        text = Path(path).read_text("utf-8")
        by_folder = json.loads(text) if path.endswith(".json") else None
    except (OSError, ValueError) as error:
        problems.append(Problem(key, path, f"is a file that can be read ({error})", remedy))
        return []
    if by_folder is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        pairs = [line.split(maxsplit=1) for line in lines]
        if {pair[0] for pair in pairs} >= set(classes) and all(len(pair) == 2 for pair in pairs):
            by_folder = dict(pairs)
        elif len(lines) == len(classes):
            return lines
        else:
            rule = f"has a line for each of {len(classes):,} folders; seen: {len(lines):,}"
            problems.append(Problem(key, path, rule, remedy))
            return []
    if isinstance(by_folder, dict) and all(_is_pair(value) for value in by_folder.values()):
        by_folder = dict(by_folder.values())
    if not isinstance(by_folder, dict) or not all(isinstance(n, str) for n in by_folder.values()):
        rule = f"holds a JSON object of texts; seen: a {type(by_folder).__name__}"
        problems.append(Problem(key, path, rule, remedy))
        return []
    without = [folder for folder in classes if folder not in by_folder]
    if without:
        rule = f"names every folder; not so: {', '.join(without[:5])}"
        rule += f" and {len(without) - 5:,} more" if len(without) > 5 else ""
        problems.append(Problem(key, path, rule, remedy))
        return []
    return [by_folder[folder] for folder in classes]


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
