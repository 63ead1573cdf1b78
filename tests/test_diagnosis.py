"""A failed experiment that met the sandbox hears which rule it met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrun.diagnosis import explain


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b"PermissionError: [Errno 13] Permission denied: 'train.py'\n", "'train.py'"),
        (b"sh: 1: cannot create x: Read-only file system\n", "[sandbox] workdir"),
        (b"OSError: [Errno 28] No space left on device\n", "[sandbox] tmp"),
        (b"socket.gaierror: [Errno -3] Temporary failure in name resolution\n", "network"),
        (b"ModuleNotFoundError: No module named 'numpy'\n", "lock file"),
        (b"RuntimeError: can't start new thread\n", "[sandbox] pids"),
    ],
)
def test_each_rule_names_its_key(tail: bytes, says: str) -> None:
    """The hint names the policy's key and no way around it."""
    assert says in (explain(tail) or "")


def test_an_ordinary_crash_is_left_alone() -> None:
    """An assertion error of the experiment's own is none of our business."""
    assert explain(b"AssertionError: loss is nan\n") is None


@given(st.binary(max_size=500))
def test_hostile_output_gives_a_bounded_sentence(tail: bytes) -> None:
    """Whatever was printed, the sentence is short and ours."""
    assert len(explain(tail) or "") < 1000
