"""What every back end that runs containers offers, and the records it speaks in.

Rules that this module keeps:

- The order of calls is the order of a run: ``create`` starts our init, which waits at the gate;
  between ``create`` and ``open_gate`` nothing of the experiment has run; ``finish`` returns when
  the experiment's processes are gone but its files can still be read; ``remove`` ends it all.
- A back end reports what it *found* (``Effective``), never what it was asked for.
- Trouble of the engine is ``EngineError``; it is never turned into an exit status.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.devices.access import Access


@dataclass(frozen=True)
class Mount:
    """A bind mount.

    Attributes:
        source: path on this host, as we see it; the back end translates it for its engine.
        target: absolute path in the container.
        shown_from: uid and gid whose files are shown as the experiment's own; None where files
            keep the owners that they have.
    """

    source: Path
    target: str
    read_only: bool = True
    shown_from: tuple[int, int] | None = None


@dataclass(frozen=True)
class Limits:
    """What a container may use; None means as much as the caller has.

    Attributes:
        memory: bytes, swap included.
        cpus: CPU time per wall time, e.g. 1.5.
        pids: processes and threads.
        file_size: bytes of one file (RLIMIT_FSIZE).
        open_files: descriptors a process.
        shm: bytes of ``/dev/shm``.
        tmp: bytes of each scratch tmpfs.
        outputs: bytes of new files in the workdir and ``/out`` together.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int = 4096
    file_size: int | None = None
    open_files: int = 65536
    shm: int = 1 << 30
    tmp: int = 4 << 30
    outputs: int = 10 << 30


@dataclass(frozen=True)
class Seed:
    """A directory that the init copies before it reports: what caches begin with.

    Attributes:
        source: path on this host; read-only directories and regular files.
        target: absolute path in the container, on a scratch file system; made by the init.
        size: bytes in all, which decide how long the init may take.
    """

    source: Path
    target: str
    size: int


@dataclass(frozen=True)
class Request:
    """A container as asked for: everything that decides how the experiment runs.

    Attributes:
        name: container name; engines answer 409 to a second one, so it is also a lock.
        image: the engine's name of the image (``Loading.engine_image``).
        argv: the committed command, untouched.
        user: numeric uid and gid.
        groups: supplementary groups, those that the data needs.
        join_stderr: the caller's stdout and stderr are one open file, so order between them counts.
        labels: ``sealrun.run``, ``sealrun.repository``, ``sealrun.commit``, …
        writable_workdir: new files may be made beside the committed ones.
        passwd: content of ``/etc/passwd`` with an entry for ``user``; likewise ``group``.
        seccomp: JSON text of the profile; None leaves the engine's own (a loosening, on record).
        devices: GPUs that the container gets; None for none.
        seed: what is copied into the container before its gate; None for nothing.
    """

    name: str
    image: str
    argv: Sequence[str]
    workdir: str
    environment: Mapping[str, str]
    user: tuple[int, int]
    mounts: Sequence[Mount]
    limits: Limits
    labels: Mapping[str, str]
    passwd: bytes
    group: bytes
    seccomp: str | None
    init: Path
    init_digest: str
    join_stderr: bool = False
    network: str = "none"
    writable_workdir: bool = True
    devices: Access | None = None
    groups: Sequence[int] = ()
    seed: Seed | None = None


@dataclass(frozen=True)
class Effective:
    """A container as found, read back from the kernel and the engine before the gate opens.

    Attributes:
        problems: each difference from what was asked for, as a sentence; empty means as asked.
        unseen: what could not be read back here, as a sentence each; goes into coverage.
    """

    problems: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class FileState:
    """One file of a container's root file system.

    Attributes:
        path: bytes, relative to the directory asked for; no leading slash.
        kind: ``file``, ``directory``, ``symlink`` or ``other``.
        mode: permission bits.
        sha256: hexadecimal, of a file's content; of a symlink's target; else None.
    """

    path: bytes
    kind: str
    mode: int
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Interference:
    """An engine event on our container that we did not cause.

    Attributes:
        action: the engine's word: ``exec_create``, ``update``, ``pause``, ``archive-path``, …
        monotonic: seconds on CLOCK_MONOTONIC when we read it.
    """

    action: str
    monotonic: float
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Ended:
    """How the experiment's process ended.

    Attributes:
        exit_status: as a shell shows it (128 + signal); None when it never ended by itself.
        out_of_memory: the kernel killed within the container's memory limit (engine's word).
        peak_memory: bytes, of the whole container; None where it cannot be read.
        cpu_seconds: of the whole container; None where it cannot be read.
        stopped_for: why the back end ended it: ``outputs`` (more new bytes than allowed) or
            ``lost`` (the container ended without a report of its init: by the engine or by
            somebody else); None otherwise.
    """

    exit_status: int | None
    out_of_memory: bool
    peak_memory: int | None
    cpu_seconds: float | None
    stopped_for: str | None = None


class Container(Protocol):
    """A started container whose init waits at the gate."""

    id: str
    #: The container's root as this host sees it (``/proc/PID/root``), or None where it cannot.
    root: Path | None
    #: Paths that a GPU's toolkit put into the container beside the image's.
    brought: Sequence[str]
    #: Whether the init found the command: ``ready``, ``not-found`` or ``not-executable``.
    command: str

    def effective(self) -> Effective:
        """Read back capabilities, seccomp, limits and mounts, and compare with the request."""
        ...

    def files(self, directory: str, largest: int | None = None) -> Iterator[FileState]:
        """List everything below an absolute directory of the container, as it stands there.

        Args:
            directory: no part of its path may be a link.
            largest: bytes above which a file is listed with ``sha256`` None; a sparse file of any
                size costs its maker nothing.
        """
        ...

    def open_gate(self) -> None:
        """Let the experiment start; its deadline starts now."""
        ...

    def pump(self, stdout: int, stderr: int, log: Path, log_limit: int) -> None:
        """Pass output to two descriptors byte for byte until the experiment ends.

        Keeps at most ``log_limit`` bytes in ``log``: a first and a last part, with a line that
        says how much is missing between them.
        """
        ...

    def finish(self) -> Ended:
        """Return how it ended; its processes are gone, its files can still be read."""
        ...

    def interference(self, *, settled: bool = True) -> Sequence[Interference]:
        """Return what others did to the container through the engine, so far.

        Args:
            settled: wait until every act before this call is known; else only what is known.
        """
        ...

    def unseen(self) -> Sequence[str]:
        """Return what of the container's life was not observed, as a sentence each.

        Complete after ``interference`` was called at the end.
        """
        ...

    def collect(self, directory: str, into: Path, limit: int) -> Sequence[FileState]:
        """Copy new files below a directory out safely; never follows a link of the container's.

        Raises:
            SandboxError: more than ``limit`` bytes; what was copied until then stays.
        """
        ...

    def stop(self, grace: float) -> None:
        """End the experiment: SIGTERM, then SIGKILL after ``grace`` seconds. Safe to repeat."""
        ...

    def remove(self) -> None:
        """Remove the container, its volumes and whatever was made for it. Safe to repeat."""
        ...


class Sandbox(Protocol):
    """A back end."""

    #: ``container``, ``namespace`` or ``process``: how strong the isolation is; always shown.
    tier: str

    def create(self, request: Request) -> Container:
        """Create and start a container whose init waits at the gate.

        Raises:
            SandboxError: the engine refused it, or our init did not report within its time.
            EngineError: the engine failed or went away.
        """
        ...

    def clear(self, is_alive: Callable[[str], bool]) -> Sequence[str]:
        """Remove containers of dead controllers.

        Args:
            is_alive: whether the controller of a run id still lives.

        Returns:
            The run ids whose containers were removed.
        """
        ...
