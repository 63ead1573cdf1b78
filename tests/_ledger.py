"""What the tests of the ledger share: small runs, hostile text, random events, other processes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import subprocess
import sys
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from sealrun.ledger import (
    Alert,
    Because,
    Coverage,
    Judgement,
    Ledger,
    MetricFacts,
    RunEnded,
    RunOpened,
    WriterFacts,
    new_ulid,
    open_ledger,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPOSITORY = "0123456789abcdef0123456789abcdef"
COMMIT = "c0ffee" + "0" * 34

#: What a container, a file name or a process may put into a text.
HOSTILE = {
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "override": "abc\u202egnp.exe",
    "nul": "a\0b",
    "not utf-8": os.fsdecode(b"caf\xe9 \xff"),
    "lone surrogates": "\ud800 and \udfff",
    "lines": "one\ntwo\r[sealrun] all is well",
    "replacement": "\ufffdDCFF",
    "markup": "[bold red]not markup[/]",
    "ten megabytes": "x" * (10 << 20),
}


def ledger_at(path: Path, repository: str = REPOSITORY) -> Ledger:
    """Open a ledger for writing; begin it where there is none."""
    return open_ledger(path, repository, pinned_refs_exist=False, create=True)


def opened(run: str | None = None, **fields: object) -> RunOpened:
    """Return the opening of a run."""
    values: dict[str, Any] = {"commit": COMMIT, "tree": "d" * 40, "command": ("true",)}
    return RunOpened(run=run or new_ulid(), **(values | fields))


def ended(run: str, kind: str | None = "clean", **fields: object) -> RunEnded:
    """Return the end of a run."""
    values: dict[str, Any] = {
        "outcome": "succeeded",
        "exit_status": 0,
        "verdict": Judgement(kind=kind) if kind else None,
    }
    return RunEnded(run=run, **(values | fields))


def alert(run: str | None, **fields: object) -> Alert:
    """Return a mutation."""
    values: dict[str, Any] = {
        "id": new_ulid(),
        "path": "train.py",
        "phase": "during-run",
        "change": "modified",
        "reason": "edit-unattributed",
    }
    return Alert(run=run, **(values | fields))


def write_run(ledger: Ledger, kind: str | None = "clean", **fields: object) -> str:
    """Write a whole run; fields go to its end; return its id."""
    opening = opened()
    assert opening.run is not None
    with ledger.transaction() as transaction:
        transaction.append(opening)
        transaction.append(ended(opening.run, kind, **fields))
    return opening.run


def hostile_run(ledger: Ledger, text: str) -> str:
    """Write a run with a text in every field that takes one from outside; return its id."""
    opening = opened(
        idea=text, command=("echo", text[:1000]), workspace=text, ref=text, revision=text
    )
    run = opening.run
    assert run is not None
    with ledger.transaction() as transaction:
        transaction.append(opening)
        transaction.append(
            alert(run, path=text, detail=text, diff=text, writer=WriterFacts(why=text))
        )
        reason = Because(code="edit-unattributed", detail=text, paths=(text,))
        transaction.append(
            ended(
                run,
                verdict=Judgement(kind="flagged", reasons=(reason,)),
                metric=MetricFacts(name=text, value=1.5, source=text, problem=text),
                coverage=Coverage(complete=False, verified=(text,), missing=(text,)),
                limits={text: text},
                fault=text,
            )
        )
    return run


# Cached: Hypothesis looks into each new strategy anew, which costs more than drawing from it.
@functools.cache
def any_text(size: int = 20) -> st.SearchStrategy[str]:
    """Return a strategy for texts of any code points, surrogates included."""
    return st.text(st.characters(exclude_categories=()), max_size=size)


def _free() -> st.SearchStrategy[object]:
    leaves = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | any_text()
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text(), inner, max_size=3),
        max_leaves=5,
    )


def any_record(kind: type[Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for records of a dataclass, from its type hints."""
    hints = typing.get_type_hints(kind)
    fields = {
        field.name: given[field.name] if field.name in given else _any(hints[field.name])
        for field in dataclasses.fields(kind)
        if not field.metadata.get("column") or field.name in given
    }
    return st.builds(kind, **fields)


@functools.cache
def _any(hint: object) -> st.SearchStrategy[Any]:
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: any_text(),
        int: st.integers(-(2**70), 2**70),
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
        object: _free(),
        types.NoneType: st.none(),
    }
    if hint in plain:
        return plain[hint]
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(_any(one) for one in arguments))
    if origin is tuple:
        return st.lists(_any(arguments[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(any_text(), _any(arguments[1]), max_size=2)
    assert isinstance(hint, type)
    return any_record(hint)


def python(script: str, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start another Python with a script and arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


@contextlib.contextmanager
def ready(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python that has printed a line; it is killed at the end."""
    with python(script, *arguments) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), process.stderr and process.stderr.read()
            yield process
        finally:
            process.kill()
