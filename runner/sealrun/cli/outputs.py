"""``sealrun outputs``: the files that a run left, listed or copied.

Rules that this module keeps:

- What a run left is hostile: no link is followed, nothing but regular files is copied, and no name
  leads out of the directory asked for.
- Copied bytes are compared with the record where it holds their hash; a difference is said and is a
  failure, and the copy stays, because somebody may need it to find out.
- Nothing is ever overwritten.
- What root copies into somebody's directory is made with that owner's rights and is theirs: whoever
  owns a directory can put a link in its place while we write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun import nested
from sealrun.cli import console
from sealrun.cli.reading import no_such_run, open_here, size, visible
from sealrun.errors import Status, StorageFault, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from sealrun.ledger import RunRecord

_CHUNK = 1 << 20
#: Bytes of a path below a run's outputs; the kernel takes 4095 with all before it (PATH_MAX).
_LONGEST = 4096
#: Permissions that a copy may have: no set-user-id, nothing for others to write.
_MODE = 0o755


@dataclass(frozen=True)
class Output:
    """One file that a run left.

    Attributes:
        path: below the run's outputs: ``workdir/…`` or ``out/…``; bytes, as the run named it.
        problem: why it is not copied, or how it differs from the record; None where all is well.
    """

    path: bytes
    size: int
    problem: str | None = None


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning.")],
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Copy them here: a new or an empty directory."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> Status:
    """List the files that a run left, or copy them to a directory.

    Links and special files are listed and never copied. Exits with 121 where a file is not what the
    record says.

    Example:  sealrun outputs 01K9ZQ4M ~/night/best
    """
    with open_here() as here:
        if here.ledger is None:
            raise no_such_run(run)
        record = here.ledger.run(here.ledger.resolve(run))
    root = _root(record)
    recorded = {
        one.path: one.sha256 for one in (record.ended.outputs if record.ended else ()) if one.sha256
    }
    owner: tuple[int, int] | None = None
    if directory is not None:
        owner = _owner(directory)
        with _acting_as(owner):
            directory = _made(directory)
    found: list[Output] = []
    if root is not None:
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.closing(_Descriptor(top)):
            found = sorted(
                _each(top, None if directory is None else _Into(directory, owner), recorded),
                key=lambda one: one.path.split(b"/"),
            )
    _show(record.run, found, directory, json=json)
    return Status.REFUSED if any(_differs(one) for one in found) else Status.OK


class _Descriptor:
    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        os.close(self.number)


def _root(record: RunRecord) -> Path | None:
    path = record.ended.outputs_path if record.ended else None
    if path is None:
        return None
    if not Path(path).is_dir():
        raise StorageFault(
            f"the outputs of run {record.run} are gone: {visible(path)}",
            hint="Restore them from a backup or a mirror, or run it again: sealrun reproduce.",
        )
    return Path(path)


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(
                f"{directory} is not empty", hint="Name a new directory: nothing is overwritten."
            )
    except OSError as error:
        raise StorageFault(f"cannot make {directory}: {error.strerror}") from error
    return directory.resolve()


@dataclass(frozen=True)
class _Into:
    """Where copies go, and whose they are; None: the caller's."""

    directory: Path
    owner: tuple[int, int] | None


def _owner(directory: Path) -> tuple[int, int] | None:
    """Return whose a directory is to be that root makes; None: the caller's."""
    from sealrun.state import owner_for_root

    above = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    owner = owner_for_root(above)
    if owner is None:
        return None
    with _acting_as(owner):
        # Nobody but root may be able to get there.
        reached = os.access(above, os.W_OK | os.X_OK, effective_ids=True)
    return owner if reached else None


@contextlib.contextmanager
def _acting_as(owner: tuple[int, int] | None) -> Generator[None]:
    """Make files with the rights of a user, for a while; None: with the caller's."""
    if owner is None:
        yield
        return
    groups = os.getgroups()
    os.setgroups([owner[1]])
    os.setegid(owner[1])
    os.seteuid(owner[0])
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _each(top: int, into: _Into | None, recorded: Mapping[str, str]) -> Iterator[Output]:
    # One directory is open at a time: an experiment may nest more than a process may have open.
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        with contextlib.closing(_Descriptor(_opened(top, below))) as here:
            with os.scandir(here.number) as listing:
                names = [os.fsencode(entry.name) for entry in listing]
            for name in names:
                path = below + b"/" + name if below else name
                status = os.stat(name, dir_fd=here.number, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and len(path) < _LONGEST:
                    waiting.append(path)
                elif stat.S_ISREG(status.st_mode):
                    yield _one(here.number, name, path, into, recorded)
                else:
                    yield Output(path, status.st_size, f"{_kind(status.st_mode)}, not copied")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "deeper than a path can say"
    return "a link" if stat.S_ISLNK(mode) else "no regular file"


def _opened(top: int, below: bytes) -> int:
    """Open a directory, through no link on the way."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(".", flags, dir_fd=top)
    for name in below.split(b"/") if below else ():
        with contextlib.closing(_Descriptor(at)):
            at = os.open(name, flags, dir_fd=at)
    return at


def _one(
    top: int, name: bytes, path: bytes, into: _Into | None, recorded: Mapping[str, str]
) -> Output:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    digest, copied = hashlib.sha256(), 0
    try:
        with os.fdopen(os.open(name, flags, dir_fd=top), "rb") as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Output(path, status.st_size, "no regular file, not copied")
            if into is None:
                return Output(path, status.st_size)
            target = into.directory / os.fsdecode(path)
            with _acting_as(into.owner):
                nested.make(target.parent)
                copy = target.open("xb")
            with copy:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    copied += copy.write(chunk)
                mode = stat.S_IMODE(status.st_mode) & _MODE | stat.S_IRUSR | stat.S_IWUSR
                os.fchmod(copy.fileno(), mode)
    except OSError as error:
        raise StorageFault(
            f"cannot copy {visible(os.fsdecode(path))}: {error.strerror}",
            hint="What was copied before it stays. Free space, or name another directory.",
        ) from error
    wanted = recorded.get(path.decode("utf-8", "surrogateescape"))
    if wanted is not None and digest.hexdigest() != wanted:
        return Output(path, copied, _DIFFERS)
    return Output(path, copied)


_DIFFERS = "not what the run left: its sha256 is another than on record"


def _differs(output: Output) -> bool:
    return output.problem == _DIFFERS


def _show(run: str, found: list[Output], directory: Path | None, *, json: bool) -> None:
    screen = console.current()
    if json:
        rows = [
            {
                "path": one.path.decode("utf-8", "backslashreplace"),
                "size": one.size,
                "problem": one.problem,
            }
            for one in found
        ]
        copied = None if directory is None else str(directory)
        screen.json({"run": run, "directory": copied, "outputs": rows})
        return
    for one in found:
        problem = f"  ({one.problem})" if one.problem else ""
        screen.data(f"{size(one.size):>12}  {visible(os.fsdecode(one.path))}{problem}")
    if directory is not None:
        screen.say(f"{sum(one.problem is None for one in found)} files copied to {directory}")
    elif not found:
        screen.say(f"run {run} left no files")
