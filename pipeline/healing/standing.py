"""Where every rank stands, and which of them the others wait for. Numbers in, names out.

Training is synchronous: when one rank stands still all soon do, and those that wait in a collective are
seen standing there. The one to be named is behind the others, or does not answer, or alone is in no
collective.
"""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """Where a rank was when it was last heard of.

    Attributes:
        rank: of the process.
        host: its node.
        beats: how many it has given; every rank gives the same in the same places.
        step: of the last one.
        phase: that began with the last one.
        factor: by which the time allowed for that phase is longer.
        age: seconds since the last one.
        silent: seconds since the rank was heard of, contained in `age`.
    """

    rank: int
    host: str
    beats: int
    step: int
    phase: str
    factor: float
    age: float
    silent: float = 0.0

    def is_overdue(self, seconds: float) -> bool:
        """Whether it has stood still longer than is allowed."""
        return self.age > seconds * self.factor


@dataclass(frozen=True)
class Report:
    """What a rank says of itself when it is asked.

    Attributes:
        in_collective: a thread of it is in a call of torch.distributed or DeepSpeed's.
        stack: of its main thread, a line a call, the innermost last.
    """

    in_collective: bool
    stack: str


def find_hung(
    standings: list[Standing], own: Standing, seconds: float, silent_after: float
) -> list[Standing]:
    """The ranks that the others wait for, where they have waited long enough; else nothing.

    A rank that is behind but within the time of its phase is slow, however long the others have waited.
    A rank that is not heard of is no matter as long as we ourselves get on: then it is the network.

    Args:
        standings: of all ranks, our own included.
        own: ours.
        seconds: allowed between two beats, times the factor of the phase.
        silent_after: seconds without a word that are no accident.
    """
    silent = [s for s in standings if s.silent > silent_after]
    if silent:
        return [s for s in silent if s.is_overdue(seconds)] if own.is_overdue(seconds) else []
    least = min(s.beats for s in standings)
    behind = [s for s in standings if s.beats == least]
    return behind if all(s.is_overdue(seconds) for s in behind) else []


def narrow(hung: list[Standing], reports: dict[int, Report]) -> list[Standing]:
    """Of several ranks that stand at the same place, those that are in no collective, if they differ."""
    waiting = [s for s in hung if s.rank in reports and reports[s.rank].in_collective]
    return [s for s in hung if s not in waiting] or hung


def tell(
    named: list[Standing],
    standings: list[Standing],
    reports: dict[int, Report],
    world_size: int,
    most: int = 8,
) -> str:
    """What is printed: the ranks by name, their stacks, and where the others wait."""
    lines = [f"no progress: {_count(len(named))} the others wait for"]
    for standing in named[:most]:
        lines.append(
            f"  rank {standing.rank} on {standing.host}: step {standing.step}, {standing.phase}, "
            f"for {standing.age:.0f} s{_manner(standing, reports)}"
        )
        report = reports.get(standing.rank)
        if report:
            lines += ["    " + line for line in report.stack.splitlines()]
    if len(named) > most:
        lines.append(f"  and {len(named) - most} more")
    places = Counter((s.step, s.phase) for s in standings if s not in named)
    for (step, phase), count in sorted(places.items()):
        lines.append(f"  {count} {'others' if count > 1 else 'other'} at step {step}, {phase}")
    missing = sorted(set(range(world_size)) - {s.rank for s in standings})
    if missing:
        listed = ", ".join(map(str, missing[:most])) + (", ..." if len(missing) > most else "")
        lines.append(f"  watched no longer, since the loop has ended there: {listed}")
    return "\n".join(lines)


def _count(ranks: int) -> str:
    return "this is the rank" if ranks == 1 else f"these are the {ranks} ranks"


def _manner(standing: Standing, reports: dict[int, Report]) -> str:
    report = reports.get(standing.rank)
    if report is None:
        return " at least; not heard of since: stopped, gone, or in a call that holds Python's lock"
    return "; in a collective" if report.in_collective else "; in no collective"
