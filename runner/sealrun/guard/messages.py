r"""What guard and client say to each other: one JSON object a line, versioned.

Rules that this module keeps:

- ``hello`` and ``stop`` never change their shape, so that any version can replace any other.
- Paths travel as UTF-8 with surrogate escapes, which JSON carries as ``\udcXX``: every byte string
  survives.
- What does not decode is a ``GuardError``; the other side is never trusted to be well-formed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun.errors import GuardError
from sealrun.guard.coverage import Coverage, Gap, Moment
from sealrun.guard.mutations import (
    Evidence,
    GitChange,
    GitState,
    Happened,
    Mutation,
    Report,
    Rewrite,
    Writer,
)
from sealrun.guard.processes import Process
from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Raised whenever a message changes its shape.
PROTOCOL = 4
#: Longest line that the guard accepts, in bytes.
LONGEST = 1 << 20

Document = dict[str, Any]


@dataclass(frozen=True)
class Armed:
    """One run that the guard watches for."""

    run_id: str
    since: Moment
    files: int
    mutations: int


@dataclass(frozen=True)
class GuardStatus:
    """What a guard says about itself.

    Attributes:
        instance: random; another instance means that the guard died in between.
        protocol: of its messages.
        version: of its sealrun.
        watching_since: since when every watch was in place without a break.
        watches: directories that are watched.
        directories: directories that have to be watched.
        kernel_watches: watches that the kernel lists for the guard's descriptor (proc(5)).
        coverage: of the time since ``watching_since``.
        standing: what it watches for between runs; None for nothing.
        idle_after: seconds without runs and calls after which the guard ends.
    """

    pid: int
    instance: str
    protocol: int
    version: str
    workspace: str
    watching_since: Moment
    watches: int
    directories: int
    kernel_watches: int
    coverage: Coverage
    armed: tuple[Armed, ...]
    standing: Armed | None
    remembered: int
    idle_after: float


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a message as one line."""
    return json.dumps(plain(document), ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Document:
    """Return the message in a line.

    Raises:
        GuardError: it is none.
    """
    try:
        document = json.loads(line)
    except ValueError as error:
        raise GuardError("the guard's socket carried something that is no message") from error
    if not isinstance(document, dict):
        raise GuardError("the guard's socket carried something that is no message")
    return document


def path_text(path: bytes) -> str:
    """Return a path as text that keeps every byte."""
    return path.decode("utf-8", "surrogateescape")


def path_bytes(text: str) -> bytes:
    """Return the path that ``path_text`` made text of."""
    return text.encode("utf-8", "surrogateescape")


def plain(value: Any) -> Any:  # noqa: ANN401 - JSON is any of these
    """Return what JSON can hold of a record: objects, lists, text; paths as ``path_text``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return path_text(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def moment(data: Document) -> Moment:
    """Return the moment in a message."""
    return Moment(float(data["monotonic"]), float(data["wall"]), str(data["boot"]))


def coverage(data: Document) -> Coverage:
    """Return the coverage in a message."""
    return Coverage(
        since=moment(data["since"]),
        until=moment(data["until"]),
        watching_since=moment(data["watching_since"]),
        directories=int(data["directories"]),
        watches=int(data["watches"]),
        hard_linked=int(data["hard_linked"]),
        gaps=tuple(
            Gap(
                Reason(gap["reason"]),
                str(gap["text"]),
                {str(k): int(v) for k, v in gap["numbers"].items()},
            )
            for gap in data["gaps"]
        ),
    )


def mutation(data: Document) -> Mutation:
    """Return the mutation in a message."""
    return Mutation(
        number=int(data["number"]),
        path=path_bytes(data["path"]),
        area=str(data["area"]),
        kind=str(data["kind"]),
        before=_text(data["before"]),
        after=_text(data["after"]),
        mode=int(data["mode"]),
        events=tuple(map(str, data["events"])),
        first=moment(data["first"]),
        last=moment(data["last"]),
        count=int(data["count"]),
        restored=bool(data["restored"]),
        final=bool(data["final"]),
        earlier=bool(data["earlier"]),
        evidence=None if data["evidence"] is None else _evidence(data["evidence"]),
        writer=_writer(data["writer"]),
        candidates=tuple(map(_writer, data["candidates"])),
    )


def report(data: Document) -> Report:
    """Return the report in a message."""
    return Report(
        coverage=coverage(data["coverage"]),
        mutations=tuple(map(mutation, data["mutations"])),
        rewrites=tuple(
            Rewrite(
                path_bytes(r["path"]),
                tuple(map(str, r["events"])),
                int(r["count"]),
                moment(r["last"]),
                bool(r["content"]),
            )
            for r in data["rewrites"]
        ),
        git=None if data["git"] is None else _git(data["git"]),
    )


def happened(data: Document) -> Happened:
    """Return the entry of the guard's memory in a message."""
    return Happened(
        path_bytes(data["path"]),
        str(data["area"]),
        tuple(map(str, data["events"])),
        moment(data["at"]),
    )


def status(data: Document) -> GuardStatus:
    """Return the status in a message."""
    return GuardStatus(
        pid=int(data["pid"]),
        instance=str(data["instance"]),
        protocol=int(data["protocol"]),
        version=str(data["version"]),
        workspace=str(data["workspace"]),
        watching_since=moment(data["watching_since"]),
        watches=int(data["watches"]),
        directories=int(data["directories"]),
        kernel_watches=int(data["kernel_watches"]),
        coverage=coverage(data["coverage"]),
        armed=tuple(map(_armed, data["armed"])),
        standing=None if data["standing"] is None else _armed(data["standing"]),
        remembered=int(data["remembered"]),
        idle_after=float(data["idle_after"]),
    )


def _armed(data: Document) -> Armed:
    return Armed(
        str(data["run_id"]), moment(data["since"]), int(data["files"]), int(data["mutations"])
    )


def _evidence(data: Document) -> Evidence:
    return Evidence(str(data["sha256"]), int(data["size"]), int(data["kept"]), _text(data["file"]))


def _writer(data: Document) -> Writer:
    process = data["process"]
    return Writer(
        how=str(data["how"]),
        kind=str(data["kind"]),
        why=_text(data["why"]),
        process=None if process is None else _process(process),
        parents=tuple(map(_process, data["parents"])),
    )


def _process(data: Document) -> Process:
    return Process(
        pid=int(data["pid"]),
        exe=_text(data["exe"]),
        cmdline=None if data["cmdline"] is None else tuple(map(str, data["cmdline"])),
        cwd=_text(data["cwd"]),
        uid=None if data["uid"] is None else int(data["uid"]),
        started=None if data["started"] is None else int(data["started"]),
        container=_text(data["container"]),
        forked=bool(data["forked"]),
    )


def _git(data: Document) -> GitState:
    return GitState(
        head=_text(data["head"]),
        head_now=_text(data["head_now"]),
        branch=_text(data["branch"]),
        branch_now=_text(data["branch_now"]),
        changes=tuple(
            GitChange(
                str(c["name"]),
                str(c["area"]),
                _text(c["before"]),
                _text(c["after"]),
                moment(c["at"]),
                _writer(c["writer"]),
                tuple(map(_writer, c["candidates"])),
            )
            for c in data["changes"]
        ),
    )


def _text(value: Any) -> str | None:  # noqa: ANN401 - JSON is any of these
    return None if value is None else str(value)
