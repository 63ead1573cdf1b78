"""A real workspace under a real guard, and everything that is observed of it.

Rules that this module keeps:

- What is looked at, and in which order, is what a run does: the commit is read and hashed, the guard
  armed, everything compared (verify 1), the guard drained and everything compared again (verify 3).
- Nothing of the product is replaced. The guard is a process of its own, or, so that a canary can
  take a part away from it, a thread of this one with the same code.
- Every act is another process. Nothing of it outlives its scene.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from _guard import end
from mutations.technique import Phase
from sealrun import tree as trees
from sealrun import workspace
from sealrun.errors import ObjectCorrupt
from sealrun.git import Repository
from sealrun.guard import GuardClient, Report, ensure, write_manifest
from sealrun.guard.mutations import JOURNAL
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from mutations.technique import Technique
    from sealrun.tree import CommittedTree
    from sealrun.workspace import Comparison

    GuardedBy = Callable[[Path, Places], AbstractContextManager[GuardClient]]

#: What the workspace holds. ``train.py`` gives every formatter something to do.
COMMITTED = {
    "train.py": b"import os\nimport json\n\nSCALAR_LR = 0.5\nWEIGHTS = [ 1,2 ]\n"
    b"print( os.name,json.dumps(WEIGHTS) )\n",
    "prepare.py": b"print('prepare')\n",
    "config.json": b'{ "lr":0.5 }\n',
    "weights.bin": bytes(range(256)) * 64,
    "pkg/__init__.py": b"",
    "pkg/deep/model.py": b"WIDTH = 64\n",
    "pkg/caf\udce9.py": b"x = 1\n",
}
#: Two commits: the one that is guarded, and ``other``, which differs from it in ``train.py``.
_HISTORY = """
git init -q -b main
git add -A
git commit -qm state
sed s/0.5/0.3/ train.py > "$OUT/other"
blob=$(git hash-object -w "$OUT/other")
git update-index --cacheinfo "100644,$blob,train.py"
git update-ref refs/heads/other "$(git commit-tree -p HEAD -m another "$(git write-tree)")"
git reset -q
rm "$OUT/other"
"""
#: Seconds that an act may take on a machine that does other things too.
PATIENCE = 120
_NAMES = ("AUTHOR", "COMMITTER")


@dataclass(frozen=True)
class Observed:
    """Everything that was found out about one technique.

    Attributes:
        first: verify 1.
        last: verify 3.
        report: what the guard tells of the time in which the technique struck.
        replaced: objects of the commit that replace refs hide.
        corrupt: the commit could not be read again, because an object does not hash to its name.
        committed: sha256 of the technique's path before it struck; None where no regular file stood.
        digest: the same at the end.
    """

    phase: Phase
    first: Comparison
    last: Comparison
    report: Report
    replaced: tuple[str, ...]
    corrupt: bool
    committed: str | None
    digest: str | None


@contextmanager
def guard_process(root: Path, places: Places) -> Generator[GuardClient]:
    """Start a guard as the product does, and end it."""
    try:
        with ensure(root, places) as client:
            yield client
    finally:
        end(root, places)


@contextmanager
def guard_thread(root: Path, places: Places) -> Generator[GuardClient]:
    """Run a guard in this process, so that a test can take something away from it."""
    from sealrun.guard.core import Guard
    from sealrun.guard.server import Server

    directory = places.guard(root)
    guard = Guard(root, directory, idle_after=600)
    guard.start()
    thread = threading.Thread(target=guard.run, daemon=True)
    thread.start()
    server = Server(guard, directory)
    server.start()
    try:
        with GuardClient(directory) as client:
            yield client
    finally:
        guard.end("test")
        thread.join(PATIENCE)
        server._socket.shutdown(socket.SHUT_RDWR)  # its thread waits for nobody any more


class Scene:
    """One workspace with its places; a context manager.

    Args:
        directory: empty, private to this scene.
        guarded_by: starts the guard.
        image: tag of an image with a shell, for techniques that need an engine.
    """

    def __init__(
        self, directory: Path, guarded_by: GuardedBy = guard_process, image: str = ""
    ) -> None:
        self._image = image
        self.root = directory / "work"
        self.out = directory / "out"
        home = directory / "home"
        self._places = Places(home / "state", home / "data", home / "cache", home / "runtime")
        self._directory = directory
        self._guarded_by = guarded_by
        self._spools = 0
        #: Where what is found goes on record, as a pattern of file names.
        self.journal = directory / "evidence" / JOURNAL

    def __enter__(self) -> Self:
        self.root.mkdir()
        self.out.mkdir()
        # Another user, in a container or beside it, must be able to come here.
        for place in (self._directory, self.root, self.out):
            place.chmod(0o777)
        for name, content in COMMITTED.items():
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        (self.root / "link").symlink_to("train.py")
        self.script(_HISTORY)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def script(self, text: str) -> None:
        """Run a bash script in the workspace; it is another process."""
        if not text:
            return
        done = subprocess.run(
            # With something left to do bash does not replace itself by the last command.
            ["bash", "-ec", text + "\n:"],
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, (text, done.stdout[-800:], done.stderr[-800:])

    def _environment(self) -> dict[str, str]:
        who = {f"GIT_{name}_{part}": "x@y.invalid" for name in _NAMES for part in ("NAME", "EMAIL")}
        ours = {
            "BIN": str(Path(sys.executable).parent),
            "IMAGE": self._image,
            "JOURNAL": str(self.journal),
            "OUT": str(self.out),
            "WORK": str(self.root),
            "HOME": str(self.out),
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C.UTF-8",
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "TERM": "xterm",
        }
        steering = ("GIT_", "PYTHON")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
        return kept | who | ours

    def observe(self, technique: Technique) -> Observed:
        """Let a technique strike, and look at everything that a run looks at."""
        try:
            self.script(technique.setup)
            with self._guarded_by(self.root, self._places) as client:
                return self._observed(client, technique)
        finally:
            with suppress(AssertionError):
                self.script(technique.cleanup)

    def _observed(self, client: GuardClient, technique: Technique) -> Observed:
        repository = Repository.find(self.root)
        tree = self._read(repository, repository.resolve())
        committed = self._digest(technique.path)
        manifest = self._directory / "manifest"
        write_manifest(manifest, tree.algorithm, workspace.checked_out(tree, repository))
        client.stand(manifest, self._directory / "between")
        if technique.phase is Phase.BETWEEN:
            self.journal = self._directory / "between" / JOURNAL
            self.script(technique.act)
        between = client.between()
        write_manifest(manifest, tree.algorithm, workspace.checked_out(tree, repository))
        client.arm("run", manifest, self._directory / "evidence")
        if technique.phase is Phase.ARMED:
            self.script(technique.act)
        first = workspace.compare(tree, repository)
        if technique.phase is Phase.DURING:
            assert not first.differences, "the workspace was clean before"
            self.script(technique.act)
        report = client.drain("run")
        if technique.phase is Phase.BETWEEN:
            report = between or Report(report.coverage)
        last = workspace.compare(tree, repository)
        return Observed(
            phase=technique.phase,
            first=first,
            last=last,
            report=report,
            replaced=workspace.replaced_objects(repository, tree),
            corrupt=self._corrupt(repository, tree.commit),
            committed=committed,
            digest=self._digest(technique.path),
        )

    def _read(self, repository: Repository, commit: str) -> CommittedTree:
        # A spool that nobody knows yet: every object is asked of git and hashed.
        self._spools += 1
        directory = self._directory / f"spool{self._spools}"
        directory.mkdir()
        return trees.read_commit(repository, commit, trees.Spool(directory, repository.algorithm))

    def _corrupt(self, repository: Repository, commit: str) -> bool:
        try:
            self._read(repository, commit)
        except ObjectCorrupt:
            return True
        return False

    def _digest(self, path: bytes) -> str | None:
        file = self.root / os.fsdecode(path)
        if file.is_symlink() or not file.is_file():
            return None
        return hashlib.sha256(file.read_bytes()).hexdigest()
