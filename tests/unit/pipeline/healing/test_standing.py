from dataclasses import replace

from pipeline.healing.standing import Report, Standing, find_hung, narrow, tell

SECONDS, SILENT_AFTER = 600.0, 5.0
HERE = Standing(0, "n0", beats=40, step=10, phase="backward", factor=1.0, age=700.0)


def at(rank, beats=40, phase="backward", **others):
    return replace(HERE, rank=rank, host=f"n{rank // 2}", beats=beats, phase=phase, **others)


def hung(*standings, own=0):
    found = find_hung(list(standings), standings[own], SECONDS, SILENT_AFTER)
    return [s.rank for s in found]


def test_nobody_is_hung_before_the_time_is_up():
    assert hung(at(0, age=599.0), at(1, 38, "data", age=600.0)) == []


def test_the_rank_that_is_behind_is_hung_and_not_those_that_wait_for_it():
    assert hung(at(0), at(1, 38, "data"), at(2), at(3)) == [1]
    assert hung(at(0, 38, "data"), at(1)) == [0]
    # The others may be late by their phase; it is the one behind that counts.
    assert hung(at(0, age=100.0), at(1, 38, "data", age=601.0)) == [1]


def test_a_rank_in_a_phase_that_may_last_is_waited_for():
    assert hung(at(0), at(1, 38, "checkpoint", factor=5.0, age=2999.0)) == []
    assert hung(at(0), at(1, 38, "checkpoint", factor=5.0, age=3001.0)) == [1]
    assert hung(at(0), at(1, 0, "start", factor=float("inf"), age=1e9)) == []


def test_all_at_one_place_are_all_hung():
    assert hung(at(0), at(1), at(2)) == [0, 1, 2]


def test_a_silent_rank_is_hung_wherever_it_was():
    assert hung(at(0), at(1, 41, "step", silent=500.0), at(2)) == [1]
    assert hung(at(0), at(1, 38, "data", silent=500.0), at(2)) == [1]


def test_a_silent_rank_is_no_matter_while_we_get_on():
    assert hung(at(0, age=3.0), at(1, 2, "data", age=9e9, silent=9e9)) == []


def test_a_silent_rank_has_the_time_of_its_phase():
    assert hung(at(0), at(1, 38, "checkpoint", factor=5.0, age=700.0, silent=700.0)) == []


def test_of_several_those_in_no_collective_are_named():
    ranks = [at(0), at(1), at(2)]
    waits, works = Report(True, ""), Report(False, "")
    assert narrow(ranks, {0: waits, 1: works, 2: waits}) == [ranks[1]]
    assert narrow(ranks, {0: waits, 1: waits, 2: waits}) == ranks
    assert narrow(ranks, {0: works, 1: works, 2: works}) == ranks
    # Without a report it is not known to wait.
    assert narrow(ranks, {0: waits, 1: waits}) == [ranks[2]]


def test_what_is_told_names_rank_node_place_and_stack():
    ranks = [at(0), at(1, 38, "data"), at(2), at(3, 41, "step")]
    told = tell([ranks[1]], ranks, {1: Report(False, "a.py:1 in f\nb.py:2 in g")}, world_size=6)
    assert told.splitlines() == [
        "no progress: this is the rank the others wait for",
        "  rank 1 on n0: step 10, data, for 700 s; in no collective",
        "    a.py:1 in f",
        "    b.py:2 in g",
        "  2 others at step 10, backward",
        "  1 other at step 10, step",
        "  watched no longer, since the loop has ended there: 4, 5",
    ]


def test_what_is_told_stays_short():
    ranks = [at(rank) for rank in range(100)]
    reports = {rank: Report(True, "") for rank in range(99)}
    told = tell(ranks, ranks, reports, world_size=100, most=3).splitlines()
    assert told[0] == "no progress: these are the 100 ranks the others wait for"
    assert told[1].endswith("for 700 s; in a collective")
    assert told[-1] == "  and 97 more" and len(told) == 5
    silent = tell([ranks[99]], ranks, reports, world_size=100).splitlines()[1]
    assert silent.endswith(
        "at least; not heard of since: stopped, gone, or in a call that holds Python's lock"
    )
