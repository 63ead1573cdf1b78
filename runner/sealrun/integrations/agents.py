"""Whose hooks there are.

Rule: names only, so that a command's options can be shown without loading what installs them.
"""

from __future__ import annotations

from enum import StrEnum


class Agent(StrEnum):
    """Who is given hooks."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    GIT = "git"
