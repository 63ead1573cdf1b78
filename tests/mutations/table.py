"""Writes the table of techniques in the manual: ``python tests/mutations/table.py``.

Rule that this module keeps: the page says what the corpus states, and nothing that differs from run to
run. The tests say whether it is so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutations.corpus import BY_FAMILY, TECHNIQUES
from mutations.technique import By, Unnamed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mutations.technique import Technique

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "techniques.md"
_EVENTS = (By.EVENT, By.REWRITE)
_HEAD = """# Techniques

Ways of changing a workspace behind a loop's back, each tried by the tests with a real second process under a
real guard (`tests/mutations/`). A page made by `python tests/mutations/table.py`; a test keeps it up to date.

There are {techniques} techniques; {events} raise an event, and for {named} of them the writer must be named. In
the tests every detector of a row has to find it, each time, and at least 95 of 100 writers have to be
named for certain; naming needs root, in the first pid namespace. Beside these, techniques are composed at random
from a seed: a writer, a path, a moment and a way of hiding.

*Found by* names what compares bytes or git's state, *event* says whether the kernel's events tell of it at once.
Where nobody is named, the reason stands below the table of its family.
"""


def page() -> str:
    """Return the whole page."""
    events = sum(one.by_event for one in TECHNIQUES)
    named = sum(isinstance(one.writer, str) for one in TECHNIQUES)
    head = _HEAD.format(techniques=len(TECHNIQUES), events=events, named=named)
    return head + "".join(_family(title, techniques) for title, techniques in BY_FAMILY.items())


def _family(title: str, techniques: Iterable[Technique]) -> str:
    reasons: dict[str, int] = {}
    rows = [_row(one, reasons) for one in techniques]
    lines = [
        "",
        f"## {title}",
        "",
        "| technique | found by | event | writer |",
        "|---|---|---|---|",
    ]
    notes = [f"{number}. {why}" for why, number in reasons.items()]
    return "\n".join([*lines, *rows, *(["", *notes] if notes else []), ""])


def _row(technique: Technique, reasons: dict[str, int]) -> str:
    found = ", ".join(by.value for by in technique.found if by not in _EVENTS)
    event = "yes" if technique.by_event else "no"
    if isinstance(technique.writer, Unnamed):
        number = reasons.setdefault(technique.writer.why, len(reasons) + 1)
        writer = f"not named ({number})"
    else:
        writer = f"`{technique.writer}`"
    return f"| {_cell(technique.name)} | {found or '-'} | {event} | {writer} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
