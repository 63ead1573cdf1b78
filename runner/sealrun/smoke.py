"""One look at the real command before the loop starts: sealed as a run is, and no run.

Rules that this module keeps:

- The container is the one that a run would get: the same image, mounts, limits and system calls,
  verified before its gate opens. What is verified for the first time now need not be in the run.
- It is nobody's experiment: it has no verdict and no metric, approves nothing, and no line of the
  record tells of it. What it leaves is removed with it.
- It ends soon after the first line that it prints, after its time, or by itself. Where its compile
  caches are kept for later runs, its first line does not end it: most compile after that.
- Those caches are empty at its start, so that a seed comes from one commit and one command; and
  nothing is kept of a command that failed, or of a commit that a human has to approve first.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun import facts, leftovers
from sealrun.caches.gather import Unkept
from sealrun.caches.key import parts
from sealrun.caches.store import Origin, SeedStore
from sealrun.errors import SandboxError
from sealrun.gc.sweep import remove
from sealrun.image.load import created
from sealrun.ledger import new_ulid, utc
from sealrun.request import request_for
from sealrun.sandbox.check import ContainerCheck
from sealrun.sandbox.contents import Witnesses
from sealrun.sandbox.docker import DockerSandbox, default_owner
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sealrun.caches.store import Seed
    from sealrun.data import Dataset
    from sealrun.engine import Engine
    from sealrun.image.model import Loading
    from sealrun.image.seal import Sealed
    from sealrun.policy import Policy
    from sealrun.progress import Listener
    from sealrun.sandbox.protocol import Container, Ended
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: Seconds between SIGTERM and SIGKILL; there is nothing to save.
_GRACE = 1.0
#: Seconds after its first line in which a command may still end by itself.
_SETTLED = 2.0
#: Bytes of output that are kept for the message.
_KEPT = 1 << 16
#: What ``Ended.stopped_for`` says.
_FAULTS = {
    "outputs": "it left more new files, or deeper directories, than [sandbox] outputs allows",
    "lost": "the engine or somebody else ended its container",
}


@dataclass(frozen=True)
class Smoke:
    """How far a command came.

    Attributes:
        line: the first that it printed, without its end; None where it printed none.
        output: what it printed until it was over, as far as it was kept.
        exit_status: of the command, where it ended by itself; 126 and 127 as in a shell.
        seconds: until then.
        fault: why it was ended by a limit or from outside, e.g. more new files than allowed.
        kept: the seed that it left, why it left none, or None where none is wanted.
    """

    line: str | None
    output: str
    exit_status: int | None
    seconds: float
    fault: str | None = None
    kept: Seed | str | None = None

    @property
    def well(self) -> bool:
        """Whether it printed a line or did not fail."""
        return self.fault is None and self.exit_status in (None, 0)


def smoke(  # noqa: PLR0913 - everything that decides how an experiment runs
    argv: Sequence[str],
    patience: float,
    *,
    tree: CommittedTree,
    policy: Policy,
    sealed: Sealed,
    loading: Loading,
    engine: Engine,
    datasets: Sequence[Dataset],
    places: Places,
    repository_id: str,
    listener: Listener,
    unkept: str | None = None,
) -> Smoke:
    """Start a command, wait for its first line, end it; keep what it compiled, if that is wanted.

    Args:
        patience: seconds that it gets to print one, or to compile.
        unkept: why nothing that it compiles may be kept, as a clause.

    Raises:
        SandboxError: the container is not what was asked for.
        EngineError: the engine failed.
        StorageFault: its caches cannot be kept.
    """
    name = new_ulid()
    directory = places.run(repository_id, name)
    scratch = Path(tempfile.mkdtemp(dir=private(places.cache / "scratch"), prefix="smoke-"))
    owner = default_owner(places.repository(repository_id))
    wanted = policy.sandbox.caches == "warmed"
    if os.statvfs(scratch).f_flag & os.ST_NOEXEC:
        # What is compiled there could not even be loaded.
        unkept = unkept or f"nothing can be executed in {scratch.parent}"
    fills = wanted and unkept is None
    try:
        with contextlib.ExitStack() as stack:
            # The lock by which others see that the container is somebody's.
            stack.enter_context(leftovers.lock(directory))
            access = None
            if policy.sandbox.gpus != "none":
                from sealrun.devices.assign import assigned

                access = stack.enter_context(assigned(engine, name, listener, _nothing)).access
            request = request_for(
                run_id=name,
                repository_id=repository_id,
                argv=argv,
                tree=tree,
                policy=policy,
                image=sealed.image,
                loading=loading,
                datasets=datasets,
                out=private(scratch / "out"),
                places=places,
                join_stderr=True,
                devices=access,
                filled=private(scratch / "caches") if fills else None,
            )
            sandbox = DockerSandbox(
                engine.client,
                engine.mapping.translate,
                owner=owner,
                unenforced=engine.unenforced,
            )
            container = created(sandbox, request, sealed.image, engine.client, listener)
            stack.callback(container.remove)
            if container.command != "ready":
                status = 127 if container.command == "not-found" else 126
                return Smoke(None, f"{argv[0]}: {container.command}", status, 0.0)
            check = ContainerCheck(
                container,
                sealed.image,
                sealed.manifest,
                [dataset.target for dataset in datasets],
                Witnesses(places.bases, engine.id),
            )
            stack.enter_context(contextlib.closing(check))
            _verify(container, check, listener)
            done = _started_once(
                container, patience, scratch / "log", policy.limits.log, to_its_end=fills
            )
            if not fills:
                return replace(done, kept=unkept if wanted else None)
            key = parts(repository_id, tree, datasets, sealed.image, policy, facts.host(), access)
            return replace(done, kept=_kept(done, scratch / "caches", key, tree, argv, places))
    finally:
        # What cannot go now sealrun gc removes; a container may have left any tree.
        with contextlib.suppress(OSError):
            remove(scratch, places)
        with contextlib.suppress(OSError):
            remove(directory, places)


def _verify(container: Container, check: ContainerCheck, listener: Listener) -> None:
    problems = container.effective().problems
    if problems:
        raise SandboxError(
            f"the container is not what was asked for: {'; '.join(problems)}",
            hint="Nothing was run. sealrun doctor shows what this engine can enforce.",
        )
    found = check.before(listener)
    if found:
        raise SandboxError(
            "the engine shows other files than were sealed: "
            + ", ".join(f"{one.path} is {one.what}" for one in found[:5]),
            hint="sealrun warm --repair loads the image anew.",
        )


def _kept(
    done: Smoke,
    left: Path,
    key: Mapping[str, object],
    tree: CommittedTree,
    argv: Sequence[str],
    places: Places,
) -> Seed | str:
    if not done.well:
        return "the command failed"
    ended = "by itself" if done.exit_status == 0 else f"by us, after {done.seconds:.0f} s"
    try:
        found = SeedStore(places).keep(left, key, Origin(tree.commit, tuple(argv), ended, utc()))
    except Unkept as why:
        return str(why)
    return "it left no files there" if found is None else found


def _started_once(
    container: Container, patience: float, log: Path, limit: int, *, to_its_end: bool
) -> Smoke:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    told, over = threading.Event(), threading.Event()
    kept = bytearray()

    def read() -> None:
        while piece := os.read(reading, _KEPT):
            if len(kept) < _KEPT:
                kept.extend(piece[: _KEPT - len(kept)])
            if b"\n" in piece:
                told.set()

    def end() -> None:
        began = time.monotonic()
        while to_its_end or not told.is_set():
            if over.wait(0.05) or time.monotonic() - began > patience:
                break
        # The first line of a traceback is no sign of life: what ends at once is seen ending.
        if not over.wait(_SETTLED):
            stopped.set()
            container.stop(_GRACE)

    stopped = threading.Event()
    began = time.monotonic()
    container.open_gate()
    threads = [_started(read), _started(end)]
    try:
        container.pump(writing, writing, log, limit)
        over.set()
        ended = container.finish()
    finally:
        over.set()
        os.close(writing)
        for thread in threads:
            thread.join()
        os.close(reading)
    text = kept.decode("utf-8", "replace")
    status = None if stopped.is_set() else ended.exit_status
    line = text.split("\n", 1)[0] if "\n" in text else None
    return Smoke(line, text, status, time.monotonic() - began, _fault(ended))


def _fault(ended: Ended) -> str | None:
    if ended.out_of_memory:
        return "it used more memory than allowed"
    return _FAULTS.get(ended.stopped_for or "", ended.stopped_for)


def _nothing() -> None:
    """Let go of nothing while others have the GPUs: warm is still at work."""


def _started(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread
