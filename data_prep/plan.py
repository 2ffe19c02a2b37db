"""The plan of an ingest: which row of which file is in which shard, fixed for good.

`plan.json` in the dataset folder holds it. Files are taken in order of name, shards never straddle
files, and files that come later are planned behind those that are there: a planned row keeps its number
and its shard. A planned file that changes is refused, and so is another policy.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from data_prep.config import IngestConfig, policy
from data_prep.errors import ConfigError, Problem
from data_prep.plan_changes import policy_problems
from data_prep.planned_file import FileScanner, PlannedFile
from data_prep.schema import canonical_hash
from data_prep.storage import FileInfo, Folder
from data_prep.tables.files import TableFiles, find_files
from data_prep.tables.head import Head, read_head
from data_prep.tables.shard import ShardSpec

PLAN_NAME = "plan.json"
PLAN_VERSION = 1
_THREADS = 4


class Plan(BaseModel):
    """All rows of one table; see `shards`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(PLAN_VERSION, description="of this file")
    source: str = Field(description="name of the source in the configuration")
    folder: str = Field(description="of the table's files")
    kind: str = Field(description="parquet, tsv, csv, jsonl or txt")
    policy: dict = Field(description="the settings that decide what the shards hold")
    files: list[PlannedFile] = Field(description="in the order of their rows")
    _added: list[str] = PrivateAttr(default_factory=list)

    @property
    def added(self) -> list[str]:
        """Files that `make_plan` found new."""
        return self._added

    @property
    def shard_rows(self) -> int:
        return self.policy["shard_rows"]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def num_shards(self) -> int:
        return sum(-(-file.rows // self.shard_rows) for file in self.files)

    @property
    def input_fingerprint(self) -> str:
        """sha256 over the sha256 of the files."""
        digests = (bytes.fromhex(file.sha256) for file in self.files)
        return hashlib.sha256(b"".join(digests)).hexdigest()

    @property
    def policy_hash(self) -> str:
        """sha256 of the policy."""
        return canonical_hash(self.policy)

    def shards(self) -> Iterator[ShardSpec]:
        """All shards in order."""
        number = first_row = 0
        for file in self.files:
            offset = file.rows_at
            for i, start in enumerate(range(0, file.rows, self.shard_rows)):
                span = file.shard_bytes[i] if file.shard_bytes else 0
                yield ShardSpec(
                    source=self.source,
                    name=f"{number:06d}",
                    first_row=first_row + start,
                    rows=min(self.shard_rows, file.rows - start),
                    key=f"{_key(self.source)}.table",
                    folder=self.folder,
                    file=file.name,
                    kind=self.kind,
                    columns=file.columns,
                    file_bytes=file.bytes,
                    file_sha256=file.sha256,
                    file_stamp=file.stamp,
                    file_row=start,
                    offset=offset,
                    bytes=span,
                    crc32=file.shard_crc32[i] if file.shard_crc32 else 0,
                )
                offset += span
                number += 1
            first_row += file.rows

    def save(self, folder: Folder) -> None:
        """Write plan.json, whole or not at all, and only where it differs.

        Raises:
            OSError: it cannot be written.
        """
        data = self.model_dump_json().encode() + b"\n"
        if not (folder.exists(PLAN_NAME) and folder.read(PLAN_NAME) == data):
            folder.write(PLAN_NAME, data)


def load_plan(folder: Folder, key: str) -> Plan:
    """The plan of a dataset folder.

    Args:
        folder: which has a plan.json.
        key: of the configuration that named the folder, for messages.

    Raises:
        ConfigError: this version cannot read it.
    """
    try:
        plan = Plan.model_validate_json(folder.read(PLAN_NAME))
    except ValidationError:
        plan = None
    if plan is None or plan.version != PLAN_VERSION:
        found = "it does not" if plan is None else f"it has version {plan.version}"
        rule = f"{PLAN_NAME} in the folder must follow version {PLAN_VERSION} of the plan; {found}"
        remedy = "set another ingest.output, or delete the folder"
        raise ConfigError([Problem(key, folder.url, rule, remedy)])
    return plan


def make_plan(config: IngestConfig, source: str, folder: Folder) -> Plan:
    """Plan a table, or go on from the plan that its dataset folder has. Writes nothing.

    Args:
        config: the ingest section.
        source: name of the source.
        folder: the dataset folder, which need not exist.

    Raises:
        ConfigError: a table that cannot be read or has no rows or no such columns, a planned file that
            has changed or is gone, or another policy; all of them at once.
    """
    return _Planner(config, source, folder).plan()


class _Planner:
    def __init__(self, config: IngestConfig, source: str, folder: Folder) -> None:
        self._source, self._name, self._folder = config.sources[source], source, folder
        self._policy, self._key = policy(config, source), _key(source)
        self._table_key = f"{self._key}.table"

    def plan(self) -> Plan:
        files = find_files(self._source.table, self._table_key)
        former = None
        if self._folder.exists(PLAN_NAME):
            former = load_plan(self._folder, "ingest.output")
        planned = {file.name: file for file in former.files} if former else {}
        new = [file for file in files.files if file.name not in planned]
        problems = self._check_former(former, files) if former else []
        heads, wrong = self._read_heads(files, new)
        problems += wrong
        kept = [file for file in files.files if file.name in planned]
        if former and former.kind == files.kind:
            # By its own shards: the policy may be another one.
            scanner = self._scanner(files, former.shard_rows)
            again = _scan_all(lambda f: scanner.again(f, planned[f.name]), kept, problems)
            planned |= {file.name: file for file in again}
        if problems:
            raise ConfigError(problems)
        scanner = self._scanner(files, self._policy["shard_rows"])
        added = _scan_all(lambda f: scanner.new(f, heads[f.name]), new, problems)
        if not problems and not any(file.rows for file in [*planned.values(), *added]):
            problems.append(self._problem("the table must hold at least one row", "check the file"))
        if problems:
            raise ConfigError(problems)
        plan = Plan(
            source=self._name,
            folder=files.folder.url,
            kind=files.kind,
            policy=self._policy,
            files=[*planned.values(), *added],
        )
        plan._added.extend(file.name for file in new)
        return plan

    def _check_former(self, former: Plan, files: TableFiles) -> list[Problem]:
        problems = policy_problems(former.policy, self._policy, self._name, self._folder.url)
        if former.kind != files.kind:
            rule = f"the planned files are .{former.kind}, these are .{files.kind}"
            remedy = "name the former table, or set another ingest.output"
            return [*problems, self._problem(rule, remedy)]
        here = {file.name for file in files.files}
        for name in [file.name for file in former.files if file.name not in here]:
            rule = f"{name} is planned already and must stay; it is not there"
            problems.append(self._problem(rule, "put it back, or set another ingest.output"))
        return problems

    def _read_heads(
        self, files: TableFiles, new: list[FileInfo]
    ) -> tuple[dict[str, Head], list[Problem]]:
        """Heads by the name of the file; what is wrong alike in several files is told once."""
        heads: dict[str, Head] = {}
        wrong: dict[tuple, tuple[Problem, list[str]]] = {}

        def read(file: FileInfo) -> Head | list[Problem]:
            return read_head(files.folder, file.name, files.kind, self._source, self._key)

        with ThreadPoolExecutor(_THREADS) as threads:
            for file, head in zip(new, threads.map(read, new), strict=True):
                if isinstance(head, Head):
                    heads[file.name] = head
                    continue
                for problem in head:
                    same = (problem.key, problem.rule, problem.remedy)
                    wrong.setdefault(same, (problem, []))[1].append(file.name)
        return heads, [_in_files(problem, names) for problem, names in wrong.values()]

    def _scanner(self, files: TableFiles, shard_rows: int) -> FileScanner:
        return FileScanner(files, shard_rows, self._source.table, self._table_key)

    def _problem(self, rule: str, remedy: str) -> Problem:
        return Problem(self._table_key, self._source.table, rule, remedy)


def _scan_all(
    scan: Callable[[FileInfo], PlannedFile | Problem],
    files: list[FileInfo],
    problems: list[Problem],
) -> list[PlannedFile]:
    """Scan files side by side; what is wrong is added to the problems."""
    with ThreadPoolExecutor(_THREADS) as threads:
        found = [*threads.map(scan, files)]
    problems += [one for one in found if isinstance(one, Problem)]
    return [one for one in found if isinstance(one, PlannedFile)]


def _in_files(problem: Problem, names: list[str]) -> Problem:
    more = len(names) - 1
    where = names[0] + (f" and {more} more file{'s' * (more > 1)}" if more else "")
    return replace(problem, rule=f"{problem.rule} ({where})")


def _key(source: str) -> str:
    return f"ingest.sources.{source}"
