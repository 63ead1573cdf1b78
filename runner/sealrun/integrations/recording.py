"""From one hook's payload to the log of intents: what runs inside an agent's tool call.

Rules that this module keeps:

- Intended bytes come from the payload; a file is read only *before* a tool runs (Codex's patches),
  or as an observation that says so (``seen``: what files looked like when a shell command began and
  ended, so that a later reader can tell the shell's changes from a formatter's).
- A payload that is missing or malformed records nothing. One that is too large to read leaves a
  mark, so that what it wrote is unknown and not taken for a stranger's.
- Everything is bounded: the payload, the files and bytes that are read, the work of a patch.
- A repository that sealrun does not know is left alone.
"""
# pathlib costs every hook 4 ms:
# ruff: noqa: PTH109, PTH118

from __future__ import annotations

import json
import os

from sealrun.integrations import claude_code, codex, place
from sealrun.ownership.intentlog import (
    ABSENT,
    CONTENT_LIMIT,
    Journal,
    directory_of,
    last_records,
    read_file,
)

TYPE_CHECKING = False  # typing's own costs every hook 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

#: Bytes of a payload that are parsed.
PAYLOAD_LIMIT = 8 << 20
#: Bytes of the log in which recently edited paths are looked for, and how many are observed.
_RECENT = 128 << 10
_MOST_SEEN = 32
#: Bytes of one file, and of all, that are read to observe them.
_SEEN_LIMIT = 4 << 20
#: Characters of a tool's or session's id, and of a path, that are taken.
_ID_LIMIT = 200
_PATH_LIMIT = 4096


def record(arguments: list[str]) -> None:
    """Record what the calling hook says.

    Args:
        arguments: who calls (``claude-code``, ``codex`` or ``git``), the state root, and what
            that caller adds.

    Raises:
        Exception: anything; the caller is silent about it.
    """
    who, state = arguments[0], arguments[1]
    if who == "git":
        from sealrun.integrations import git

        git.record(state, arguments[2:])
        return
    text = _payload()
    if text is None:
        _Recording(state, who, {}).lost()
        return
    payload = json.loads(text)
    if not isinstance(payload, dict):
        return
    recording = _Recording(state, who, payload)
    if who == claude_code.AGENT:
        recording.claude_code()
    elif who == codex.AGENT:
        recording.codex()


def _payload() -> bytes | None:
    """Return the payload; None when it is too large, and then read to its end."""
    parts: list[bytes] = []
    size = 0
    while part := os.read(0, 1 << 20):
        size += len(part)
        if size <= PAYLOAD_LIMIT:
            parts.append(part)
    return b"".join(parts) if size <= PAYLOAD_LIMIT else None


class _Recording:
    """Writes the records of one payload."""

    def __init__(self, state: str, agent: str, payload: dict[str, Any]) -> None:
        self.state = state
        self.payload = payload
        self.event = _text(payload.get("hook_event_name"))
        self.tool = _text(payload.get("tool_name"))
        self.given = _mapping(payload.get("tool_input"))
        self.base = _text(payload.get("cwd"), _PATH_LIMIT) or os.getcwd()
        self.about = {
            "agent": agent,
            "tool": self.tool,
            "use": _text(payload.get("tool_use_id")),
            "session": _text(payload.get("session_id")),
        }

    def claude_code(self) -> None:
        if claude_code.is_opaque(self.tool):
            self.shell(begins=self.event == "PreToolUse")
            return
        if self.event != "PostToolUse" or self.tool not in claude_code.WRITES + claude_code.SILENT:
            return
        response = _mapping(self.payload.get("tool_response"))
        edit = claude_code.edit_of(self.tool, self.given, response)
        if edit is None:
            return
        before = ABSENT if edit.made else _encoded(edit.before)
        self.intents([(edit.path, before, _encoded(edit.intended), edit.whole)], "intent")

    def codex(self) -> None:
        if codex.is_opaque(self.tool):
            self.shell(begins=self.event == "PreToolUse")
            return
        if self.tool != codex.PATCH_TOOL:
            return
        begins = self.event == "PreToolUse"
        if not begins and self.event != "PostToolUse":
            return
        changes = codex.changes_of(self.given, self._read if begins else _not_read)
        if changes is None:
            if not begins:
                self.lost()
            return
        # The reader takes a plan for what it says once the tool's end is on record as well.
        rows = [(change.path, change.before, change.intended, change.whole) for change in changes]
        self.intents(rows, "plan" if begins else "done")

    def _read(self, path: str) -> bytes | str | None:
        full = os.path.realpath(os.path.join(self.base, path))
        if not os.path.lexists(full):
            return ABSENT
        content = read_file(full, CONTENT_LIMIT + 1)
        return None if content is None or len(content) > CONTENT_LIMIT else content

    def intents(
        self, rows: Iterable[tuple[str, bytes | str | None, bytes | str | None, bool]], kind: str
    ) -> None:
        journals: dict[str, Journal] = {}
        for path, before, intended, whole in rows:
            found = place.locate(path, self.base)
            if found is None:
                continue
            workspace, repository, inside = found
            directory = directory_of(self.state, repository)
            journal = journals.get(directory)
            if journal is None:
                journal = journals[directory] = Journal(directory)
            journal.append(
                {
                    "kind": kind,
                    **self.about,
                    "workspace": workspace,
                    "path": inside,
                    "before": _kept(journal, before),
                    "intended": _kept(journal, intended),
                    "whole": whole,
                }
            )

    def shell(self, *, begins: bool) -> None:
        """Record that a tool begins or ends that may write anything, and what files look like."""
        background = self.given.get("run_in_background") is True
        for workspace, repository in self._workspaces():
            directory = directory_of(self.state, repository)
            journal = Journal(directory)
            journal.append(
                {
                    "kind": "shell",
                    **self.about,
                    "workspace": workspace,
                    "begins": begins,
                    "background": background,
                    "seen": observe(journal, directory, workspace),
                }
            )

    def lost(self) -> None:
        """Record that something was done which nobody could read."""
        for workspace, repository in self._workspaces():
            journal = Journal(directory_of(self.state, repository))
            journal.append({"kind": "lost", **self.about, "workspace": workspace})

    def _workspaces(self) -> set[tuple[str, str]]:
        asked = (
            self.base,
            os.environ.get("CLAUDE_PROJECT_DIR"),
            _text(self.given.get("workdir"), _PATH_LIMIT),
        )
        found = (
            place.workspace_around(os.path.realpath(os.path.join(self.base, directory)))
            for directory in asked
            if directory
        )
        return {one for one in found if one is not None}


def observe(
    journal: Journal, directory: str, workspace: str, paths: Iterable[str] | None = None
) -> dict[str, str]:
    """Return the state of files: by default of those that were edited last.

    A content that is new to the log is kept: it may be the only copy of what a stranger wrote.

    Args:
        directory: the log's directory.
        paths: below the workspace.
    """
    if paths is None:
        paths = _edited_last(directory, workspace)
    left = _SEEN_LIMIT
    seen: dict[str, str] = {}
    for path in paths:
        full = os.path.join(workspace, path)
        if os.path.realpath(full) != full:
            # A link now, or below one: not the file that was edited.
            continue
        found = read_file(full, min(left, CONTENT_LIMIT) + 1)
        if found is None:
            if not os.path.lexists(full):
                seen[path] = ABSENT
            continue
        left -= len(found)
        if len(found) > CONTENT_LIMIT or left < 0:
            break
        seen[path] = journal.keep(found)
    return seen


def _edited_last(directory: str, workspace: str) -> list[str]:
    paths: dict[str, None] = {}
    for entry in reversed(last_records(directory, _RECENT)):
        path = entry.get("path")
        if entry.get("workspace") == workspace and isinstance(path, str):
            paths[path] = None
        if len(paths) >= _MOST_SEEN:
            break
    return list(paths)


def _not_read(path: str) -> None:
    """Stand for the files once the tool has run: what they hold now is nobody's intent."""
    del path


def _text(value: object, limit: int = _ID_LIMIT) -> str:
    return value if isinstance(value, str) and len(value) <= limit else ""


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _encoded(text: str | None) -> bytes | None:
    """Return a text as an editor written in JavaScript writes it: half a surrogate pair is lost."""
    if text is None:
        return None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return whole.encode("utf-8")


def _kept(journal: Journal, state: bytes | str | None) -> str | None:
    return journal.keep(state) if isinstance(state, bytes) else state
