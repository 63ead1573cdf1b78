"""A verdict is the worst answer to any finding; ``clean`` needs complete coverage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sealrun.policy import Level, Policy, shipped_policy
from sealrun.reasons import MEANINGS, Reason, Severity
from sealrun.verdict import Finding, Kind, judge

STANDARD = shipped_policy("standard").policy
_reasons = st.lists(st.sampled_from(Reason), max_size=6)
_levels = st.sampled_from(Level)


def _judge(*reasons: Reason, started: bool = True, policy: Policy = STANDARD) -> Kind:
    return judge([Finding(reason) for reason in reasons], policy, started=started).kind


def test_nothing_found_is_clean() -> None:
    """No finding, no flag."""
    assert _judge() is Kind.CLEAN
    assert judge([], STANDARD, started=True).harmless


def test_no_watch_no_clean_run() -> None:
    """Every code that says "not observed" keeps a run from being clean or harmless."""
    for reason in (
        Reason.NOT_WATCHED,
        Reason.WATCHES_MISSING,
        Reason.EVENTS_LOST,
        Reason.GUARD_DIED,
        Reason.WRITERS_LOST,
        Reason.REMOTE_FILE_SYSTEM,
    ):
        verdict = judge([Finding(reason)], STANDARD, started=True)
        assert (verdict.kind, verdict.harmless) == (Kind.FLAGGED, False)


def test_the_table_of_section_5() -> None:
    """What a difference means under the standard policy."""
    assert _judge(Reason.WORKSPACE_DIFFERS, started=False) is Kind.REFUSED
    assert _judge(Reason.WORKSPACE_DIFFERS_FOREIGN, started=False) is Kind.FLAGGED
    assert judge([Finding(Reason.WORKSPACE_DIFFERS_FOREIGN)], STANDARD, started=True).harmless
    assert _judge(Reason.EDIT_LOOP, Reason.FOREIGN_BETWEEN) is Kind.CLEAN
    assert _judge(Reason.POLICY_CHANGED, started=False) is Kind.REFUSED
    assert _judge(Reason.PROTECTED_CHANGED, started=False) is Kind.REFUSED
    for reason in (Reason.CONTAINS_FOREIGN, Reason.INTENT_DIFFERS):
        assert not judge([Finding(reason)], STANDARD, started=True).harmless
    assert _judge(Reason.EDIT_UNATTRIBUTED) is Kind.FLAGGED
    assert judge([Finding(Reason.EDIT_UNATTRIBUTED)], STANDARD, started=True).harmless
    assert _judge(Reason.IN_CONTAINER) is Kind.ABORTED
    assert _judge(Reason.ENGINE_INTERFERENCE) is Kind.ABORTED
    assert _judge(Reason.DATA_CHANGED) is Kind.FLAGGED
    assert _judge(Reason.IDENTICAL_REWRITE, Reason.EXTRA_FILE) is Kind.CLEAN


def test_strict_refuses_before_and_aborts_after_the_start() -> None:
    """What would abort a run that has started refuses to start one."""
    strict = shipped_policy("strict").policy
    assert _judge(Reason.EVENTS_LOST, started=False, policy=strict) is Kind.REFUSED
    assert _judge(Reason.EVENTS_LOST, started=True, policy=strict) is Kind.ABORTED


@given(few=_reasons, more=_reasons, level=_levels, started=st.booleans())
def test_more_findings_never_make_a_verdict_milder(
    *, few: list[Reason], more: list[Reason], level: Level, started: bool
) -> None:
    """Nothing outweighs anything: a verdict only gets worse."""
    order = [Kind.CLEAN, Kind.FLAGGED, Kind.ABORTED, Kind.REFUSED]
    policy = Policy(level=level)
    first = judge([Finding(r) for r in few], policy, started=started)
    second = judge([Finding(r) for r in few + more], policy, started=started)
    assert order.index(second.kind) >= order.index(first.kind)
    assert first.harmless >= second.harmless
    assert len(second.reasons) == len(few + more)


@given(_reasons)
def test_clean_means_that_only_notes_were_found(reasons: list[Reason]) -> None:
    """A false clean is the worst bug: under standard it needs nothing but notes."""
    clean = _judge(*reasons) is Kind.CLEAN
    assert clean == all(MEANINGS[r].severity is Severity.NOTE for r in reasons)
