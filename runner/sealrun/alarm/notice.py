"""What somebody is told, as a record, and the bounds that keep it short.

Rules that this module keeps:

- No IO. What a notice holds is printable and bounded from the moment it is made: names of files and
  programs were chosen by others.
- A notice says enough to act on without a look at the machine, and nothing secret: of a command
  line only the program's name, never its arguments.
- A document that is not one of ours is no notice (None), never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: Characters of one name, of a line, and of a whole text.
_NAME, _LINE, _TEXT = 200, 300, 2000
#: Alerts and paths listed; more are counted in ``more``.
LISTED = 20


class Kind(StrEnum):
    """What a notice is about, the gravest first."""

    PAGE = "page"
    ABORTED = "aborted"
    FAULT = "fault"
    REFUSED = "refused"
    FLAGGED = "flagged"
    ALERT = "alert"
    TEST = "test"


def visible(text: str, limit: int = _NAME) -> str:
    r"""Return text on one line of at most ``limit`` characters, what a screen would obey escaped.

    Controls, surrogates, line ends and bidirectional overrides become ``\x1b`` and the like.
    """
    # No character grows by escaping to less than itself, so a huge name is cut before it is read.
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing that somebody is told.

    Attributes:
        id: ULID; the same in every repetition, so that a receiver can tell them.
        kind: what it is about.
        at: when it happened, in seconds since 1970.
        title: a few words, of ours but for the repository's name.
        text: all that matters, in a few lines, with what to do next.
        repository: name of the workspace's directory.
        host: name of the machine.
        run: id of the run.
        commit: full id.
        alerts: ids of alerts, at most ``LISTED``.
        paths: what was touched, at most ``LISTED``.
        more: how many paths are not listed.
        writer: program and pid of who did it, with its class; None where nobody can be named.
        harmless: the run's number still belongs to its commit.
        quiet: harmless, and nobody foreign is known to have done it: an agent's own edit, most
            often, of which only who asks for it hears.
    """

    id: str
    kind: Kind
    at: float
    title: str
    text: str
    repository: str = ""
    host: str = ""
    run: str | None = None
    commit: str | None = None
    alerts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    more: int = 0
    writer: str | None = None
    harmless: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        lines = [visible(line, _LINE) for line in self.text[: 4 * _TEXT].split("\n")]
        clean: dict[str, object] = {
            "title": visible(self.title),
            "text": "\n".join(lines)[:_TEXT],
            "repository": visible(self.repository),
            "host": visible(self.host),
            "run": None if self.run is None else visible(self.run),
            "commit": None if self.commit is None else visible(self.commit),
            "alerts": tuple(visible(one) for one in self.alerts[:LISTED]),
            "paths": tuple(visible(path, _LINE) for path in self.paths[:LISTED]),
            "more": self.more + max(len(self.paths) - LISTED, 0),
            "writer": None if self.writer is None else visible(self.writer),
        }
        for name, value in clean.items():
            object.__setattr__(self, name, value)


def document(notice: Notice) -> dict[str, Any]:
    """Return a notice as JSON; its keys are those that receivers see, and stay."""
    return {
        "id": notice.id,
        "kind": notice.kind.value,
        "at": notice.at,
        "title": notice.title,
        "text": notice.text,
        "repository": notice.repository,
        "host": notice.host,
        "run": notice.run,
        "commit": notice.commit,
        "alerts": list(notice.alerts),
        "paths": list(notice.paths),
        "more": notice.more,
        "writer": notice.writer,
        "harmless": notice.harmless,
        "quiet": notice.quiet,
    }


def of_document(found: object) -> Notice | None:
    """Return the notice that ``document`` made; None where it made nothing like it."""
    if not isinstance(found, dict):
        return None
    try:
        return Notice(
            id=str(found["id"]),
            kind=Kind(found["kind"]),
            at=float(found["at"]),
            title=str(found["title"]),
            text=str(found["text"]),
            repository=str(found["repository"]),
            host=str(found["host"]),
            run=_optional(found["run"]),
            commit=_optional(found["commit"]),
            alerts=tuple(map(str, found["alerts"])),
            paths=tuple(map(str, found["paths"])),
            more=int(found["more"]),
            writer=_optional(found["writer"]),
            harmless=bool(found["harmless"]),
            quiet=bool(found["quiet"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _optional(value: object) -> str | None:
    return None if value is None else str(value)
