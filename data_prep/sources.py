"""Reads URL tables row by row: parquet, TSV, CSV and JSONL, one file or a folder of them.

Rows are conserved: whatever stands in the table comes out as one (url, caption), with None for what
is missing. Tables are streamed, so that one larger than memory can be read.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.errors import ConfigError, Problem

Row = tuple[str | None, str | None]  # url, caption

# Names in the order they are looked for, whatever their case.
_URL_NAMES = ("url", "image_url", "img_url")
_CAPTION_NAMES = ("text", "caption", "top_caption", "alt_text", "alt", "description")
_HEADERLESS = {"cc12m": (0, 1), "cc3m": (1, 0)}  # place of url and caption on a line
_EXTENSIONS = (".parquet", ".tsv", ".csv", ".jsonl")
_BATCH_ROWS = 4096
_PROBE_LINES = 100


class Table:
    """The URL table of one source, its columns resolved.

    Args:
        name: of the source, for messages.
        source: its settings.

    Raises:
        ConfigError: a table that is missing, empty or unreadable, or has no such columns.
    """

    def __init__(self, name: str, source: SourceConfig):
        self._key = f"ingest.sources.{name}"
        self._source = source
        self.files = self._find_files()
        self._headerless = self._decide_headerless()
        for path in self.files:  # refuse before the first row is fetched, not at the last file
            self._check(path)

    def fingerprint(self) -> str:
        """sha256 over the contents of all files, in order of their names."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def count(self) -> int:
        """Number of rows.

        Raises:
            ConfigError: the table holds no row.
        """
        if self._suffix == ".parquet":
            rows = sum(pq.read_metadata(path).num_rows for path in self.files)
        else:
            rows = sum(1 for _ in self.rows())
        if rows == 0:
            raise self._refuse("table", "the table must hold at least one row", "check the file")
        return rows

    def rows(self) -> Iterator[Row]:
        """All rows, file by file, in order."""
        for path in self.files:
            for url, caption in self._read(path):
                yield _clean(url), _clean(caption)

    def shards(self, shard_rows: int) -> Iterator[tuple[int, list[Row]]]:
        """Runs of `shard_rows` rows (the last may be shorter), each with its first row's number."""
        first, rows = 0, []
        for row in self.rows():
            rows.append(row)
            if len(rows) == shard_rows:
                yield first, rows
                first, rows = first + len(rows), []
        if rows:
            yield first, rows

    def _refuse(self, field: str, rule: str, remedy: str) -> ConfigError:
        value = getattr(self._source, "schema_name" if field == "schema" else field)
        return ConfigError([Problem(f"{self._key}.{field}", value, rule, remedy)])

    def _find_files(self) -> list[Path]:
        path = Path(self._source.table)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in _EXTENSIONS)
        else:
            files = [path]
        if not files or not files[0].exists():
            raise self._refuse(
                "table",
                "the URL table must exist",
                f"correct the path, or put {', '.join(_EXTENSIONS)} files there",
            )
        suffixes = {p.suffix.lower() for p in files}
        if len(suffixes) > 1 or not suffixes <= set(_EXTENSIONS):
            raise self._refuse(
                "table",
                f"a URL table is one kind of {', '.join(_EXTENSIONS)}; here: "
                f"{', '.join(sorted(s or '(no extension)' for s in suffixes))}",
                "convert or rename the file, or keep one kind per folder",
            )
        for file in files:
            if file.stat().st_size == 0:
                raise self._refuse(
                    "table", f"a table must not be empty; {file.name} has 0 bytes", "check the file"
                )
        self._suffix = suffixes.pop()
        return files

    def _decide_headerless(self) -> tuple[int, int] | None:
        schema = self._source.schema_name
        if schema in _HEADERLESS:
            if self._suffix != ".tsv":
                raise self._refuse(
                    "schema",
                    f"{schema} is a headerless TSV; the table is {self._suffix}",
                    "set schema to auto, laion or generic",
                )
            if self._source.url_column or self._source.caption_column:
                field = "url_column" if self._source.url_column else "caption_column"
                raise self._refuse(
                    field, f"a {schema} table has no named columns", "leave the column out"
                )
            return _HEADERLESS[schema]
        if self._suffix != ".tsv" or schema != "auto" or self._source.url_column:
            return None
        # auto: a line with an address in it is a row, so there is no header.
        with self.files[0].open(encoding="utf-8", errors="replace", newline="\n") as file:
            for _, line in zip(range(_PROBE_LINES), file, strict=False):
                first, _, second = line.partition("\t")
                if first.lower().startswith(("http://", "https://")):
                    return _HEADERLESS["cc12m"]
                if second.lower().startswith(("http://", "https://")):
                    return _HEADERLESS["cc3m"]
                header = [c.strip().lower() for c in line.split("\t")]
                if any(name in header for name in _URL_NAMES):
                    return None
        raise self._refuse(
            "schema",
            f"no address and no url column in the first {_PROBE_LINES} lines of the TSV",
            "set schema to cc12m (url<TAB>caption), cc3m (caption<TAB>url) or generic (a header)",
        )

    def _check(self, path: Path) -> None:
        if self._headerless is not None or self._suffix == ".jsonl":
            return
        self._columns(self._header(path))

    def _header(self, path: Path) -> list[str]:
        if self._suffix == ".parquet":
            try:
                return pq.read_schema(path).names
            except (pa.ArrowInvalid, OSError) as error:
                raise self._refuse(
                    "table", f"{path.name} must be readable parquet: {error}", "check the file"
                ) from error
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            if self._suffix == ".tsv":
                return file.readline().rstrip("\r\n").split("\t")
            return next(csv.reader(file), [])

    def _columns(self, present: list[str]) -> tuple[int, int]:
        """Places of url and caption among the columns present."""
        wanted = {
            "url_column": (self._source.url_column, _URL_NAMES),
            "caption_column": (self._source.caption_column, _CAPTION_NAMES),
        }
        places = []
        for field, (named, names) in wanted.items():
            lower = [c.strip().lower() for c in present]
            found = [n for n in ([named.lower()] if named else names) if n in lower]
            if not found:
                looked = repr(named) if named else f"one of {', '.join(names)}"
                raise self._refuse(
                    field,
                    f"the table must have the column {looked}; it has: {', '.join(present)}",
                    f"set {self._key}.{field} to one of those",
                )
            exact = named in present if named else False
            places.append(present.index(named) if exact else lower.index(found[0]))
        return places[0], places[1]

    def _read(self, path: Path) -> Iterator[tuple[object, object]]:
        if self._suffix == ".parquet":
            yield from self._read_parquet(path)
        elif self._suffix == ".csv":
            yield from self._read_csv(path)
        elif self._suffix == ".jsonl":
            yield from self._read_jsonl(path)
        else:
            yield from self._read_tsv(path)

    def _read_parquet(self, path: Path) -> Iterator[tuple[object, object]]:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            url, caption = (names[place] for place in self._columns(names))
            for batch in file.iter_batches(_BATCH_ROWS, columns=list({url, caption})):
                urls, captions = batch.column(url).to_pylist(), batch.column(caption).to_pylist()
                yield from zip(urls, captions, strict=True)

    def _read_tsv(self, path: Path) -> Iterator[tuple[object, object]]:
        # Quotes mean nothing here, and one line is one row: real captions hold lone quotes.
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            if self._headerless is None:
                url, caption = self._columns(file.readline().rstrip("\r\n").split("\t"))
                splits = -1
            else:
                (url, caption), splits = self._headerless, 1
            for line in file:
                parts = line.rstrip("\r\n").split("\t", splits)
                yield _at(parts, url), _at(parts, caption)

    def _read_csv(self, path: Path) -> Iterator[tuple[object, object]]:
        csv.field_size_limit(1 << 27)
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file)
            url, caption = self._columns(next(reader, []))
            for parts in reader:
                if parts:
                    yield _at(parts, url), _at(parts, caption)

    def _read_jsonl(self, path: Path) -> Iterator[tuple[object, object]]:
        seen_url = False
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    yield None, None  # still a row: it ends as missing_url
                    continue
                if not seen_url:  # only the first record must show where the columns are
                    self._columns([*record])
                    seen_url = True
                lower = {k.lower(): v for k, v in record.items()}
                yield (
                    _first(lower, self._source.url_column, _URL_NAMES),
                    _first(lower, self._source.caption_column, _CAPTION_NAMES),
                )


def _at(parts: list[str], place: int) -> str | None:
    return parts[place] if place < len(parts) else None


def _first(record: dict[str, object], named: str | None, names: tuple[str, ...]) -> object:
    wanted = (named.lower(),) if named else names
    return next((record[n] for n in wanted if record.get(n) is not None), None)


def _clean(value: object) -> str | None:
    """The value as text without white space around it; None when nothing is left."""
    if value is None:
        return None
    return str(value).strip() or None
