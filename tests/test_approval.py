"""Approval is a human's: a controlling terminal and a typed code, and on record who it was."""

from __future__ import annotations

import os
import pty
import re
from typing import TYPE_CHECKING

import pytest

from _cli import SEALRUN, Cli

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

pytestmark = pytest.mark.engine


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A repository whose first run has approved its policy, and whose HEAD asks for another."""
    repo.commit({"sealrun.toml": "", "train.py": "print('val_bpb: 1')\n"})
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    cli.run("python3", "train.py")
    repo.commit({"sealrun.toml": '[limits]\ndeadline = "60s"\n'})
    yield cli
    cli.stop_guard()


def _approve(cli: Cli, answer: str | None) -> tuple[int, str]:
    """Run ``policy approve`` on a terminal of its own; answer None types the code shown."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child becomes the command
        os.chdir(cli.directory)
        os.execve(SEALRUN, [str(SEALRUN), "policy", "approve"], cli.environment)  # noqa: S606 - no shell
    shown = ""
    while not (code := re.search(r"Type (\d{6}) to approve", shown)):
        shown += os.read(terminal, 4096).decode()
    os.write(terminal, f"{code[1] if answer is None else answer}\n".encode())
    while True:
        try:
            shown += os.read(terminal, 4096).decode()
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


def test_a_human_at_a_terminal_approves(cli: Cli) -> None:
    """The change is shown, the code typed, the record says who, and the commit runs under it."""
    (change,) = cli.json("policy", "diff")["changes"]
    assert change == {"what": "limits.deadline", "approved": "null", "asked": "60.0"}
    cli.run("python3", "train.py", status=121)
    status, shown = _approve(cli, None)
    assert status == 0, shown
    assert "limits.deadline: null -> 60.0" in shown
    result, _ = cli.run("python3", "train.py")
    assert result["verdict"] == "clean"
    assert cli.json("policy", "diff")["changes"] == []


def test_another_answer_changes_nothing(cli: Cli) -> None:
    """A wrong code leaves everything as it was."""
    status, shown = _approve(cli, "yes")
    assert status == 121
    assert "nothing changed" in shown
    cli.run("python3", "train.py", status=121)


def test_without_a_terminal_nobody_approves(cli: Cli) -> None:
    """A program cannot: neither without a terminal nor by feeding standard input."""
    done = cli("policy", "approve", status=121)
    assert "person at a terminal" in done.stderr
