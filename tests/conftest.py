"""Fixtures that every test may use, and which soak tests a run takes.

Rules: ``SEALRUN_SOAK=full`` runs every soak test; ``sample`` those whose marker says ``sample=True``;
without it none. What is left out is said in the summary.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from _git import Repo

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

_LEFT = pytest.StashKey[int]()


def pytest_configure() -> None:
    """Let signals end what tests start, whatever our caller ignores (``nohup``, a shell's ``&``).

    An ignored signal stays ignored in every program that is started (signal(7)); a handler does not.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _nothing)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the soak tests that this run does not take."""
    level = os.environ.get("SEALRUN_SOAK", "none")
    if level not in ("none", "sample", "full"):
        raise pytest.UsageError(f"SEALRUN_SOAK={level}: none, sample or full")
    left = [item for item in items if not _taken(item, level)]
    items[:] = [item for item in items if item not in set(left)]
    config.stash[_LEFT] = len(left)
    config.hook.pytest_deselected(items=left)


def _taken(item: pytest.Item, level: str) -> bool:
    marker = item.get_closest_marker("soak")
    if marker is None or level == "full":
        return True
    return level == "sample" and bool(marker.kwargs.get("sample"))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how many soak tests were left out."""
    left = config.stash.get(_LEFT, 0)
    if left:
        terminalreporter.write_line(f"{left} soak tests were left for `make soak`")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A fresh git repository."""
    return Repo.create(tmp_path)
