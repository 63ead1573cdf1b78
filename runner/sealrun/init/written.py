"""Writes what was proposed, remembers it, and takes it back.

Rules that this module keeps:

- What was there before is on record before anything is written; a death in between is undone too.
- A file is replaced whole, never through a link, and only while it holds what the diff showed.
- Undoing is all or nothing: where anybody changed one of the files since, none is touched, and the
  message names it. A file that holds again what it held before needs no undoing.
- Directories that were made go too, when nothing else is in them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import Refused, StorageFault, UsageError
from sealrun.init.changes import Change
from sealrun.init.look import is_free, read
from sealrun.integrations.agents import Agent
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sealrun.state import Places


@dataclass(frozen=True)
class Written:
    """One file as ``init`` left it.

    Attributes:
        path: relative to the top of the workspace.
        before: None where there was no file.
        after: sha256 of what was written.
        agent: whose settings it is; None for any other file.
        made: the directories that had to be made for it, the outermost first.
    """

    path: str
    before: bytes | None
    after: str
    agent: Agent | None = None
    made: tuple[str, ...] = ()


def write(
    workspace: Path, places: Places, changes: Sequence[Change], hooks: Mapping[Agent, Change]
) -> None:
    """Write changes into a workspace, and remember how to take them back.

    Args:
        changes: those of ``hooks`` included.
        hooks: which of them are an agent's settings; these are written by ``integrations.install``.

    Raises:
        UsageError: a file does not hold what the change started from.
        StorageFault: a file cannot be written.
    """
    from sealrun.integrations.install import install_settings

    for change in changes:
        _expect(workspace, change)
    agents = {change.path: agent for agent, change in hooks.items()}
    earlier = {one.path: one for one in recorded(workspace, places)}
    for change in changes:
        known = earlier.get(change.path)
        ours = known is not None and known.after == digest(change.before)
        before, made = (
            (known.before, known.made)
            if known is not None and ours
            else (change.before, _to_make(workspace, change.path))
        )
        agent = agents.get(change.path)
        earlier[change.path] = Written(change.path, before, digest(change.after), agent, made)
    _save(workspace, places, earlier.values())
    for change in changes:
        agent = agents.get(change.path)
        if agent is None:
            _replace(workspace, change.path, change.before, change.after)
        else:
            install_settings(agent, places, workspace)


def undo(workspace: Path, places: Places) -> tuple[str, ...]:
    """Take back what ``write`` wrote; return the paths that were restored or removed.

    Raises:
        UsageError: nothing was written here.
        Refused: somebody changed one of the files since.
        StorageFault: a file cannot be written.
    """
    from sealrun.integrations.install import uninstall_settings

    known = recorded(workspace, places)
    if not known:
        raise UsageError(
            f"sealrun init has written nothing in {workspace}, or it was undone already"
        )
    now = {one.path: read(workspace, one.path) for one in known}
    todo = [one for one in known if not _as_before(workspace, one, now[one.path])]
    changed = [one.path for one in todo if digest(now[one.path]) != one.after]
    if changed:
        raise Refused(
            f"changed since sealrun init wrote it: {', '.join(changed)}; nothing was undone",
            hint="Take what sealrun init put there out of it by hand (its content before, or no "
            "file where there was none), then repeat the command.",
        )
    for one in todo:
        if one.agent is not None:
            uninstall_settings(one.agent, places, workspace)
        # Settings of a state that is gone since are restored from this record.
        if (left := read(workspace, one.path)) != one.before:
            _replace(workspace, one.path, left, one.before)
    for directory in sorted({d for one in known for d in one.made}, key=len, reverse=True):
        try:
            (workspace / directory).rmdir()
        except OSError:
            # Somebody else's files are in it, or it is gone already.
            continue
    _file(workspace, places).unlink(missing_ok=True)
    return tuple(one.path for one in todo)


def _as_before(workspace: Path, one: Written, now: bytes | None) -> bool:
    # What cannot be read, such as a link in the file's place, is there all the same.
    gone = not os.path.lexists(workspace / one.path)
    return gone if one.before is None else now == one.before


def digest(content: bytes | None) -> str:
    """Return the sha256 of a file's content, hexadecimal; ``absent`` where there is none."""
    return "absent" if content is None else hashlib.sha256(content).hexdigest()


def recorded(workspace: Path, places: Places) -> tuple[Written, ...]:
    """Return what ``init`` wrote into a workspace and nobody undid.

    Raises:
        StorageFault: the record is there but cannot be read.
    """
    file = _file(workspace, places)
    try:
        rows = json.loads(file.read_bytes())
        return tuple(
            Written(
                os.fsdecode(base64.b64decode(row["path"])),
                None if row["before"] is None else base64.b64decode(row["before"]),
                str(row["after"]),
                None if row["agent"] is None else Agent(row["agent"]),
                tuple(os.fsdecode(base64.b64decode(made)) for made in row["made"]),
            )
            for row in rows
        )
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageFault(
            f"cannot read what sealrun init wrote: {file}: {error}",
            hint="git diff and git status show what it changed; remove that file when it is undone.",
        ) from error


def _file(workspace: Path, places: Places) -> Path:
    name = hashlib.sha256(os.fsencode(workspace)).hexdigest()[:32]
    return private(places.state / "init") / f"{name}.json"


def _save(workspace: Path, places: Places, known: Iterable[Written]) -> None:
    def encoded(path: str) -> str:
        return base64.b64encode(os.fsencode(path)).decode()

    rows = [
        {
            "path": encoded(one.path),
            "before": None if one.before is None else base64.b64encode(one.before).decode(),
            "after": one.after,
            "agent": None if one.agent is None else one.agent.value,
            "made": [encoded(directory) for directory in one.made],
        }
        for one in known
    ]
    file = _file(workspace, places)
    _storage(file, json.dumps(rows).encode(), 0o600)


def _to_make(workspace: Path, path: str) -> tuple[str, ...]:
    above = [parent for parent in Path(path).parents if parent != Path()]
    return tuple(str(p) for p in reversed(above) if not os.path.lexists(workspace / p))


def _expect(workspace: Path, change: Change) -> None:
    file = workspace / change.path
    if change.before is None and is_free(workspace, change.path):
        return
    if change.before is not None and read(workspace, change.path) == change.before:
        return
    raise UsageError(
        f"{file} is a link, or was changed by another program just now; nothing was written to it",
        hint="Repeat the command.",
    )


def _replace(workspace: Path, path: str, before: bytes | None, after: bytes | None) -> None:
    """Replace a file's content whole, or remove the file (None)."""
    _expect(workspace, Change(path, before, after or b""))
    file = workspace / path
    if after is None:
        try:
            file.unlink()
        except OSError as error:
            raise _cannot(file, error) from error
        return
    _storage(file, after, None)


def _storage(file: Path, content: bytes, mode: int | None) -> None:
    """Write a file beside its place and put it there, with the mode and owner that it had."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.lstat() if os.path.lexists(file) else None
        if mode is None:
            mode = there.st_mode & 0o7777 if there else 0o666 & ~_umask()
        owner = there or file.parent.stat()
        with tempfile.NamedTemporaryFile(
            dir=file.parent, prefix=".sealrun-", delete=False
        ) as draft:
            try:
                draft.write(content)
                draft.flush()
                os.fchmod(draft.fileno(), mode)
                if os.geteuid() == 0:
                    # For root in somebody's workspace: the file is its owner's.
                    os.fchown(draft.fileno(), owner.st_uid, owner.st_gid)
                os.fsync(draft.fileno())
                Path(draft.name).replace(file)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _cannot(file, error) from error


def _cannot(file: Path, error: OSError) -> StorageFault:
    return StorageFault(
        f"cannot write {file}: {error.strerror}",
        hint="Free space or fix its permissions, then repeat the command; sealrun init --undo "
        "takes back what was written.",
    )


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
