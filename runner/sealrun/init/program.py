"""The run command in a loop's instructions, with ``sealrun run --`` in front of it.

Rules that this module keeps:

- Pure, on bytes: nothing but the words ``sealrun run -- `` is added, nothing is taken away; line
  endings and encoding stay what they are.
- Only a command whose output goes somewhere is a run of the loop; ``uv run train.py`` in a sentence
  says how a human starts it.
- Preparing data is no experiment, and a command that has the words already is left alone.
"""

from __future__ import annotations

import re

WORDS = b"sealrun run -- "
#: A Python program, started by whatever starts one, whose output is sent on. Bounded, so that a
#: hostile file costs no more than its length.
_RUN = re.compile(
    rb"(?<![\w./-])(?:uv run|python3?|torchrun|accelerate launch)[ \t]"
    rb"[^`\n\r|>;&]{0,200}?(?:\.py\b|(?<=[ \t])-m[ \t])[^`\n\r|>;&]{0,200}?"
    rb"(?:[ \t]*(?:[12&]?>>?|\|)[ \t]*[^`\n\r]{1,200}?)(?=[`\n\r]|$|[ \t]\()"
)
_PREPARES = re.compile(rb"\b(?:prepare|download|setup|test_\w+)\.py\b")


def run_commands(text: bytes) -> tuple[bytes, ...]:
    """Return the loop's run commands as they stand in its instructions, each once."""
    return tuple(dict.fromkeys(match[0] for match in _runs(text)))


def with_sealrun(text: bytes) -> bytes:
    """Return the instructions with ``sealrun run -- `` before each run command."""
    made, last = b"", 0
    for match in _runs(text):
        made += text[last : match.start()] + WORDS
        last = match.start()
    return made + text[last:]


def _runs(text: bytes) -> list[re.Match[bytes]]:
    return [
        match
        for match in _RUN.finditer(text)
        if not _PREPARES.search(match[0]) and not text[: match.start()].endswith(WORDS)
    ]
