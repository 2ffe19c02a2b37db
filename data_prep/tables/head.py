"""What the beginning of a file says: its columns, and where its rows begin."""

from dataclasses import dataclass

import pyarrow as pa

from data_prep.config import SourceConfig
from data_prep.errors import Problem
from data_prep.storage import Folder
from data_prep.tables.cells import text
from data_prep.tables.columns import Columns, resolve
from data_prep.tables.csv_fields import csv_fields, match_record
from data_prep.tables.layouts import GENERIC, LAYOUTS
from data_prep.tables.parquet_rows import check_types, parquet_schema
from data_prep.tables.records import MAX_ROW_BYTES
from data_prep.tables.text_rows import parse_json

_PROBE_LINES = 100
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ADDRESS = (b"http://", b"https://")


@dataclass(frozen=True)
class Head:
    """The columns of a file.

    Attributes:
        columns: which are read.
        rows_at: position of the first row in a text file, bytes.
    """

    columns: Columns
    rows_at: int = 0


def read_head(
    folder: Folder, name: str, kind: str, source: SourceConfig, key: str
) -> Head | list[Problem]:
    """Read the beginning of a text file, or the footer of a parquet file.

    Args:
        folder: of the file.
        name: of the file.
        kind: parquet, tsv, csv, jsonl or txt.
        source: its settings.
        key: of the source in the configuration: `ingest.sources.NAME`.

    Returns:
        The head, or all that is wrong with it.
    """
    reader = _HeadReader(source, key)
    try:
        if kind == "parquet":
            return reader.parquet(parquet_schema(folder, name))
        with folder.open_random(name) as file:
            # Of a row longer than this nothing is read anyway.
            data = file.read(MAX_ROW_BYTES)
    except (OSError, pa.ArrowException) as error:
        rule = f"must be readable {'parquet' if kind == 'parquet' else 'text'}: {error}"
        return [reader.problem("table", rule, "check the file")]
    return reader.text(data, kind)


class _HeadReader:
    def __init__(self, source: SourceConfig, key: str) -> None:
        self._source, self._key = source, key

    def parquet(self, schema: pa.Schema) -> Head | list[Problem]:
        if self._source.layout in _headerless():
            return [self._not_headerless("parquet")]
        columns = resolve(schema.names, self._source, self._key)
        if isinstance(columns, Columns):
            columns = check_types(columns, schema, self._source, self._key) or columns
        return Head(columns) if isinstance(columns, Columns) else columns

    def text(self, data: bytes, kind: str) -> Head | list[Problem]:
        if data.startswith(_UTF16):
            rule = "a table must be UTF-8; it begins with the byte order mark of UTF-16"
            return [self.problem("table", rule, "convert it: iconv -f UTF-16 -t UTF-8")]
        bom = len(_BOM) if data.startswith(_BOM) else 0
        data = data[bom:]
        layout = self._source.layout
        if layout in _headerless():
            if kind not in ("tsv", "txt"):
                return [self._not_headerless(f".{kind}")]
            return self._headerless(layout, LAYOUTS[layout].headerless, bom)
        if kind == "txt":
            return self._txt(data, bom)
        if kind == "jsonl":
            return self._jsonl(data, bom)
        if kind == "tsv" and layout == "auto" and not self._names_columns():
            found = self._recognise_tsv(data)
            if isinstance(found, Problem):
                return [found]
            if found:
                return self._headerless(found, LAYOUTS[found].headerless, bom)
        return self._header(data, kind, bom)

    def problem(self, field: str, rule: str, remedy: str) -> Problem:
        return Problem(f"{self._key}.{field}", getattr(self._source, field), rule, remedy)

    def _header(self, data: bytes, kind: str, bom: int) -> Head | list[Problem]:
        end = match_record(data, 0, len(data)) if kind == "csv" else None
        end = end or data.find(b"\n") + 1 or len(data)
        line = data[:end]
        fields = csv_fields(line) if kind == "csv" else line.rstrip(b"\r\n").split(b"\t")
        names = [text(name).strip() for name in fields]
        return self._resolved(resolve(names, self._source, self._key, fields=True), bom + end)

    def _headerless(self, layout: str, names: tuple[str, ...], bom: int) -> Head | list[Problem]:
        problems = [
            self.problem(field, f"a {layout} table has no named columns", "leave the column out")
            for field in ("url_column", "caption_column")
            if getattr(self._source, field)
        ]
        known = layout if layout in LAYOUTS else "generic"
        columns = resolve(names, self._source, self._key, fields=True, layout=known)
        return problems or self._resolved(columns, bom)

    def _recognise_tsv(self, data: bytes) -> str | Problem | None:
        """cc12m, cc3m, or None for a table with a header."""
        lines = data.split(b"\n", _PROBE_LINES)[:_PROBE_LINES]
        header = {text(name).strip().lower() for name in lines[0].split(b"\t")}
        if header & set(GENERIC.url):
            return None
        rows = [line.lower().split(b"\t") for line in lines]
        first = sum(row[0].startswith(_ADDRESS) for row in rows)
        last = sum(row[-1].startswith(_ADDRESS) for row in rows if len(row) > 1)
        if first or last:
            return "cc12m" if first >= last else "cc3m"
        return self.problem(
            "layout",
            f"no address and no url column in the first {_PROBE_LINES} lines of the TSV",
            "set layout to cc12m (url<TAB>caption), cc3m (caption<TAB>url) or generic (a header)",
        )

    def _txt(self, data: bytes, bom: int) -> Head | list[Problem]:
        if b"\t" not in data:
            rule = (
                "a .txt table has lines of an address, a tab and a caption; no line in its first "
                f"{len(data)} bytes has a caption, and images without captions are not stored"
            )
            remedy = "write the captions behind the addresses, or use a table that has them"
            return [self.problem("table", rule, remedy)]
        return self._headerless(".txt", ("url", "caption"), bom)

    def _jsonl(self, data: bytes, bom: int) -> Head | list[Problem]:
        lines = data.split(b"\n", _PROBE_LINES)[:_PROBE_LINES]
        objects = [values for line in lines if (values := parse_json(line)) is not None]
        names = list(dict.fromkeys(name for values in objects for name in values))
        if not names:
            rule = f"no JSON object in the first {_PROBE_LINES} lines"
            return [self.problem("table", rule, "write one object a line, or check the file")]
        return self._resolved(resolve(names, self._source, self._key), bom)

    def _resolved(self, columns: Columns | list[Problem], rows_at: int) -> Head | list[Problem]:
        return Head(columns, rows_at) if isinstance(columns, Columns) else columns

    def _names_columns(self) -> bool:
        return bool(self._source.url_column or self._source.caption_column)

    def _not_headerless(self, kind: str) -> Problem:
        layout = self._source.layout
        rule = f"{layout} is a headerless TSV; the table is {kind}"
        return self.problem("layout", rule, "set layout to auto or generic")


def _headerless() -> set[str]:
    return {name for name, layout in LAYOUTS.items() if layout.headerless}
