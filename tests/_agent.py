"""An agent for tests: edits as a coding agent's tools do, and calls the hooks of its settings.

Run as a program it takes one move a line on its standard input and answers each with one line, so
that a test can hold it at any point:

    edit PATH OLD NEW      the Edit tool, with the hooks for it, all of them at once
    sh COMMAND             a shell command, without hooks
    commit MESSAGE         git commit -a
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

SETTINGS = (".claude/settings.json", ".claude/settings.local.json")


def hooks(event: str, tool: str) -> list[str]:
    """Return the commands that the settings name for an event of a tool."""
    found: list[str] = []
    for name in SETTINGS:
        try:
            settings = json.loads(Path(name).read_text())
        except FileNotFoundError:
            continue
        for group in settings.get("hooks", {}).get(event, []):
            if tool in group.get("matcher", tool).split("|"):
                found += [handler["command"] for handler in group["hooks"]]
    return found


def call(event: str, tool: str, given: dict[str, Any], response: dict[str, Any] | None) -> None:
    """Run the hooks of one event beside each other, as Claude Code does."""
    payload = {
        "session_id": "s",
        "transcript_path": "",
        "cwd": str(Path.cwd()),
        "permission_mode": "default",
        "hook_event_name": event,
        "tool_name": tool,
        "tool_input": given,
        "tool_use_id": uuid.uuid4().hex,
    } | ({} if response is None else {"tool_response": response})
    running = [
        subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, text=True)
        for command in hooks(event, tool)
    ]
    for process in running:
        process.communicate(json.dumps(payload))


def edit(path: str, old: str, new: str) -> None:
    """Replace one text in a file."""
    file = Path.cwd() / path
    given = {"file_path": str(file), "old_string": old, "new_string": new, "replace_all": False}
    call("PreToolUse", "Edit", given, None)
    original = file.read_text()
    if original.count(old) != 1:
        raise SystemExit(f"{old!r} stands in {path} {original.count(old)} times")
    file.write_text(original.replace(old, new))
    call("PostToolUse", "Edit", given, {"filePath": str(file), "originalFile": original})


def main() -> None:
    """Make the moves that come in until there are no more."""
    for line in sys.stdin:
        move, *words = json.loads(line)
        if move == "edit":
            edit(*words)
        elif move == "commit":
            subprocess.run(["git", "commit", "-q", "-a", "-m", words[0]], check=True)
        else:
            subprocess.run(["sh", "-ec", words[0]], check=True)
        print("done", os.getpid(), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
