"""One file of a plan: read once, and known again when the plan goes on."""

import time

from pydantic import BaseModel, ConfigDict, Field

from data_prep.errors import Problem
from data_prep.plan_changes import file_problem
from data_prep.storage import FileInfo
from data_prep.tables.columns import Columns
from data_prep.tables.files import TableFiles
from data_prep.tables.head import Head
from data_prep.tables.scan import Scan, scan_file

# A file written again within the resolution of its times has the same ones.
_SETTLED_SECONDS = 2.0


class PlannedFile(BaseModel):
    """One file of the table; the lists have a number for each shard, and none for parquet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="in the table's folder")
    bytes: int = Field(description="its size")
    stamp: str | None = Field(description="see FileInfo; null if it is not to be relied on")
    sha256: str = Field(description="of the whole file")
    rows: int = Field(description="in it")
    columns: Columns = Field(description="which are read")
    rows_at: int = Field(description="position of the first row of a text file")
    shard_bytes: list[int] = Field(description="of each shard's rows, one behind the other")
    shard_crc32: list[int] = Field(description="of these bytes")


class FileScanner:
    """Reads files of a table for its plan; safe to use from several threads.

    Args:
        files: the table.
        shard_rows: rows per shard.
        table: path or URL of the table as configured.
        key: of `table` in the configuration.
    """

    def __init__(self, files: TableFiles, shard_rows: int, table: str, key: str) -> None:
        self._files, self._shard_rows, self._table, self._key = files, shard_rows, table, key

    def new(self, file: FileInfo, head: Head) -> PlannedFile | Problem:
        """Read a file that is not yet planned, or say what is wrong with it."""
        stamp = self._reliable(file)
        scan = self._scan(file, head)
        if isinstance(scan, Problem):
            return scan
        return PlannedFile(
            name=file.name,
            bytes=file.bytes,
            stamp=stamp,
            columns=head.columns,
            rows_at=head.rows_at,
            **vars(scan),
        )

    def again(self, file: FileInfo, planned: PlannedFile) -> PlannedFile | Problem:
        """The planned file, if it is the same as then; it is read only if its stamp is not."""
        if planned.stamp and (file.bytes, file.stamp) == (planned.bytes, planned.stamp):
            return planned
        stamp = self._reliable(file)
        now = self._scan(file, Head(planned.columns, planned.rows_at))
        if isinstance(now, Problem):
            return now
        if now.sha256 == planned.sha256:
            return planned.model_copy(update={"stamp": stamp})
        return file_problem(self._key, self._table, planned, file.bytes, now, self._shard_rows)

    def _scan(self, file: FileInfo, head: Head) -> Scan | Problem:
        folder = self._files.folder
        try:
            scan = scan_file(
                *(folder, file.name, self._files.kind, head.columns, head.rows_at),
                self._shard_rows,
            )
            changed = folder.stat(file.name) != file
        except (OSError, ValueError) as error:  # pyarrow's are among the latter
            rule = f"{file.name} must be readable: {error}"
            return Problem(self._key, self._table, rule, "check the file")
        if changed:
            rule = f"{file.name} must not change while it is planned"
            remedy = "wait until it is written, and run again"
            return Problem(self._key, self._table, rule, remedy)
        return scan

    def _reliable(self, file: FileInfo) -> str | None:
        """The stamp, unless a further change just now could leave it as it is."""
        if not self._files.folder.is_local or file.stamp is None:
            return file.stamp
        newest = max(int(part) for part in file.stamp.split("-"))
        return file.stamp if time.time() - newest / 1e9 > _SETTLED_SECONDS else None
