"""What a Claude Code hook says: from its payload to records of intent.

Facts from Claude Code's hooks reference (PreToolUse, PostToolUse, PostToolUseFailure: session_id,
cwd, tool_name, tool_use_id, tool_input, tool_response) and, for ``originalFile``,
``structuredPatch`` and ``userModified`` of an edit's response, which the reference does not list,
from issue anthropics/claude-code#3671.

Rules that this module keeps:

- Pure, and from the payload alone: a formatter races us to the file.
- What the payload does not determine is unknown (None), never guessed: an edit without its original,
  an original that does not hold the old string once, a change that the human made in the dialogue.
- The two statements of one payload, replacement and ``structuredPatch``, must agree on the number of
  lines; where they do not, the intent is unknown.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs every hook 3 ms
if TYPE_CHECKING:
    from typing import Any

AGENT = "claude-code"
#: Tools that write files and say what.
WRITES = ("Write", "Edit", "MultiEdit")
#: Tools that change files and do not say what they become.
SILENT = ("NotebookEdit",)
#: Readings of one edit that are followed at once; with more the intent is unknown anyway.
_MOST_FORMS = 8


class Edit:
    """One file that a tool changed.

    Attributes:
        path: as the payload names it.
        before: the text before; None where there was no file or where it is unknown.
        intended: the text that the agent meant; None where unknown.
        whole: the agent named every byte, not a part.
        made: there was no file before.
    """

    __slots__ = ("before", "intended", "made", "path", "whole")

    def __init__(
        self,
        path: str,
        before: str | None,
        intended: str | None,
        *,
        whole: bool = False,
        made: bool = False,
    ) -> None:
        self.path = path
        self.before = before
        self.intended = intended
        self.whole = whole
        self.made = made


def is_opaque(tool: str) -> bool:
    """Return whether a tool may write files without saying so: the shell, and MCP servers' tools."""
    return tool == "Bash" or tool.startswith("mcp__")


def edit_of(tool: str, given: dict[str, Any], response: dict[str, Any]) -> Edit | None:
    """Return what a tool that writes a file did; None where the payload names no file.

    Args:
        tool: its name.
        given: ``tool_input``.
        response: ``tool_response``.
    """
    path = given.get("notebook_path" if tool in SILENT else "file_path")
    if not isinstance(path, str) or not path:
        return None
    original = response.get("originalFile")
    before = original if isinstance(original, str) else None
    created = tool == "Write" and response.get("type") == "create"
    if response.get("userModified") is True:
        return Edit(path, before, None, made=created)
    if tool == "Write":
        content = given.get("content")
        known = content if isinstance(content, str) else None
        return Edit(path, before, known, whole=known is not None, made=created)
    if tool == "Edit":
        return _edited(path, before, [given], response)
    if tool == "MultiEdit":
        edits = given.get("edits")
        steps = [e for e in edits if isinstance(e, dict)] if isinstance(edits, list) else []
        complete = isinstance(edits, list) and len(steps) == len(edits)
        return _edited(path, before, steps if complete else [], response)
    return Edit(path, before, None)


def _edited(
    path: str, before: str | None, steps: list[dict[str, Any]], response: dict[str, Any]
) -> Edit:
    # An edit with nothing to replace makes the file.
    makes = bool(steps) and steps[0].get("old_string") == "" and not before
    text = "" if makes else before
    forms = [text] if text is not None and steps else []
    for step in steps:
        forms = [after for form in forms for after in _replaced(form, step)][:_MOST_FORMS]
    grown = _lines_added(response)
    if grown is not None and before is not None:
        forms = [form for form in forms if _lines(form) - _lines(before) == grown]
    known = forms[0] if len(forms) == 1 else None
    return Edit(
        path, before, known, whole=makes and known is not None, made=makes and before is None
    )


def _lines(text: str) -> int:
    return text.count("\n") + (text != "" and not text.endswith("\n"))


def _replaced(text: str, step: dict[str, Any]) -> list[str]:
    """Return the texts that one replacement may have made: none, one, or two."""
    old, new = step.get("old_string"), step.get("new_string")
    if not isinstance(old, str) or not isinstance(new, str):
        return []
    if old == "":
        return [new] if text == "" else []
    if old not in text and "\r\n" in text:
        # The agent sees line feeds alone; line ends are not judged (see ``intents``).
        text, old, new = (t.replace("\r\n", "\n") for t in (text, old, new))
    everywhere = step.get("replace_all") is True
    if text.count(old) != 1 and not (everywhere and old in text):
        return []
    found = [text.replace(old, new)]
    if new == "" and not old.endswith("\n") and old + "\n" in text:
        # Deleting a line may take its line feed along; the payload's patch tells which it was.
        found.append(text.replace(old + "\n", ""))
    return found


def _lines_added(response: dict[str, Any]) -> int | None:
    """Return by how many lines the file grew, by the payload's own patch; None where unsaid."""
    hunks = response.get("structuredPatch")
    if not isinstance(hunks, list) or not hunks:
        return None
    total = 0
    for hunk in hunks:
        lines = hunk.get("lines") if isinstance(hunk, dict) else None
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            return None
        total += sum(line.startswith("+") for line in lines)
        total -= sum(line.startswith("-") for line in lines)
    return total
