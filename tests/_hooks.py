"""A coding agent for tests: its tools do what Claude Code's and Codex's do, and run their hooks.

The hooks are the commands that ``sealrun hook install`` put into real settings files; all matching
ones are started at once, as the agents do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from _git import WHO
from sealrun.integrations.agents import Agent
from sealrun.integrations.install import install_settings
from sealrun.ownership import intents
from sealrun.state import Places, repository_id

if TYPE_CHECKING:
    from pathlib import Path

    from _git import Repo
    from sealrun.ownership.intents import Log, Match


def places_below(home: Path) -> Places:
    """Return the places of a test's own home."""
    return Places(home / "state", home / "data", home / "cache", home / "runtime")


@dataclass
class CodingAgent:
    """An agent in one repository; ``others`` are hooks of its user's, run beside ours."""

    repo: Repo
    places: Places
    kind: Agent = Agent.CLAUDE_CODE
    others: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    uses: int = 0
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def start(cls, repo: Repo, kind: Agent = Agent.CLAUDE_CODE) -> CodingAgent:
        """Install the hooks in a repository that sealrun knows, and start."""
        places = places_below(repo.path.parent / "home")
        repository_id(repo.find().common_dir)
        install_settings(kind, places, repo.path)
        exclude = repo.path / ".git/info/exclude"
        exclude.write_text(".claude/\n.codex/\n")
        return cls(repo, places, kind)

    @property
    def entries(self) -> list[tuple[str, str, str]]:
        """Event, matcher and command of every hook of the agent."""
        name = (
            ".claude/settings.local.json" if self.kind is Agent.CLAUDE_CODE else ".codex/hooks.json"
        )
        document = json.loads((self.repo.path / name).read_text())
        ours = [
            (event, group["matcher"], handler["command"])
            for event, groups in document["hooks"].items()
            for group in groups
            for handler in group["hooks"]
        ]
        return [*ours, *self.others]

    def fire(self, event: str, payload: dict[str, Any]) -> None:
        """Run every hook for an event at once, and wait for all."""
        payload = {
            "session_id": "a-session",
            "transcript_path": None,
            "cwd": str(self.repo.path),
            "permission_mode": "default",
            "hook_event_name": event,
            "tool_use_id": f"use-{self.uses}",
            **payload,
        }
        started = [
            subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=self.repo.path,
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for when, matcher, command in self.entries
            if when == event and re.search(matcher, payload["tool_name"])
        ]
        assert started, f"no hook for {event} of {payload['tool_name']}"
        for process in started:
            output, errors = process.communicate(json.dumps(payload).encode())
            assert (process.returncode, output, errors) == (0, b"", b"")

    def write(self, name: str, content: str) -> None:
        """Write a whole file, as the tool Write does."""
        file = self.repo.path / name
        original = file.read_text() if file.exists() else None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        self.uses += 1
        self.fire(
            "PostToolUse",
            {
                "tool_name": "Write",
                "tool_input": {"file_path": str(file), "content": content},
                "tool_response": {
                    "type": "create" if original is None else "update",
                    "filePath": str(file),
                    "content": content,
                    "structuredPatch": [],
                    "originalFile": original,
                },
            },
        )

    def edit(self, name: str, old: str, new: str, **more: Any) -> None:  # noqa: ANN401 - a payload
        """Replace a string in a file, as the tool Edit does; line ends are kept and not shown."""
        file = self.repo.path / name
        raw = file.read_bytes().decode()
        original = raw.replace("\r\n", "\n")
        assert original.count(old) == 1
        after = original.replace(old, new)
        file.write_bytes((after.replace("\n", "\r\n") if "\r\n" in raw else after).encode())
        self.uses += 1
        self.fire(
            "PostToolUse",
            {
                "tool_name": "Edit",
                "tool_input": {"file_path": str(file), "old_string": old, "new_string": new},
                "tool_response": {
                    "filePath": str(file),
                    "oldString": old,
                    "newString": new,
                    "originalFile": original,
                    "userModified": False,
                    "replaceAll": False,
                    **more,
                },
            },
        )

    def patch(self, text: str, apply: dict[str, str | None]) -> None:
        """Apply a patch, as Codex's tool does; ``apply`` says what each file becomes."""
        self.uses += 1
        payload = {"tool_name": "apply_patch", "tool_input": {"command": text}}
        self.fire("PreToolUse", payload)
        for name, content in apply.items():
            if content is None:
                (self.repo.path / name).unlink()
            else:
                self.repo.write({name: content})
        self.fire("PostToolUse", {**payload, "tool_response": "Success."})

    def shell(self, command: str, *, status: int | None = 0) -> str:
        """Run a shell command, as the tool Bash does; return its output."""
        self.uses += 1
        payload = {"tool_name": "Bash", "tool_input": {"command": command}}
        self.fire("PreToolUse", payload)
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.repo.path,
            env=os.environ | WHO | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if status is not None:
            assert done.returncode == status, done.stdout + done.stderr
        failed = done.returncode != 0 and self.kind is Agent.CLAUDE_CODE
        self.fire("PostToolUseFailure" if failed else "PostToolUse", payload)
        return done.stdout + done.stderr

    @property
    def log(self) -> Log:
        """What has been recorded of the repository."""
        repository = self.repo.find()
        known = repository_id(repository.common_dir, create=False)
        assert known is not None
        return intents.read(self.places.repository(known), repository.workspace)

    def compare(self, revision: str = "HEAD", *, timed: bool = True) -> dict[str, Match]:
        """Compare a commit with what was recorded."""
        tree = self.repo.tree(revision)
        parent = self.repo.tree(tree.parents[0], tree.spool) if tree.parents else None
        at = intents.commit_time(tree) if timed else None
        found = intents.compare(self.log, tree, parent, committed_at=at)
        return {os.fsdecode(match.path): match for match in found}
