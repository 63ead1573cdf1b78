"""What a Codex hook says: from its payload, and the files before the tool ran, to intents.

Facts from Codex's hooks reference (PreToolUse, PostToolUse: session_id, cwd, tool_name, tool_use_id,
tool_input; the tools ``apply_patch`` and ``Bash``; the whole patch in ``tool_input.command``). A
tool that failed or was denied has no PostToolUse, and in some versions hooks do not fire at all
(openai/codex#26729, #26733).

Rules that this module keeps:

- A patch is applied to the files as they are before the tool runs; afterwards a file is never read.
- What was computed before counts only when the tool's end is reported too.
- Of a tool whose beginning was not reported, only whole new files are known; the rest is unknown.
"""

from __future__ import annotations

from sealrun.integrations import patch
from sealrun.ownership.intentlog import ABSENT

TYPE_CHECKING = False  # typing's own costs every hook 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    #: Bytes of a file; ``ABSENT``; None where unknown.
    State = bytes | str | None

AGENT = "codex"
PATCH_TOOL = "apply_patch"
#: Files that one patch may name.
_MOST_FILES = 64


class Change:
    """One file that a patch changes.

    Attributes:
        path: as the patch names it.
        before: the bytes before, ``ABSENT`` where there was no file, None where unknown.
        intended: what the patch means, likewise.
        whole: the patch names every byte.
    """

    __slots__ = ("before", "intended", "path", "whole")

    def __init__(self, path: str, before: State, intended: State, *, whole: bool) -> None:
        self.path = path
        self.before = before
        self.intended = intended
        self.whole = whole


def is_opaque(tool: str) -> bool:
    """Return whether a tool may write files without saying so: the shell, and MCP servers' tools."""
    return tool in {"Bash", "shell", "exec_command", "local_shell"} or tool.startswith("mcp__")


def changes_of(given: dict[str, Any], read: Callable[[str], State]) -> list[Change] | None:
    """Return what a patch means for each file.

    Args:
        given: ``tool_input``.
        read: returns the state of a file as it is before the tool runs; None where that is not
            known, or the tool has run already.

    Returns:
        None where the payload holds no patch that can be read.
    """
    text = given.get("command", given.get("input"))
    if not isinstance(text, str):
        return None
    try:
        sections = patch.parse(text)
    except patch.PatchError:
        return None
    if len(sections) > _MOST_FILES:
        return None
    # A patch may name one file twice: the second time it means its own first result.
    known: dict[str, State] = {}
    found: list[Change] = []
    for section in sections:
        for path in filter(None, (section.path, section.move)):
            if path not in known:
                known[path] = read(path)
        for change in _changes(section, known):
            known[change.path] = change.intended
            found.append(change)
    return found


def _changes(section: patch.Section, known: dict[str, State]) -> list[Change]:
    before = known[section.path]
    if section.action == "add":
        content = section.content.encode("utf-8", "replace")
        return [Change(section.path, before, content, whole=True)]
    if section.action == "delete":
        return [Change(section.path, before, ABSENT, whole=True)]
    after: State = None
    if isinstance(before, bytes):
        try:
            after = patch.apply(section.hunks, before.decode("utf-8")).encode("utf-8")
        except ValueError:
            # The tool refuses such a patch, or such a file, as well.
            after = None
    if section.move is None or section.move == section.path:
        return [Change(section.path, before, after, whole=False)]
    return [
        Change(section.path, before, ABSENT, whole=True),
        Change(section.move, known[section.move], after, whole=False),
    ]
