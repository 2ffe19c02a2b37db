"""Takes in a folder of WebDataset tars that others have made: one pass over each, nothing is copied.

Writes index/ and manifest.json, so that the folder can be read at any position. Killed anywhere and
run again, it goes on: a tar is done when its index and the note beside it are there.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from data_prep.pool import run_jobs
from data_prep.schema import MANIFEST_NAME, Manifest, ShardEntry, canonical_hash
from data_prep.storage import Folder, write_file
from data_prep.tar_index import NOTE_SUFFIX, index_tar

Advance = Callable[[int, int, Counter], None]


def index_folder(
    tars: str,
    output: Path | None = None,
    *,
    workers: int | None = None,
    again: bool = False,
    advance: Advance = lambda done, total, statuses: None,
) -> dict[str, object]:
    """Index every tar below a folder.

    Args:
        tars: folder, local or behind a URL; img2dataset's output among others.
        output: dataset folder to write, default ``tars`` itself.
        workers: processes, default one for each CPU.
        again: read the tars again although there is a manifest.
        advance: called after every tar with (tars done, tars in all, samples by status).

    Returns:
        {folder, shards, samples, statuses, fingerprint}.

    Raises:
        ConfigError: there are no tars, some cannot be read, or the folder has a manifest already.
    """
    source = Folder(tars, "TARS")
    key = "TARS" if output is None else "--output"

    def refuse(key: str, value: object, rule: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(key, value, rule, remedy)])

    if output is None and not source.is_local:
        rule = "the index is written to a local folder, and these tars lie behind a URL"
        raise refuse("--output", None, rule, "give a folder with --output")
    folder = Path(output or tars)
    try:
        names = source.names(".tar")
    except OSError as error:
        remedy = "correct the URL, the credentials or the end point of the store"
        raise refuse("TARS", tars, f"can be listed ({error})", remedy) from None
    if not names:
        raise refuse("TARS", tars, "holds .tar files in WebDataset form", "correct the path")
    manifest_path, index = folder / MANIFEST_NAME, folder / "index"
    if manifest_path.exists() and not again:
        remedy = "use it as it is, or give --again to read the tars once more"
        raise refuse(key, str(folder), f"has no {MANIFEST_NAME} yet", remedy)
    try:
        index.mkdir(parents=True, exist_ok=True)
        if manifest_path.exists():  # the notes of a run that was interrupted stay: it goes on
            _remove_notes(index)
            manifest_path.unlink()
    except OSError as error:
        remedy = "correct the path, or give a folder with --output"
        raise refuse(key, str(folder), f"can be written to ({error})", remedy) from None
    same_place = source.is_local and source.path.resolve() == folder.resolve()
    paths = names if same_place else [_whole_path(source, name) for name in names]
    notes = _index_all(source, names, paths, index, workers, advance)
    broken = [(n, note["error"]) for n, note in zip(names, notes, strict=True) if "error" in note]
    if broken:
        remedy = "bring the file whole, or take it away; the others need not be read again"
        raise ConfigError(
            [Problem("TARS", name, f"is a whole tar: {error}", remedy) for name, error in broken]
        )
    shards = [ShardEntry.model_validate(note["entry"]) for note in notes]
    statuses = sum((Counter(note["statuses"]) for note in notes), Counter())
    manifest = Manifest(
        source=(source.path.resolve() if source.is_local else Path(tars)).name,
        input_fingerprint=canonical_hash([s.sha256 for s in shards]),
        policy_hash=canonical_hash("indexed"),
        rows=sum(s.rows for s in shards),
        samples=sum(s.samples for s in shards),
        statuses=dict(sorted(statuses.items())),
        shards=shards,
    )
    write_file(manifest_path, manifest.model_dump_json(indent=1).encode())
    _remove_notes(index)
    return {
        "folder": str(folder),
        "shards": len(shards),
        "samples": manifest.samples,
        "statuses": manifest.statuses,
        "fingerprint": manifest.fingerprint,
    }


def _whole_path(source: Folder, name: str) -> str:
    if source.is_local:
        return str((source.path / name).resolve())
    return f"{source.url.rstrip('/')}/{name}"


def _remove_notes(index: Path) -> None:
    """And what a killed run was about to write."""
    for path in [*index.glob(f"*{NOTE_SUFFIX}"), *index.glob(".*.npy.*"), *index.glob(".*.json.*")]:
        path.unlink(missing_ok=True)


def _index_all(
    source: Folder,
    names: list[str],
    paths: list[str],
    index: Path,
    workers: int | None,
    advance: Advance,
) -> list[dict]:
    notes: dict[int, dict] = {}
    statuses: Counter = Counter()

    def done(number: int, note: dict) -> None:
        notes[number] = note
        statuses.update(note.get("statuses", {}))
        advance(len(notes), len(names), statuses)

    def missing() -> Iterator[tuple[int, tuple]]:
        for number, (name, path) in enumerate(zip(names, paths, strict=True)):
            note_path = index / f"{number:06d}{NOTE_SUFFIX}"
            if note_path.exists() and (index / f"{number:06d}.npy").exists():
                note = json.loads(note_path.read_bytes())
                entry = note["entry"]
                if entry["path"] == path and entry["bytes"] == source.size(name):
                    done(number, note)
                    continue
            yield number, (source.url, name, index, f"{number:06d}", path)

    for number, task in run_jobs(workers, index_tar, missing()):
        done(number, task.result())
    return [notes[number] for number in range(len(names))]
