"""What the tests of laundering share: trees in memory, foreign states, and what is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.alerts.laundering import Foreign, Laundered, contained
from sealrun.ledger import Process, WriterFacts
from sealrun.tree import FILE, CommittedTree, Entry, Spool, blob_id

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = "b" * 40
RUFF = WriterFacts(
    how="live",
    category="foreign",
    process=Process(pid=99, exe="/usr/bin/ruff", cmdline=("ruff", "format", ".")),
)


class Blobs(Spool):
    """Contents by their ids, in memory; they are hashed when the tree is made."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = dict(contents)

    def read(self, oid: str, kind: str) -> bytes:
        """Return a content."""
        assert kind == "blob"
        return self._contents[oid]

    def size(self, oid: str) -> int:
        """Return the size of a content."""
        return len(self._contents[oid])


def tree_of(files: Mapping[str, bytes], commit: str = "c" * 40) -> CommittedTree:
    """Return the tree of a commit that was never made."""
    contents = {blob_id(content): content for content in files.values()}
    entries = [Entry(p.encode(), FILE, blob_id(c), len(c)) for p, c in files.items()]
    entries.sort(key=lambda entry: entry.path)
    return CommittedTree(
        commit=commit,
        tree="d" * 40,
        algorithm="sha1",
        entries=tuple(entries),
        trees=frozenset(),
        submodules=(),
        subject="an idea",
        parents=(),
        spool=Blobs(contents),
    )


def change(
    before: bytes | None, after: bytes | None, path: str = "train.py", alert: str = "A1"
) -> Foreign:
    """Return a foreign state of one path."""
    return Foreign(alert, path.encode(), before, after, RUFF, base=BASE)


def found(
    before: bytes,
    after: bytes,
    files: bytes | Mapping[str, bytes],
    base: Mapping[str, bytes] | None = None,
) -> tuple[Laundered, ...]:
    """Look for one foreign change of ``train.py`` in a commit.

    Args:
        files: of the commit; bytes alone are ``train.py``.
        base: files of the commit that the change was made to, beside ``train.py``.
    """
    old = tree_of({"train.py": before, **(base or {})}, BASE)
    committed = tree_of({"train.py": files} if isinstance(files, bytes) else files)
    return contained(committed, [change(before, after)], {BASE: old}.get)
