"""A policy says where each value comes from, and only ever gets tighter on the command line."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrun.errors import PolicyError, UsageError
from sealrun.policy import (
    NO_POLICY,
    Approvable,
    Level,
    Policy,
    SandboxPolicy,
    Tightening,
    approvable,
    approved_policy,
    changed,
    changed_paths,
    committed_policy,
    is_protected,
    load,
    parse_duration,
    parse_size,
    shipped_policy,
    tighten,
)
from sealrun.reasons import MEANINGS, Reason, Severity

if TYPE_CHECKING:
    from _git import Repo


def test_every_reason_has_a_meaning() -> None:
    """The set of codes is closed: a code without a meaning cannot be judged."""
    assert set(MEANINGS) == set(Reason)


def test_the_shipped_standard_is_the_built_in_default() -> None:
    """Policies/standard.toml and the models' defaults say the same, so neither can drift."""
    assert shipped_policy("standard").policy == Policy()


@pytest.mark.parametrize("name", ["audit", "standard", "strict"])
def test_shipped_policies_load(name: str) -> None:
    """Each shipped policy validates and carries its own level."""
    effective = shipped_policy(name)
    assert effective.policy.level == name
    assert effective.origins["sandbox.pids"] == "standard (shipped)"


def test_values_know_their_line() -> None:
    """A committed value's origin is its file and line; what it leaves alone is the shipped one's."""
    effective = load(b'# a comment\n[limits]\ndeadline = "10min"\n', source="sealrun.toml")
    assert effective.policy.limits.deadline == 600
    assert effective.origins["limits.deadline"] == "sealrun.toml:3"
    assert effective.origins["limits.grace"] == "standard (shipped)"
    assert effective.origins["metric.name"] == "built in"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[sandbox]\nmemmory = "8GiB"\n', "sealrun.toml:2: unknown key sandbox.memmory", "memory"),
        ("\n\n[limits]\ndeadline = -3\n", "sealrun.toml:4: limits.deadline", "policy check"),
        ('[sandbox]\nmemory = "lots"\n', "sealrun.toml:2: sandbox.memory", "policy check"),
        ("x =", "sealrun.toml: Invalid value", "TOML"),
        ('extends = "lenient"\n', "sealrun.toml:1: extends", "audit, standard, strict"),
        ('[metric]\npattern = "("\n', "no regular expression", "policy check"),
        ('[metric]\npattern = "a"\n', "needs one group", "policy check"),
        ('[metric]\nfile = "../x"\n', "relative to /out", "policy check"),
        ('[sandbox]\nnetwork = "host"\n', "sealrun.toml:2: sandbox.network", "policy check"),
    ],
)
def test_bad_policies_name_the_line_and_the_way_out(text: str, message: str, hint: str) -> None:
    """An unknown key names the nearest one; an impossible value names its line."""
    with pytest.raises(PolicyError) as caught:
        load(text.encode(), source="sealrun.toml")
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_policy_that_is_not_text_is_an_error() -> None:
    """Bytes that are not UTF-8 are named by their place."""
    with pytest.raises(PolicyError, match="byte 3"):
        load(b"a=1\xff", source="sealrun.toml")


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(content: bytes) -> None:
    """Whatever a commit holds as its policy, the answer is a policy or a PolicyError."""
    with contextlib.suppress(PolicyError):
        assert load(content, source="sealrun.toml").committed


def test_sizes_and_durations() -> None:
    """Units are binary with an i and decimal without; a bare number is bytes or seconds."""
    assert parse_size("8GiB") == 8 << 30
    assert parse_size("1.5 MB") == 1_500_000
    assert parse_size("12") == 12
    assert parse_size("8 parsecs") == "8 parsecs"
    assert parse_duration("600s") == 600
    assert parse_duration("1.5h") == 5400
    assert parse_duration("soon") == "soon"


def test_the_command_line_only_tightens() -> None:
    """A flag that would loosen the approved policy is a usage error, not a warning."""
    effective = load(b'level = "standard"\n[limits]\ndeadline = 600\n', source="p")
    tighter = tighten(effective, Tightening(Level.STRICT, 300.0, 1 << 30, 1.0))
    assert tighter.policy.level is Level.STRICT
    assert tighter.policy.limits.deadline == 300
    assert tighter.origins["limits.deadline"] == "--deadline"
    assert tighter.digest == effective.digest
    with pytest.raises(UsageError, match="looser"):
        tighten(effective, Tightening(deadline=601.0))
    with pytest.raises(UsageError, match="looser"):
        tighten(effective, Tightening(level=Level.AUDIT))


def test_loosenings_are_listed() -> None:
    """What a policy gives up against the shipped one can be put on record, one sentence each."""
    effective = load(
        b'[sandbox]\nnetwork = "bridge"\nseccomp = "engine"\npass_variables = ["TOKEN"]\n',
        source="p",
    )
    assert len(effective.loosened()) == 3
    assert SandboxPolicy() == SandboxPolicy(network="none")
    assert shipped_policy("strict").loosened() == ()


def test_without_a_policy_the_commit_runs_under_standard(repo: Repo) -> None:
    """No configuration is needed."""
    repo.commit({"train.py": "x = 1\n"})
    effective = committed_policy(repo.tree())
    assert (effective.policy.level, effective.digest) == (Level.STANDARD, NO_POLICY)
    assert not effective.committed


def test_a_commit_cannot_change_what_judges_it(repo: Repo) -> None:
    """A changed policy, a changed protected file and a dropped protection are each noticed."""
    policy = '[guard]\nprotected = ["prepare.py", "data"]\n'
    repo.commit({"sealrun.toml": policy, "prepare.py": "1", "data/x": "1", "train.py": "1"})
    effective = committed_policy(repo.tree())
    approved = approvable(repo.tree(), effective)

    def asked() -> tuple[tuple[Reason, ...], tuple[str, ...]]:
        now = committed_policy(repo.tree())
        candidate = approvable(repo.tree(), now, approved.patterns)
        return changed(approved, candidate), changed_paths(approved, candidate)

    repo.commit({"train.py": "2"})
    assert asked() == ((), ())
    repo.commit({"prepare.py": "2"})
    assert asked() == ((Reason.PROTECTED_CHANGED,), ("prepare.py",))
    repo.commit({"prepare.py": "1", "data/y": "new"})
    assert asked() == ((Reason.PROTECTED_CHANGED,), ("data/y",))
    repo.git("rm", "-q", "data/y", "data/x")
    repo.commit({"sealrun.toml": ""})
    reasons, paths = asked()
    assert set(reasons) == {Reason.POLICY_CHANGED, Reason.PROTECTED_CHANGED}
    assert paths == ("data/x",)


def test_patterns_cover_files_and_directories() -> None:
    """A pattern is a glob; one that names a directory covers all below it."""
    assert is_protected("data/a/b", ("data",))
    assert is_protected("prepare.py", ("prep*.py",))
    assert not is_protected("database", ("data",))


def test_levels_answer_findings_in_their_own_way() -> None:
    """Audit records, standard follows the table, strict aborts or refuses; notes stay notes."""
    audit, standard, strict = (shipped_policy(n).policy for n in ("audit", "standard", "strict"))
    differs = (Reason.WORKSPACE_DIFFERS, Severity.REFUSE)
    edit = (Reason.EDIT_UNATTRIBUTED, Severity.FLAG_HARMLESS)
    assert audit.react(*differs) is Severity.FLAG
    assert standard.react(*differs) is Severity.REFUSE
    assert standard.react(*edit) is Severity.FLAG_HARMLESS
    assert strict.react(*edit) is Severity.ABORT
    assert strict.react(Reason.EXTRA_FILE, Severity.NOTE) is Severity.NOTE
    assert audit.react(Reason.LEDGER_MISSING, Severity.REFUSE) is Severity.REFUSE


def test_nothing_approved_and_nothing_asked_is_equal() -> None:
    """Two repositories without policy need no human."""
    assert changed(Approvable(NO_POLICY), Approvable(NO_POLICY)) == ()


def test_an_approved_policy_comes_back_from_its_record() -> None:
    """What judges later commits is what was approved, value for value."""
    effective = load(
        b'level = "strict"\n[guard]\nprotected = ["a"]\n[sandbox]\nmemory = "1GiB"\n'
        b'[sandbox.variables]\nA = "1"\n[[data]]\nsource = "/srv/x"\n',
        source="p",
    )
    again = approved_policy(effective.digest, effective.values())
    assert again.policy == effective.policy
    assert again.origins["sandbox.memory"] == "approved"
    plain = shipped_policy("standard")
    assert approved_policy(plain.digest, plain.values()).policy == plain.policy
