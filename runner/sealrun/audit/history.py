"""What a repository still knows about the commits of a table: the facts, without an opinion.

Rules that this module keeps:

- Each commit object is read and hashed here (``objects``); git's own walks, which believe what they
  are served, are not asked.
- An abbreviated id means a commit only where exactly one commit begins with it; a branch of the same
  name never stands in for it.
- What is not there is not known: it is neither good nor bad.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from sealrun.audit.objects import Commit, Damaged, Objects
from sealrun.audit.reflog import Move, moves

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sealrun.git import Repository


#: Commits whose ancestors are kept at hand.
_REMEMBERED = 64


class State(StrEnum):
    """What became of a row's commit."""

    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"
    MISSING = "missing"
    AMBIGUOUS = "ambiguous"
    DAMAGED = "damaged"
    NO_ID = "no-id"


@dataclass(frozen=True)
class History:
    """Commits by full id, and how the ids of a table resolve.

    Attributes:
        resolved: id as written, lower case -> full id.
        states: id as written, lower case -> what became of it.
        commits: each commit that was read, by full id.
        moves: of the reflogs.
        shallow: whether the clone's history was cut.
        tips: how many branches, tags and HEADs were walked from.
    """

    resolved: Mapping[str, str]
    states: Mapping[str, State]
    commits: Mapping[str, Commit]
    moves: tuple[Move, ...]
    shallow: bool
    tips: int
    _ancestors: dict[str, frozenset[str]] = field(
        default_factory=dict[str, "frozenset[str]"], repr=False, compare=False
    )

    def commit(self, written: str) -> Commit | None:
        """Return the commit that an id of the table means, where it is known."""
        return self.commits.get(self.resolved.get(written.lower(), ""))

    def descends(self, commit: str, ancestor: str) -> bool:
        """Tell whether one commit is built on another; no commit is built on itself.

        Args:
            commit: full id.
            ancestor: full id.
        """
        return ancestor in self.ancestors(commit)

    def ancestors(self, commit: str) -> frozenset[str]:
        """Return the full ids of all that a commit is built on, as far as it is known."""
        if commit not in self._ancestors:
            seen: set[str] = set()
            waiting = deque([commit])
            while waiting:
                known = self.commits.get(waiting.popleft())
                for parent in known.parents if known else ():
                    if parent not in seen:
                        seen.add(parent)
                        waiting.append(parent)
            if len(self._ancestors) >= _REMEMBERED:
                self._ancestors.clear()
            self._ancestors[commit] = frozenset(seen)
        return self._ancestors[commit]

    def seen_by_reflog(self, oid: str) -> bool:
        """Tell whether HEAD or a branch of this clone ever stood at a commit."""
        return oid in self._stood

    @cached_property
    def _stood(self) -> frozenset[str]:
        return frozenset(oid for move in self.moves for oid in (move.old, move.new))


def read_history(repository: Repository, written: Iterable[str], objects: Objects) -> History:
    """Find out what a repository knows about commits.

    Args:
        written: ids as they stand in a table, abbreviated or not; lower case hexadecimal.
    """
    wanted = list(dict.fromkeys(written))
    resolved, states = _resolve(repository, wanted)
    tips = _tips(repository)
    commits: dict[str, Commit] = {}
    damaged: set[str] = set()
    _walk(objects, tips, commits, damaged)
    reachable = set(commits)
    _walk(objects, resolved.values(), commits, damaged)
    for one, oid in resolved.items():
        if oid in commits:
            states[one] = State.REACHABLE if oid in reachable else State.UNREACHABLE
        else:
            states[one] = State.DAMAGED if oid in damaged else State.MISSING
    shallow = repository.git.attempt("rev-parse", "--is-shallow-repository")[1].strip() == b"true"
    return History(resolved, states, commits, tuple(moves(repository)), shallow, len(tips))


def _resolve(repository: Repository, wanted: list[str]) -> tuple[dict[str, str], dict[str, State]]:
    resolved: dict[str, str] = {}
    states: dict[str, State] = {}
    feed = "".join(f"{one}\n" for one in wanted).encode()
    output = repository.git.attempt("cat-file", "--batch-check", stdin=feed)[1]
    answers = output.decode("utf-8", "replace").split("\n")
    for one, answer in itertools.zip_longest(wanted, answers[: len(wanted)], fillvalue=""):
        oid, kind, *_ = [*answer.split(" "), "", ""]
        states[one] = State.MISSING
        if kind == "commit" and oid.startswith(one):
            resolved[one] = oid
        elif kind == "ambiguous" or (oid and not oid.startswith(one)):
            # Also the beginning of a blob's id, or the name of a branch: look for commits alone.
            found = _beginning_with(repository, one)
            if len(found) == 1:
                resolved[one] = found[0]
            elif found:
                states[one] = State.AMBIGUOUS
    return resolved, states


def _beginning_with(repository: Repository, digits: str) -> list[str]:
    """Return the commits whose ids begin with these digits."""
    named = repository.git.attempt("rev-parse", f"--disambiguate={digits}")[1]
    if not named.strip():
        return []
    checked = repository.git.attempt("cat-file", "--batch-check", stdin=named)[1]
    answers = (line.split(" ") for line in checked.decode("utf-8", "replace").split("\n"))
    return [words[0] for words in answers if words[1:2] == ["commit"]]


def _tips(repository: Repository) -> list[str]:
    git = repository.git
    listed = git.attempt("for-each-ref", "--format=%(objectname) %(*objectname)")[1]
    head = git.attempt("rev-parse", "--verify", "--quiet", "HEAD")[1]
    others = git.attempt("worktree", "list", "--porcelain")[1].split(b"\n")
    heads = [line.removeprefix(b"HEAD ") for line in others if line.startswith(b"HEAD ")]
    return sorted({word.decode("ascii") for word in b" ".join((listed, head, *heads)).split()})


def _walk(
    objects: Objects, tips: Iterable[str], commits: dict[str, Commit], damaged: set[str]
) -> None:
    waiting = deque(tips)
    asked = set(commits)
    while waiting:
        oid = waiting.popleft()
        if oid in asked:
            continue
        asked.add(oid)
        try:
            commit = objects.commit(oid)
        except Damaged:
            damaged.add(oid)
            continue
        if commit is not None:
            commits[oid] = commit
            waiting.extend(commit.parents)
