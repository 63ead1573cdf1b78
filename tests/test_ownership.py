"""Whose a change is where several things are known of it: the strictest answer counts."""

from __future__ import annotations

import pytest

from sealrun import findings
from sealrun.guard import GitChange, GitState, Moment, Mutation, Writer
from sealrun.guard.coverage import Coverage
from sealrun.guard.mutations import Evidence, Report
from sealrun.guard.processes import Process
from sealrun.ownership.joined import Ownership
from sealrun.ownership.sessions import Session
from sealrun.reasons import Reason

AT = Moment(100.0, 1000.0, "boot")
SESSION = Session("01", 50, 5, "boot", 0, ("agent",), attached=False, begun=0.0)
LEADER = Process(50, exe="/usr/bin/agent", cmdline=("agent",), uid=0, started=5)
INIT = Process(1, exe="/sbin/init", cmdline=("init",), uid=0, started=1)
LOOP = Writer(
    "live",
    process=Process(51, exe="/usr/bin/git", cmdline=("git",), uid=0, started=9, forked=True),
    parents=(LEADER, INIT),
)
OTHER = Writer(
    "live",
    process=Process(60, exe="/usr/bin/sed", cmdline=("sed",), uid=0, started=3),
    parents=(INIT,),
)
OWNERS = Ownership((SESSION,), ())
COVERAGE = Coverage(AT, AT, AT, 1, 1)


def _mutation(writer: Writer, *candidates: Writer, count: int = 1) -> Mutation:
    kept = Evidence("a" * 64, 1, 1, None)
    return Mutation(
        *(1, b"train.py", "tracked", "modified", "x", "y", 0o100644, ("modify",), AT, AT),
        count=count,
        evidence=kept,
        writer=writer,
        candidates=candidates,
    )


def test_the_loop_is_excused_only_where_nobody_else_can_have_written() -> None:
    """Who wrote before the loop did may have left something that the loop's write kept."""
    assert OWNERS.of(_mutation(LOOP)).category == "loop"
    assert OWNERS.of(_mutation(LOOP, OTHER)).category == "foreign"
    assert OWNERS.of(_mutation(LOOP, Writer())).category == "unknown"


@pytest.mark.parametrize(
    ("at", "count", "category"),
    [(1003.0, 1, "loop"), (400.0, 1, "unknown"), (1003.0, 2, "unknown")],
)
def test_an_intent_excuses_what_was_written_then(at: float, count: int, category: str) -> None:
    """A later return to what the agent once wrote, as a sync tool makes it, is nobody's known edit."""
    owners = Ownership((), (), {b"train.py": (("a" * 64, at),)})
    assert owners.of(_mutation(Writer(), count=count)).category == category


def _reasons(*moves: GitChange, now: str = "b" * 40) -> list[Reason]:
    state = GitState("a" * 40, now, "refs/heads/main", "refs/heads/main", moves)
    found = findings.from_report(Report(COVERAGE, git=state), None, None, OWNERS)  # type: ignore[arg-type]  # no tree is asked for a move
    return [finding.reason for finding in found]


def test_a_move_of_head_is_the_loops_only_as_a_whole() -> None:
    """Each step has to be its own, and the steps have to lead to where HEAD is."""
    move = GitChange("HEAD", "head", "a" * 40, "b" * 40, AT, LOOP)
    assert _reasons(move) == [Reason.EDIT_LOOP]
    assert _reasons(move, now="c" * 40) == [Reason.HEAD_MOVED]
    shared = GitChange("HEAD", "head", "a" * 40, "b" * 40, AT, LOOP, (OTHER,))
    assert _reasons(shared) == [Reason.HEAD_MOVED]
    assert _reasons() == [Reason.HEAD_MOVED]
