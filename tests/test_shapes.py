"""Repositories of every shape that people have either run or are refused with the right words.

The list is ``shapes/table.py``; the manual's page is made from the same.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from _interpreter import source
from _wheels import only_from
from shapes import build
from shapes.table import ROWS, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _git import Repo
    from _interpreter import Source


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """Where uv gets interpreters from."""
    with source(tmp_path_factory.mktemp("interpreters")) as served:
        yield served


def _case(row: Row) -> object:
    marks = [pytest.mark.soak] if row.heavy else []
    return pytest.param(row, id=row.name, marks=marks)


@pytest.mark.engine
@pytest.mark.parametrize("row", [_case(row) for row in ROWS])
def test_a_repository_of_this_shape(
    row: Row,
    repo: Repo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interpreters: Source,
) -> None:
    """After init, a commit and warm it runs clean, or warm and run both say why it does not."""
    links = tmp_path / "links"
    links.mkdir()
    only_from(links, monkeypatch)
    for name, value in interpreters.variables.items():
        monkeypatch.setenv(name, value)
    directory = getattr(build, row.name)(repo, links)
    cli = Cli(directory, tmp_path / "home").with_base()
    try:
        if row.status == 2:
            assert row.says in cli("warm", status=2).stderr
            assert row.says in cli("run", "--", *row.command, status=2).stderr
            return
        cli("init", "--yes", "--no-hooks")
        _commit(directory)
        warmed = cli("warm", status=row.status)
        if row.status:
            assert row.says in warmed.stderr
            status, says = (125, "sealrun warm") if row.cold else (row.status, row.says)
            assert says in cli("run", "--", *row.command, status=status).stderr
            return
        result, done = cli.run(*row.command)
        assert done.stdout == row.says
        assert (result["verdict"], result["outcome"]) == ("clean", "succeeded"), done.stderr
    finally:
        cli.stop_guard()


def _commit(directory: Path) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
    for arguments in (("add", "--all"), ("commit", "--quiet", "-m", "Run through sealrun")):
        subprocess.run(["git", *who, *arguments], cwd=directory, check=True)


def test_the_table_holds_enough_and_each_shape_once() -> None:
    """No two rows are one shape, and both answers are among them."""
    assert len({row.name for row in ROWS}) == len(ROWS) >= 20
    assert {row.status for row in ROWS} == {0, 121, 2}
    assert all(row.says and row.holds for row in ROWS)
