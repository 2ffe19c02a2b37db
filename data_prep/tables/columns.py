"""Which columns of a file are read, and as what."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.config import SourceConfig
from data_prep.errors import Problem
from data_prep.ledger import LEDGER_SCHEMA, TABLE_COLUMNS
from data_prep.tables.layouts import LAYOUTS, recognise

HASH_COLUMNS = {"sha256": ("sha256",), "md5": ("md5",), "phash": ("phash", "image_phash")}
_TAKEN = {*TABLE_COLUMNS, *(name.lower() for name in LEDGER_SCHEMA.names)}


@dataclass(frozen=True)
class Columns:
    """The columns of one file, by the names that it gives them.

    Attributes:
        layout: known by these columns, or named.
        fields: of a text table with fields in a fixed order: all of them, in this order.
        url: column of the addresses.
        caption: column of the captions.
        expected: column of the expected hashes, for a verification.
        verify: what these are: none, sha256, md5, phash.
        keep: columns that go into the ledger.
    """

    layout: str
    fields: tuple[str, ...]
    url: str
    caption: str
    expected: str | None
    verify: str
    keep: tuple[str, ...]

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The names that `keep` has in the ledger: `table_WIDTH` where the ledger has a `width`."""
        return tuple(f"table_{name}" if name.lower() in _TAKEN else name for name in self.keep)


def resolve(
    present: Sequence[str],
    source: SourceConfig,
    key: str,
    *,
    fields: bool = False,
    layout: str | None = None,
) -> Columns | list[Problem]:
    """Find the columns of a file.

    Args:
        present: names of all columns of the file, in order.
        source: what the configuration asks for.
        key: of the source in the configuration: `ingest.sources.NAME`.
        fields: whether the file is text with its fields in the order of `present`.
        layout: of the file, where it is known otherwise than by these columns.

    Returns:
        The columns, or everything that is wrong with them.
    """
    return _Resolver(present, source, key).resolve(fields, layout)


class _Resolver:
    def __init__(self, present: Sequence[str], source: SourceConfig, key: str) -> None:
        self._present, self._source, self._key = present, source, key
        self._problems: list[Problem] = []

    def resolve(self, fields: bool, name: str | None) -> Columns | list[Problem]:
        source = self._source
        if name is None:
            name = recognise(self._present) if source.layout == "auto" else source.layout
        layout = LAYOUTS[name]
        url = self._one("url_column", source.url_column, layout.url)
        caption = self._one("caption_column", source.caption_column, layout.caption)
        expected = None
        if source.verify != "none":
            field = "verify_column" if source.verify_column else "verify"
            expected = self._one(field, source.verify_column, HASH_COLUMNS[source.verify])
        elif source.verify_column:
            self._add(
                "verify_column",
                source.verify_column,
                "a column of hashes needs a kind of verification",
                f"set {self._key}.verify to sha256, md5 or phash, or leave the column out",
            )
        keep = self._keep(layout.keep, {url, caption, expected})
        columns = Columns(
            layout=name,
            fields=tuple(self._present) if fields else (),
            url=url or "",
            caption=caption or "",
            expected=expected,
            verify=source.verify,
            keep=keep,
        )
        self._refuse_twins({url, caption, expected, *keep} - {None})
        return self._problems or columns

    def _one(self, field: str, named: str | None, names: tuple[str, ...]) -> str | None:
        for name in (named,) if named else names:
            found = self._find(name)
            if found is not None:
                return found
        looked = repr(named) if named else " or ".join(repr(name) for name in names)
        self._add(
            field,
            getattr(self._source, field),
            f"the table must have the column {looked}; it has: {', '.join(self._present)}",
            "set it to md5, sha256, phash or none, or verify_column to one of those"
            if field == "verify"
            else f"set {self._key}.{field} to one of those",
        )
        return None

    def _find(self, name: str) -> str | None:
        if name in self._present:
            return name
        return next((p for p in self._present if p.lower() == name.lower()), None)

    def _keep(self, known: tuple[str, ...], used: set[str | None]) -> tuple[str, ...]:
        wanted = self._source.keep_columns
        if wanted is None:
            known_here = (p for p in self._present if p.lower() in known and p not in used)
            return tuple(dict.fromkeys(known_here))
        found = {name: self._find(name) for name in wanted}
        missing = [name for name, column in found.items() if column is None]
        if missing:
            self._add(
                "keep_columns",
                wanted,
                f"the table must have the columns that are kept; not there: {', '.join(missing)}; "
                f"it has: {', '.join(self._present)}",
                "correct the names, or leave them out",
            )
        return tuple(dict.fromkeys(column for column in found.values() if column is not None))

    def _refuse_twins(self, used: set[str]) -> None:
        twins = sorted(name for name in used if list(self._present).count(name) > 1)
        if twins:
            self._add(
                "table",
                self._source.table,
                f"a column that is read must have a name of its own; twice there: {', '.join(twins)}",
                "rename one of them in the table",
            )

    def _add(self, field: str, value: object, rule: str, remedy: str) -> None:
        self._problems.append(Problem(f"{self._key}.{field}", value, rule, remedy))
