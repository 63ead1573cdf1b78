"""How alike two runs are is judged by what they left and by what decides it, and by nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrun.reproduce.sameness import Likeness, Result, Tolerance, compare, measured, overall

RUN = Result(
    outcome="succeeded",
    exit_status=0,
    metric=0.9979,
    outputs={"out/model.bin": "a" * 64, "workdir/note.txt": "b" * 64},
    log="c" * 64,
    steps=800.0,
    conditions={"CPU": "one", "threads": 2},
)
OTHER = replace(RUN, metric=0.9981, outputs={**RUN.outputs, "out/model.bin": "d" * 64})


def test_equal_outputs_are_identical_on_any_machine() -> None:
    """Bits that agree need no excuse: another CPU does not make them incomparable."""
    elsewhere = replace(RUN, log="e" * 64, conditions={"CPU": "another", "threads": 96})
    found = compare(RUN, elsewhere)
    assert (found.likeness, found.compared) == (Likeness.OUTPUTS_IDENTICAL, 2)


def test_an_equal_metric_with_other_outputs_is_the_metric_alone() -> None:
    """A file with other bytes is named, and the metric still counts."""
    found = compare(RUN, replace(OTHER, metric=RUN.metric))
    assert found.likeness is Likeness.METRIC_IDENTICAL
    assert found.differences == ("1 outputs: other bytes: out/model.bin",)


@pytest.mark.parametrize("path", ["lost", "new", "unknown"])
def test_outputs_are_identical_only_as_a_whole_set(path: str) -> None:
    """A file that is missing, that is new, or whose bytes were not kept is no identical output."""
    changed = dict(RUN.outputs)
    if path == "lost":
        del changed["out/model.bin"]
    else:
        changed |= {"out/new": "f" * 64} if path == "new" else {"out/model.bin": None}
    assert compare(RUN, replace(RUN, outputs=changed)).likeness is Likeness.METRIC_IDENTICAL


@pytest.mark.parametrize(
    ("width", "expected"), [(0.001, Likeness.WITHIN_TOLERANCE), (0.0001, Likeness.DIFFERENT)]
)
def test_a_tolerance_decides_where_nothing_else_differs(width: float, expected: Likeness) -> None:
    """Within it the metric counts; beyond it, on the same machine, the two differ."""
    assert compare(RUN, OTHER, Tolerance(width)).likeness is expected


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"CPU": "one"}, {"CPU": "another"}, "CPU: one then, another now"),
        ({"GPUs": ("H100 (9.0)",)}, {"GPUs": ("A100 (8.0)",)}, "H100 (9.0) then, A100 (8.0) now"),
        ({"threads": 2}, {"threads": 8}, "threads: 2 then, 8 now"),
        ({"others on the GPUs": "none"}, {"others on the GPUs": "some"}, "none then, some now"),
    ],
)
def test_what_differs_under_other_conditions_is_incomparable(
    then: dict[str, object], now: dict[str, object], words: str
) -> None:
    """The condition is named with both values; what only one side knows is no difference."""
    found = compare(
        replace(RUN, conditions={**then, "known then": 1}), replace(OTHER, conditions=now)
    )
    assert found.likeness is Likeness.INCOMPARABLE
    assert len(found.conditions) == 1
    assert words in found.conditions[0]


def test_another_number_of_steps_shows_a_budget_of_time() -> None:
    """The same commit that came less far was given less by the machine: its metric says nothing."""
    found = compare(RUN, replace(OTHER, steps=640.0))
    assert found.likeness is Likeness.INCOMPARABLE
    assert found.conditions == ("the budget is one of time: 800 steps then, 640 now",)


def test_a_deadline_is_a_budget_of_time() -> None:
    """What a deadline cut off cannot be held against the commit."""
    cut = Result(outcome="timed-out", outputs={"out/log": "a" * 64})
    assert compare(cut, replace(cut, outputs={"out/log": "b" * 64})).likeness is (
        Likeness.INCOMPARABLE
    )


def test_a_crash_that_prints_the_same_is_identical_and_silence_is_no_proof() -> None:
    """Without files the printed output is the output; without either there is nothing to compare."""
    crash = Result(outcome="failed", exit_status=1, log="a" * 64)
    assert compare(crash, crash).likeness is Likeness.OUTPUTS_IDENTICAL
    found = compare(crash, replace(crash, log="b" * 64))
    assert found.likeness is Likeness.INCOMPARABLE
    assert "neither an output nor a metric" in found.conditions[0]


def test_another_end_is_a_difference() -> None:
    """A run that succeeded and now fails differs, whatever number it printed before."""
    found = compare(RUN, replace(RUN, outcome="failed", exit_status=1))
    assert found.likeness is Likeness.DIFFERENT
    assert found.differences[0] == (
        "it ended succeeded with status 0 then, ended failed with status 1 now"
    )


@pytest.mark.parametrize("which", ["original", "repetition"])
def test_a_disturbed_run_is_held_against_nobody(which: str) -> None:
    """A run that was aborted or interrupted, on either side, makes no difference of the commit."""
    disturbed = replace(OTHER, disturbed="was aborted because of a mutation")
    pair = (disturbed, RUN) if which == "original" else (RUN, disturbed)
    found = compare(*pair)
    assert found.likeness is Likeness.INCOMPARABLE
    assert f"the {which} was aborted" in found.conditions[0]


def test_repetitions_measure_a_tolerance() -> None:
    """Two or more repetitions show how far one more may be; equal ones show none."""
    assert measured([1.0]) is None
    equal = measured([0.5, 0.5, 0.5])
    assert equal is not None
    assert (equal.width, equal.centre) == (0.0, 0.5)
    spread = measured([1.0, 1.1, 0.9, 1.05, 0.95])
    assert spread is not None
    # 4.604 · 0.0790569 · √1.2, by hand
    assert spread.width == pytest.approx(0.39872, abs=1e-4)
    near, far = replace(RUN, metric=1.2), replace(RUN, metric=1.5)
    repeated = replace(OTHER, metric=0.9)
    assert compare(near, repeated, spread).likeness is Likeness.WITHIN_TOLERANCE
    assert compare(far, repeated, spread).likeness is Likeness.DIFFERENT


def test_the_worst_of_several_counts() -> None:
    """One repetition that differs outweighs any number that agree."""
    everything = list(Likeness)
    assert overall(everything) is Likeness.DIFFERENT
    assert overall(everything[:-1]) is Likeness.INCOMPARABLE
    assert overall(everything[:2]) is Likeness.METRIC_IDENTICAL


RESULTS = st.builds(
    Result,
    outcome=st.sampled_from(["succeeded", "failed", "timed-out", "stopped"]),
    exit_status=st.sampled_from([None, 0, 1]),
    metric=st.sampled_from([None, 1.0, 1.5]),
    outputs=st.dictionaries(
        st.sampled_from(["out/a", "out/b"]), st.sampled_from(["1" * 64, "2" * 64, None])
    ),
    log=st.sampled_from([None, "3" * 64, "4" * 64]),
    steps=st.sampled_from([None, 10.0, 20.0]),
    disturbed=st.sampled_from([None, "was stopped"]),
    conditions=st.dictionaries(st.sampled_from(["CPU", "threads"]), st.sampled_from([1, 2])),
)


@given(RESULTS, RESULTS)
def test_any_two_runs_are_judged_with_reasons(one: Result, other: Result) -> None:
    """Whatever the two are, ``different`` names a difference and ``incomparable`` a condition."""
    found = compare(one, other)
    if found.likeness is Likeness.DIFFERENT:
        assert found.differences
        assert not found.conditions
    if found.likeness is Likeness.INCOMPARABLE:
        assert found.conditions
    if found.likeness in (Likeness.OUTPUTS_IDENTICAL, Likeness.METRIC_IDENTICAL):
        assert one.metric == other.metric
        assert (one.outcome, one.exit_status) == (other.outcome, other.exit_status)
