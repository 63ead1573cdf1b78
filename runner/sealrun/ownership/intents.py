"""What the loop's editor meant to write, and whether a commit holds that and nothing else.

Hooks of coding agents and of git append to a log (``intentlog``); this reads it and compares a commit
with it. For each path the log is a sequence of *states* (the hash of a content, or absent) with what
led from one to the next: the agent's own edit, a shell command of the agent, git's hooks, or nothing
that is known.

Rules that this module keeps:

- ``compare`` is pure over what was read. It never calls a path a match because something is missing.
- A change that lies between two states and in no tool use of the agent is foreign; one that lies in
  a shell command is unknown, because its bytes are in no payload; one between what was staged and
  what git's hooks left is foreign.
- What counts is what the commit holds: a foreign change that is not in it is not reported.
- Line ends are not judged: an agent's payload holds line feeds whatever its editor writes.
- The log is hostile: each field is checked, paths that lead out of the workspace are dropped.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from sealrun.ownership import intentlog
from sealrun.ownership.intentlog import ABSENT
from sealrun.tree import EXECUTABLE, FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.tree import CommittedTree, Entry

#: Seconds after which a shell command whose end is not on record is taken to have ended.
LONGEST_SHELL = 3600.0
#: Lines of diff kept of a foreign part.
DIFF_LINES = 40
_LFS = b"version https://git-lfs.github.com/spec/"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

#: SHA-256 of a content, ``ABSENT``, or None: not known.
State = str | None


@dataclass(frozen=True)
class Intent:
    """One file that an agent's tool changed.

    Attributes:
        at: wall clock seconds when the tool had ended.
        monotonic: CLOCK_MONOTONIC seconds of the same moment.
        agent: ``claude-code`` or ``codex``.
        tool: as the agent calls it.
        tool_use: the agent's id of this use.
        agent_session: the agent's id of its session.
        path: relative to the workspace.
        before: the state that the tool found.
        intended: the state that the agent meant.
        whole: the agent named every byte; what the file held before plays no part in it.
    """

    at: float
    monotonic: float
    agent: str
    tool: str
    tool_use: str
    agent_session: str
    path: bytes
    before: State
    intended: State
    whole: bool


@dataclass(frozen=True)
class Shell:
    """The beginning or end of a tool use that may write any file without saying so.

    Attributes:
        begins: beginning or end; ``lost`` uses, of which nothing could be read, are both.
        background: it goes on after its end.
        seen: states of some files at that moment.
    """

    at: float
    tool_use: str
    agent_session: str
    begins: bool
    ends: bool
    background: bool
    seen: Mapping[bytes, str]


@dataclass(frozen=True)
class Staged:
    """What git's hooks saw of one commit, before or after the fixers.

    Attributes:
        git: pid and start of the git process.
        after: after the fixers.
        index: states of the staged files.
        files: states of the same files in the workspace.
    """

    at: float
    git: tuple[int, int]
    after: bool
    index: Mapping[bytes, str]
    files: Mapping[bytes, str]


@dataclass(frozen=True)
class Committed:
    """A commit that git's hook reported."""

    at: float
    git: tuple[int, int]
    commit: str


Event = Intent | Shell | Staged | Committed


@dataclass(frozen=True)
class Log:
    """What hooks recorded about one workspace, oldest first.

    Attributes:
        events: in the order in which they were recorded.
        content: returns the content of a hash, or None where it was not kept.
    """

    events: tuple[Event, ...] = ()
    content: Callable[[str], bytes | None] = field(default=lambda _: None, repr=False)

    def intended(self) -> dict[bytes, tuple[tuple[str, float], ...]]:
        """Return the sha256 of each content that the agent meant for a path, and when (wall time)."""
        found: dict[bytes, list[tuple[str, float]]] = {}
        for event in self.events:
            if isinstance(event, Intent) and event.intended not in (None, ABSENT):
                found.setdefault(event.path, []).append((str(event.intended), event.at))
        return {path: tuple(meant) for path, meant in found.items()}


class Agreement(StrEnum):
    """How a committed path compares with what was meant."""

    MATCH = "match"
    DIFFERS = "differs"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Match:
    """One path that a commit changed.

    Attributes:
        path: relative to the workspace.
        kind: match, differs or unknown.
        why: one sentence.
        foreign: a diff of each foreign part, as it went into the commit; empty where the contents
            were not kept.
        intent: the last intent for the path, if any.
    """

    path: bytes
    kind: Agreement
    why: str
    foreign: tuple[str, ...] = ()
    intent: Intent | None = None


def read(directory: Path, workspace: Path) -> Log:
    """Read the log of a repository, as far as it is about one workspace.

    Args:
        directory: ``Places.repository(id)``.
        workspace: top of the working directory.
    """
    where = str(directory / intentlog.DIRECTORY)
    top = os.path.realpath(workspace)
    # Codex's plans wait here for their end.
    plans: dict[tuple[str, str, str], dict[str, Any]] = {}
    events: list[Event] = []
    for record in intentlog.records(where):
        if record.get("workspace") != top:
            continue
        event = _event(record, plans)
        if event is not None:
            events.append(event)
    return Log(tuple(events), lambda name: intentlog.content(where, name))


def _event(
    record: Mapping[str, Any], plans: dict[tuple[str, str, str], dict[str, Any]]
) -> Event | None:
    kind, at = record.get("kind"), record.get("at")
    if not isinstance(at, int | float):
        return None
    if kind in {"intent", "plan", "done"}:
        use = (_words(record, "session"), _words(record, "use"), _words(record, "path"))
        if kind == "plan":
            plans[use] = dict(record)
            return None
        plan = plans.pop(use, None) if kind == "done" else None
        return _intent(record, plan or record)
    if kind in {"shell", "lost"}:
        return Shell(
            at,
            _words(record, "use"),
            _words(record, "session"),
            begins=kind == "lost" or record.get("begins") is True,
            ends=kind == "lost" or record.get("begins") is not True,
            background=record.get("background") is True,
            seen=_states(record.get("seen")),
        )
    return _of_git(record, at)


def _of_git(record: Mapping[str, Any], at: float) -> Event | None:
    git = record.get("git")
    if not (isinstance(git, list) and len(git) == 2 and all(isinstance(n, int) for n in git)):  # noqa: PLR2004 - pid and start
        return None
    process = (git[0], git[1])
    if record.get("kind") == "index":
        index, files = _states(record.get("index")), _states(record.get("files"))
        return Staged(at, process, record.get("moment") == "after", index, files)
    commit = record.get("commit")
    return Committed(at, process, commit) if isinstance(commit, str) else None


def _intent(record: Mapping[str, Any], said: Mapping[str, Any]) -> Intent | None:
    """Return an intent: when it was done by one record, what it said by another or the same."""
    path = _path(record.get("path"))
    monotonic = record.get("monotonic")
    if path is None or not isinstance(monotonic, int | float):
        return None
    return Intent(
        at=record["at"],
        monotonic=monotonic,
        agent=_words(record, "agent"),
        tool=_words(record, "tool"),
        tool_use=_words(record, "use"),
        agent_session=_words(record, "session"),
        path=path,
        before=_state(said.get("before")),
        intended=_state(said.get("intended")),
        whole=said.get("whole") is True,
    )


def _words(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _state(value: object) -> State:
    if value == ABSENT:
        return ABSENT
    is_hash = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")  # noqa: PLR2004 - SHA-256
    return str(value) if is_hash else None


def _path(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        path = os.fsencode(value)
    except UnicodeEncodeError:
        return None
    parts = path.split(b"/")
    inside = path and b"\0" not in path and not {b"", b".", b".."} & set(parts)
    return path if inside else None


def _states(value: object) -> dict[bytes, str]:
    rows = value.items() if isinstance(value, dict) else ()
    found = ((_path(path), _state(state)) for path, state in rows)
    return {path: state for path, state in found if path is not None and state is not None}


def compare(
    log: Log,
    tree: CommittedTree,
    parent: CommittedTree | None,
    *,
    committed_at: float | None = None,
    filtered: Container[bytes] = (),
) -> tuple[Match, ...]:
    """Compare each path that a commit changed with what was meant.

    Args:
        log: of the commit's workspace.
        tree: the commit.
        parent: its first parent; None where it has none.
        committed_at: wall clock seconds of the commit, if known (``commit_time``); what is recorded
            later does not count. A commit that git's hook reported is placed by that.
        filtered: paths whose committed bytes a filter made (LFS, a clean filter, ident).

    Returns:
        One match for each path that was added, changed or removed, sorted by path.
    """
    comparison = _Comparison(log, tree, parent, committed_at)
    found: list[Match] = []
    for path in _changed(tree, parent):
        match = comparison.judge(path)
        if match.kind is Agreement.DIFFERS and path in filtered:
            why = "a filter made the committed bytes, so they cannot be compared"
            match = Match(path, Agreement.UNKNOWN, why, intent=match.intent)
        found.append(match)
    return tuple(found)


def commit_time(tree: CommittedTree) -> float | None:
    """Return when a commit says that it was made: wall clock, whole seconds; None if malformed."""
    head = tree.spool.read(tree.commit, "commit").partition(b"\n\n")[0]
    for line in head.split(b"\n"):
        if line.startswith(b"committer "):
            words = line.rsplit(b" ", 2)
            return float(words[1]) if words[1:2] and words[1].isdigit() else None
    return None


def _changed(tree: CommittedTree, parent: CommittedTree | None) -> list[bytes]:
    now = {entry.path: (entry.mode, entry.oid) for entry in tree.entries}
    then = {entry.path: (entry.mode, entry.oid) for entry in parent.entries} if parent else {}
    return sorted(path for path in now.keys() | then.keys() if now.get(path) != then.get(path))


@dataclass(frozen=True)
class _Node:
    """A state in the history of one path, and what led to it from the one before.

    Attributes:
        number: of the event that told of it.
        state: None where it is not known.
        by: ``agent``, ``git hooks``, or ``gap``: whatever happened between two events.
        intent: what the agent did, where it did.
    """

    number: int
    state: State
    by: Literal["agent", "git hooks", "gap"]
    intent: Intent | None = None


class _Comparison:
    def __init__(
        self,
        log: Log,
        tree: CommittedTree,
        parent: CommittedTree | None,
        committed_at: float | None,
    ) -> None:
        self.log = log
        self.tree = tree
        self.parent = parent
        self.contents: dict[str, bytes] = {}
        self.folded: dict[str, str] = {}
        self.git, self.events = self._until(committed_at)
        self.spans = _spans(self.events)
        self.paths = self._by_path()
        #: First and last state of each path that the commit removed, for renames.
        self.moved = self._removed()

    def _until(self, committed_at: float | None) -> tuple[tuple[int, int] | None, Sequence[Event]]:
        """Return the events up to the commit, and the git process that made it where known."""
        events = self.log.events
        for number in range(len(events) - 1, -1, -1):
            event = events[number]
            if isinstance(event, Committed) and event.commit == self.tree.commit:
                return event.git, events[:number]
        if committed_at is None:
            return None, events
        # Git keeps whole seconds: what was recorded within that second may belong to the commit.
        last = bisect_right(events, committed_at + 1, key=lambda event: event.at)
        return None, events[:last]

    def _by_path(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for number, event in enumerate(self.events):
            for path in _paths_of(event):
                found.setdefault(path, []).append(number)
        return found

    def _removed(self) -> dict[str, bytes]:
        removed: dict[str, bytes] = {}
        for entry in self.parent.entries if self.parent else ():
            if self.tree.get(entry.path) is None:
                for node in self._nodes(entry.path):
                    if node.intent is not None and node.state not in {None, ABSENT}:
                        removed[self._fold(node.state or "")] = entry.path
        return removed

    def judge(self, path: bytes) -> Match:
        """Return how one changed path compares with what was meant."""
        entry = self.tree.get(path)
        old = self.parent.get(path) if self.parent else None
        if any(e is not None and e.mode not in {FILE, EXECUTABLE} for e in (entry, old)):
            return Match(
                path, Agreement.UNKNOWN, "a link, or no longer one: agents' tools name none"
            )
        if entry is not None and old is not None and entry.oid == old.oid:
            return Match(path, Agreement.UNKNOWN, "only its mode changed")
        now, then = self._state(self.tree, entry), self._state(self.parent, old)
        if entry is not None and self.contents[now].startswith(_LFS):
            return Match(
                path, Agreement.UNKNOWN, "the commit holds a pointer to the file (Git LFS)"
            )
        nodes = self._since(path, then, now)
        intent = next((n.intent for n in reversed(nodes) if n.intent is not None), None)
        if intent is None:
            return self._without_intent(path, entry, now)
        return self._with_intent(path, nodes, then, now, intent)

    def _without_intent(self, path: bytes, entry: Entry | None, now: str) -> Match:
        origin = self.moved.get(self._fold(now)) if entry is not None else None
        if origin is not None and self.parent and self.parent.get(path) is None:
            name = origin.decode("utf-8", "backslashreplace")
            return Match(path, Agreement.MATCH, f"it holds what was meant for {name}, now here")
        return Match(path, Agreement.UNKNOWN, "no hook reported this change")

    def _with_intent(
        self, path: bytes, nodes: list[_Node], then: str, now: str, intent: Intent
    ) -> Match:
        foreign, unknown = self._transitions(nodes, then)
        parts = [pair for pair in foreign if self._survives(*pair, now)]
        if parts and len(self.tree.parents) < 2:  # noqa: PLR2004 - a merge
            diff = tuple(line for pair in parts for line in self._diff(path, *pair))
            return Match(path, Agreement.DIFFERS, _why(parts), diff, intent)
        if parts:
            unknown = "a merge brought other changes of it"
        if unknown:
            return Match(path, Agreement.UNKNOWN, unknown, intent=intent)
        return Match(path, Agreement.MATCH, f"as {_tool_name(intent)} meant it", intent=intent)

    def _transitions(
        self, nodes: Sequence[_Node], then: str
    ) -> tuple[list[tuple[_Node, _Node]], str]:
        """Return the foreign changes in a history, and why a part of it is unknown, or nothing."""
        foreign: list[tuple[_Node, _Node]] = []
        unknown = ""
        first = nodes[0]
        names_all = first.intent is not None and first.intent.whole
        if not names_all and not self._same(first.state, then):
            unknown = "it had changed before the first edit that a hook reported"
        for node in nodes:
            if node.intent is not None and node.state is None:
                unknown = f"the hook could not tell what {_tool_name(node.intent)} meant"
        for one, other in itertools.pairwise(nodes):
            if other.by == "agent" or self._same(one.state, other.state):
                continue
            if one.state is None or other.state is None:
                unknown = unknown or "some state of it is not known"
            elif other.by == "gap" and self._in_shell(one.number, other.number):
                unknown = "it changed while a shell command of the agent ran"
            elif other.by == "gap" and self._committed_since(one, other):
                unknown = "another commit was made since the last edit that a hook reported"
            else:
                foreign.append((one, other))
        return foreign, unknown

    def _since(self, path: bytes, then: str, now: str) -> list[_Node]:
        """Return the part of a path's history that made this commit of it, the commit included.

        It begins where the path was last as in the parent, or where the agent last named every
        byte; it ends where the path was last as in the commit.
        """
        nodes = self._nodes(path)
        same = [number for number, node in enumerate(nodes) if self._same(node.state, now)]
        last = same[-1] + 1 if same else 0
        undone = any(self._same(node.state, then) for node in nodes[last:])
        if not undone and any(node.by == "agent" for node in nodes[:last]):
            nodes = nodes[:last]
        else:
            # Staged by the very commit: only its own hooks can have changed it since.
            staged = bool(nodes) and self._is_own(self.events[nodes[-1].number])
            nodes.append(_Node(len(self.events), now, "git hooks" if staged else "gap"))
        begin = 0
        for number, node in enumerate(nodes):
            names_all = node.intent is not None and node.intent.whole and node.state is not None
            if names_all or (number < len(nodes) - 1 and self._same(node.state, then)):
                begin = number
        return nodes[begin:]

    def _is_own(self, event: Event) -> bool:
        """Return whether git's hooks recorded an event while they made this very commit."""
        return isinstance(event, Staged) and event.git == self.git

    def _nodes(self, path: bytes) -> list[_Node]:
        nodes: list[_Node] = []
        before: dict[tuple[int, int], Staged] = {}
        for number in self.paths.get(path, ()):
            event = self.events[number]
            if isinstance(event, Intent):
                nodes.append(_Node(number, event.before, "gap"))
                nodes.append(_Node(number, event.intended, "agent", event))
            elif isinstance(event, Shell):
                nodes.append(_Node(number, event.seen[path], "gap"))
            elif isinstance(event, Staged) and event.after:
                nodes += _fixed(number, before.get(event.git), event, path, own=self._is_own(event))
            elif isinstance(event, Staged):
                before[event.git] = event
                nodes = self._staged(nodes, _Node(number, self._told(event, path), "gap"))
        return [node for node in nodes if node.intent is not None or node.state is not None]

    def _told(self, event: Staged, path: bytes) -> State:
        """Return what a commit's hook tells of a path: of this commit the index, else the file."""
        return (event.index if self._is_own(event) else event.files).get(path)

    def _staged(self, nodes: list[_Node], node: _Node) -> list[_Node]:
        """Add what this commit staged: where that is an earlier state, later ones are not in it."""
        if self._is_own(self.events[node.number]):
            for number in range(len(nodes) - 1, -1, -1):
                if self._same(nodes[number].state, node.state):
                    return [*nodes[: number + 1], node]
        return [*nodes, node]

    def _in_shell(self, first: int, last: int) -> bool:
        """Return whether a shell command ran at some time between two events."""
        return any(begin < last and end > first for begin, end in self.spans)

    def _committed_since(self, one: _Node, other: _Node) -> bool:
        """Return whether nothing is known of a path between another commit and this one.

        Then this one is not what the agent's tools were seen to work on, but somebody's after it.
        """
        told = self.events[other.number] if other.number < len(self.events) else None
        if told is not None and not isinstance(told, Staged):
            # A tool of the agent found it so: the change came while the agent was at it.
            return False
        between = self.events[one.number + 1 : other.number]
        return any(isinstance(event, Committed) for event in between)

    def _state(self, tree: CommittedTree | None, entry: Entry | None) -> str:
        if entry is None or tree is None:
            return ABSENT
        content = tree.read(entry)
        state = hashlib.sha256(content).hexdigest()
        self.contents[state] = content
        return state

    def _content(self, state: str) -> bytes | None:
        found = self.contents.get(state)
        if found is None and state != ABSENT:
            found = self.log.content(state)
            if found is not None:
                self.contents[state] = found
        return found

    def _same(self, one: State, other: State) -> bool:
        if one is None or other is None:
            return False
        return one == other or self._fold(one) == self._fold(other)

    def _fold(self, state: str) -> str:
        """Return a hash that two contents share when they differ in line ends or encoding alone."""
        if state not in self.folded:
            content = self._content(state)
            folded = state if content is None else hashlib.sha256(_folded(content)).hexdigest()
            self.folded[state] = folded
        return self.folded[state]

    def _survives(self, one: _Node, other: _Node, now: str) -> bool:
        """Return whether anything of a change is in the commit; where that is not known, it is."""
        if ABSENT in {one.state, other.state}:
            return self._same(other.state, now)
        contents = [self._content(state) for state in (one.state or "", other.state or "", now)]
        if now == ABSENT:
            return False
        if any(content is None for content in contents):
            return True
        before, after, held = (Counter(_folded(c or b"").split(b"\n")) for c in contents)
        added, removed = after - before, before - after
        if added:
            return any(held[line] > before[line] for line in added)
        if removed:
            return any(held[line] < before[line] for line in removed)
        return not self._same(one.state, now)

    def _diff(self, path: bytes, one: _Node, other: _Node) -> tuple[str, ...]:
        contents = [
            b"" if state == ABSENT else self._content(state or "")
            for state in (one.state, other.state)
        ]
        name = path.decode("utf-8", "backslashreplace")
        if contents[0] is None or contents[1] is None:
            return (f"{name}: the contents were not kept",)
        return _diff(name, contents[0], contents[1])


def _paths_of(event: Event) -> Iterable[bytes]:
    if isinstance(event, Intent):
        return (event.path,)
    if isinstance(event, Shell):
        return event.seen
    return dict.fromkeys([*event.index, *event.files]) if isinstance(event, Staged) else ()


def _fixed(
    number: int, before: Staged | None, after: Staged, path: bytes, *, own: bool
) -> Iterator[_Node]:
    """Yield what git's hooks did to a path: in this commit's index, or in the workspace."""
    if before is None:
        return
    pairs = [(before.files, after.files)]
    if own:
        pairs.insert(0, (before.index, after.index))
    for one, other in pairs:
        if path in one and path in other and one[path] != other[path]:
            yield _Node(number, one[path], "gap")
            yield _Node(number, other[path], "git hooks")
            return


def _spans(events: Sequence[Event]) -> list[tuple[int, int]]:
    """Return from which event to which each shell command ran; a lost use at one event alone."""
    spans: list[tuple[int, int]] = []
    running: dict[tuple[str, str], int] = {}
    for number, event in enumerate(events):
        if not isinstance(event, Shell):
            continue
        use = (event.agent_session, event.tool_use)
        if event.begins and event.ends:
            # It may have ended at any time since the event before.
            spans.append((number - 1, number + 1))
        elif event.begins:
            running[use] = number
        else:
            begin = running.pop(use, None)
            end = len(events) + 1 if event.background else number
            # An end without a beginning: the hook before it did not fire.
            spans.append((number - 1 if begin is None else begin, end))
    for begin in running.values():
        event = events[begin]
        deadline = float("inf") if _is_background(event) else event.at + LONGEST_SHELL
        later = (n for n in range(begin, len(events)) if events[n].at > deadline)
        spans.append((begin, next(later, len(events) + 1)))
    return spans


def _is_background(event: Event) -> bool:
    return isinstance(event, Shell) and event.background


def _folded(content: bytes) -> bytes:
    if content.startswith(_UTF16):
        try:
            content = content.decode("utf-16").encode("utf-8")
        except ValueError:
            return content
    return content.replace(b"\r\n", b"\n")


def _tool_name(intent: Intent) -> str:
    return f"{intent.agent or 'an agent'}'s {intent.tool or 'tool'}"


def _why(parts: Sequence[tuple[_Node, _Node]]) -> str:
    if all(other.by == "git hooks" for _, other in parts):
        return "a git hook changed it in the commit's own making"
    return "something else than the agent's tools changed it before the commit"


def _diff(name: str, before: bytes, after: bytes) -> tuple[str, ...]:
    import difflib

    if b"\0" in before[:8192] or b"\0" in after[:8192]:
        return (f"{name}: binary, {len(before)} bytes meant, {len(after)} bytes found",)
    old, new = (
        _folded(content).decode("utf-8", "backslashreplace").split("\n")
        for content in (before, after)
    )
    lines = list(
        difflib.unified_diff(old, new, f"{name} (meant)", f"{name} (foreign)", lineterm="", n=1)
    )
    if len(lines) > DIFF_LINES:
        return (*lines[: DIFF_LINES - 1], f"… {len(lines) - DIFF_LINES + 1} more lines")
    return tuple(lines)
