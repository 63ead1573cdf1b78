"""Holds a table against what the repository knows: which commits exist, and who is built on whom.

Rules that this module keeps:

- Pure but for reading committed files through ``Objects``; nothing is executed.
- Only what both sides know is compared: a row without a commit is skipped, not suspected.
- A commit's parent is a fact; why an agent committed elsewhere is not, and is not said.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from sealrun.audit.constants import mentions, read_script
from sealrun.audit.findings import Code, Found
from sealrun.audit.history import State
from sealrun.audit.table import CRASH, DISCARD, KEEP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sealrun.audit.constants import Script
    from sealrun.audit.history import History
    from sealrun.audit.objects import Commit, Objects
    from sealrun.audit.table import Row

_STATES = {
    State.MISSING: (Code.MISSING, "the commit is not in this repository"),
    State.AMBIGUOUS: (Code.AMBIGUOUS, "several commits begin like this"),
    State.DAMAGED: (Code.DAMAGED, "git serves other bytes than the commit's id promises"),
    State.UNREACHABLE: (Code.UNREACHABLE, "no branch or tag holds the commit: git will remove it"),
}
#: Commits between two rows that are looked through.
_STEPS = 1000
#: Changed constants that one row's finding names.
_NAMED = 10


class Lineage:
    """A table together with its repository."""

    def __init__(self, rows: Sequence[Row], history: History) -> None:
        self.rows = rows
        self.history = history
        self.commits: dict[int, Commit] = {}
        self.row_of: dict[str, Row] = {}
        for row in rows:
            commit = history.commit(row.commit) if row.has_id else None
            if commit is not None:
                self.commits[row.number] = commit
                self.row_of.setdefault(commit.id, row)

    def judge(self) -> Iterator[Found]:
        """Yield what the repository says against the table, by kind."""
        yield from self._states()
        yield from self._parents()
        yield from self._order()
        yield from self._lives_on()
        yield from self._left()
        yield from self._amended()

    def _states(self) -> Iterator[Found]:
        for row in self.rows:
            state = self.history.states.get(row.commit.lower())
            if row.has_id and state is not None and state in _STATES:
                code, text = _STATES[state]
                yield Found(code, row.number, text)

    def _parents(self) -> Iterator[Found]:
        kept: Row | None = None
        for row in self.rows:
            commit = self.commits.get(row.number)
            base = self.commits.get(kept.number) if kept else None
            if commit is not None and base is not None and kept is not None:
                text = self._made_on(commit, base, kept)
                if text is not None:
                    yield Found(Code.OTHER_PARENT, row.number, text, kept.number)
            if row.status == KEEP:
                kept = row

    def _made_on(self, commit: Commit, base: Commit, kept: Row) -> str | None:
        """Return on what a commit is made, unless it is the last kept one."""
        if base.id in (commit.id, *commit.parents):
            return None
        where = f"not on row {kept.number}'s commit {base.id[:7]}"
        for parent in commit.parents:
            if parent in self.row_of:
                on = self.row_of[parent]
                return f"made on row {on.number}'s commit ({on.status or 'no status'}), {where}"
        between, current = 0, commit
        while between < _STEPS and current.parents and current.parents[0] != base.id:
            following = self.history.commits.get(current.parents[0])
            if following is None or following.id in self.row_of:
                break
            current = following
            between += 1
        if current.parents[:1] == (base.id,):
            plural = "s" if between > 1 else ""
            return (
                f"{between} commit{plural} without a row between it and row {kept.number}'s commit"
            )
        parents = ", ".join(parent[:7] for parent in commit.parents) or "nothing"
        return f"made on {parents}, which stands in no row, {where}"

    def _order(self) -> Iterator[Found]:
        latest: tuple[int, Row] | None = None
        for row in self.rows:
            commit = self.commits.get(row.number)
            if commit is None or commit.at is None:
                continue
            if latest is not None and commit.at < latest[0]:
                yield Found(
                    Code.OUT_OF_ORDER,
                    row.number,
                    f"its commit is {latest[0] - commit.at} s older than row {latest[1].number}'s",
                    latest[1].number,
                )
            else:
                latest = (commit.at, row)

    def _kept(self) -> list[tuple[Row, Commit]]:
        return [
            (row, self.commits[row.number])
            for row in self.rows
            if row.status == KEEP and row.number in self.commits
        ]

    def _lives_on(self) -> Iterator[Found]:
        kept = self._kept()
        built_on: dict[str, Row] = {}
        for row, commit in kept:
            for ancestor in self.history.ancestors(commit.id):
                if ancestor in self.row_of:
                    built_on.setdefault(ancestor, row)
        kept_ids = {commit.id for _, commit in kept}
        for row in self.rows:
            commit_of = self.commits.get(row.number)
            if row.status not in (DISCARD, CRASH) or commit_of is None:
                continue
            heir = built_on.get(commit_of.id)
            if heir is not None and heir.number > row.number and commit_of.id not in kept_ids:
                word = "crashed" if row.status == CRASH else "discarded"
                yield Found(
                    Code.DISCARD_LIVES_ON,
                    row.number,
                    f"{word}, yet row {heir.number}'s kept commit is built on it",
                    heir.number,
                )

    def _left(self) -> Iterator[Found]:
        kept = self._kept()
        for (row, commit), (heir, next_commit) in itertools.pairwise(kept):
            known = commit.id in (next_commit.id, *self.history.ancestors(next_commit.id))
            if not known:
                yield Found(
                    Code.KEEP_LEFT,
                    row.number,
                    f"kept, yet row {heir.number}'s kept commit is not built on it",
                    heir.number,
                )

    def _amended(self) -> Iterator[Found]:
        # The id of a commit that is gone is known as it is written, abbreviated: its beginning.
        written: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.has_id:
                written.setdefault(row.commit.lower()[:4], []).append(row)

        def row_of(oid: str) -> Row | None:
            named = written.get(oid[:4], ())
            return next((row for row in named if oid.startswith(row.commit.lower())), None)

        for move in self.history.moves:
            if not move.message.startswith("commit (amend)"):
                continue
            before, after = row_of(move.old), row_of(move.new)
            if before is not None:
                into = f"row {after.number}'s commit" if after else f"{move.new[:7]}, in no row"
                yield Found(
                    Code.AMENDED, before.number, f"its commit was amended afterwards, into {into}"
                )
            elif after is not None:
                yield Found(
                    Code.AMENDED, after.number, f"its commit was made by amending {move.old[:7]}"
                )


def unmentioned(lineage: Lineage, scripts: Mapping[str, Script | None]) -> Iterator[Found]:
    """Yield each row whose commit changes constants that its description does not mention.

    Args:
        lineage: of the table.
        scripts: what each commit's script says, by the commit's full id.
    """
    for row in lineage.rows:
        commit = lineage.commits.get(row.number)
        if commit is None or not commit.parents:
            continue
        new, old = scripts.get(commit.id), scripts.get(commit.parents[0])
        if new is None or old is None:
            continue
        changed = [
            f"{name} {_brief(old.constants[name])} to {_brief(value)}"
            for name, value in new.constants.items()
            if name in old.constants
            and not _same(old.constants[name], value)
            and not mentions(row.description, name, value)
        ]
        if changed:
            more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            yield Found(
                Code.UNMENTIONED_CHANGE,
                row.number,
                f"the commit changes {', '.join(changed[:_NAMED])}{more}; the description "
                "mentions neither name nor value",
            )


def _same(one: object, two: object) -> bool:
    return type(one) is type(two) and one == two


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:39] + "…"  # noqa: PLR2004 - for a message


def read_scripts(lineage: Lineage, objects: Objects, path: bytes) -> dict[str, Script | None]:
    """Read the script of each row's commit and of its parent, by the commit's full id."""
    found: dict[str, Script | None] = {}
    parsed: dict[bytes, Script | None] = {}
    for commit in lineage.commits.values():
        parent = lineage.history.commits.get(commit.parents[0]) if commit.parents else None
        for one in (commit, parent):
            if one is not None and one.id not in found:
                content = objects.file(one, path)
                if content is None:
                    found[one.id] = None
                    continue
                if content not in parsed:
                    parsed[content] = read_script(content)
                found[one.id] = parsed[content]
    return found
