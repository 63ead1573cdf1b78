"""A git remote as destination: a line is one ref, whose commits only go forward.

Rules that this module keeps:

- ``refs/sealrun/mirror/REPOSITORY/MACHINE`` is written by one machine and never forced: what stood
  there stays in its history. A step's commit has the runs' commits as parents, so that one push
  brings everything or nothing.
- The runs' own refs (``refs/sealrun/runs/``) go with it, before the line names them.
- Commits are made in a staging repository in our cache, whose configuration is ours: nothing that
  the workspace's configuration says (URLs, helpers, hooks) takes part.
- No secret is in a command line or a message; a push or fetch that hangs is ended.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from typing import TYPE_CHECKING, Final

from sealrun.git import RUN_REFS, Git, GitFailed
from sealrun.mirror.format import HEAD_LIMIT, Damaged, is_line
from sealrun.mirror.line import Unreachable
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sealrun.mirror.config import Access
    from sealrun.mirror.format import Blob
    from sealrun.mirror.line import Change, Piece

#: Where lines stand on a remote.
LINE_REFS = "refs/sealrun/mirror/"
_LINE: Final = "refs/heads/line"
_HEAD = "head.json"
#: Refs of one push: a command line holds so many.
_TOGETHER = 500
#: Loose objects from which git packs the staging repository.
_LOOSE = "1000"
_WHO = "sealrun mirror <mirror@sealrun.invalid>"
_ORIGIN = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class Remote:
    """A git remote, spoken to from a bare repository of ours.

    Args:
        access: where it is, and what opens it.
        staging: the bare repository.
    """

    def __init__(self, access: Access, staging: Git) -> None:
        self.access, self.staging = access, staging

    def refs(self, pattern: str) -> dict[str, str]:
        """Return the remote's refs by name.

        Raises:
            Unreachable: nobody answers.
        """
        output = self.call("ls-remote", "--", self.access.url, pattern)
        found: dict[str, str] = {}
        for line in output.split(b"\n"):
            oid, tab, name = line.decode("utf-8", "replace").partition("\t")
            if tab and _ORIGIN.fullmatch(oid):
                found[name] = oid
        return found

    def fetch(self, source: str, target: str) -> None:
        """Bring one ref with all that it reaches.

        Raises:
            Unreachable: nobody answers, or the remote holds what git does not take.
        """
        self.call(
            *("-c", "fetch.fsckObjects=true", "fetch", "--quiet", "--no-tags"),
            *("--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules"),
            *("--", self.access.url, f"+{source}:{target}"),
        )

    def push(self, *refspecs: str) -> None:
        """Push without force.

        Raises:
            Unreachable: it was not taken.
        """
        self.call("push", "--quiet", "--no-verify", "--", self.access.url, *refspecs)

    def call(self, *arguments: str) -> bytes:
        """Run git with what opens the remote; end it when it takes too long."""
        with self.staging.popen(*arguments, extra=dict(self.access.variables)) as process:
            try:
                output, errors = process.communicate(timeout=self.access.timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise Unreachable(
                    f"{self.access.url} did not answer within {self.access.timeout:g} s",
                    hint="Check the network and the remote.",
                ) from None
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            words = " ".join(errors.decode("utf-8", "replace").split()) or "git failed"
            for secret in self.access.secrets:
                words = words.replace(secret, "…")
            raise Unreachable(
                f"{self.access.url}: {words[-400:]}",
                hint="Check the remote, its permissions and the token.",
            )
        return output


def staging(directory: Path, algorithm: str, objects: Path | None = None) -> Git:
    """Return scrubbed git in a bare repository of ours, made where it is not there.

    Args:
        directory: of the repository.
        algorithm: of its objects.
        objects: of another repository, which are then seen in it too.

    Raises:
        StorageFault: it cannot be made.
    """
    git = Git(private(directory))
    if not (directory / "HEAD").is_file():
        git.run("init", "--quiet", "--bare", f"--object-format={algorithm}", "--template=", ".")
    # Their owners are dead: whoever calls us holds the lock of the line.
    for lock in (*directory.glob("*.lock"), *(directory / "refs").rglob("*.lock")):
        lock.unlink(missing_ok=True)
    info = private(directory / "objects" / "info")
    if objects is not None:
        (info / "alternates").write_bytes(str(objects).encode() + b"\n")
    return git


class GitLine:
    """One line of a git remote.

    Args:
        remote: that holds it.
        name: of the line.
    """

    carries_commits = True

    def __init__(self, remote: Remote, name: str) -> None:
        self.remote, self.name = remote, name
        self.git = remote.staging
        self.ref = LINE_REFS + name
        self._reader: subprocess.Popen[bytes] | None = None

    def head(self) -> bytes | None:
        """Return the bytes of the head, after bringing what the remote has now."""
        there = self.remote.refs(self.ref).get(self.ref)
        if there is None:
            self.git.attempt("update-ref", "-d", _LINE)
            return None
        if there != self._tip():
            self.remote.fetch(self.ref, _LINE)
        return self._blob(f"{_LINE}:{_HEAD}", HEAD_LIMIT + 1, "its head")

    def piece(self, folder: str, digest: str, limit: int) -> bytes:
        """Return a piece as it is stored."""
        return self._blob(f"{_LINE}:{folder}/{digest}", limit, f"{folder}/{digest[:12]}")

    def unpack(self, repository: Path, packs: Sequence[tuple[int, Blob]]) -> None:
        """Do nothing: the line's own commits brought them into the staging repository."""
        if packs:
            raise Damaged("the mirror of a git remote names packs, which it never holds")
        if repository != self.git.directory:
            raise Damaged("the commits of a git remote stand in its own staging repository")

    def write(self, change: Change) -> None:
        """Make a commit of the step, push the runs' refs, then the line."""
        self.close()
        before = self._tip()
        try:
            commit = self._commit(change, before)
            pins = [f"{oid}:{RUN_REFS}{run}" for run, oid in change.pins.items()]
            for start in range(0, len(pins), _TOGETHER):
                self.remote.push(*pins[start : start + _TOGETHER])
            self.remote.push(f"{commit}:{self.ref}")
            self.git.run("update-ref", _LINE, commit)
            self.git.attempt("-c", f"gc.auto={_LOOSE}", "-c", "gc.autoDetach=false", "gc", "--auto", "--quiet")  # fmt: skip
        except (GitFailed, OSError) as error:
            raise Unreachable(f"the step could not be made: {error}") from error

    def _tip(self) -> str | None:
        status, output, _ = self.git.attempt("rev-parse", "--verify", "--quiet", _LINE)
        return output.strip().decode("ascii") if status == 0 else None

    def close(self) -> None:
        """End the process that reads objects. Safe to repeat."""
        if self._reader is not None:
            with self._reader as process:
                process.kill()
            self._reader = None

    def _blob(self, name: str, limit: int, what: str) -> bytes:
        if self._reader is None:
            self._reader = self.git.popen("cat-file", "--batch")
        requests, answers = self._reader.stdin, self._reader.stdout
        assert requests is not None  # noqa: S101 - popen makes pipes
        assert answers is not None  # noqa: S101 - likewise
        try:
            requests.write(f"{name}\n".encode())
            requests.flush()
            # "<oid> <type> <size>", or "<name> missing" (git-cat-file(1)).
            kind, _, size = answers.readline().strip().rpartition(b" ")
        except BrokenPipeError:
            kind, size = b"", b""
        if not kind.endswith(b" blob") or not size.isdigit():
            self.close()
            raise Damaged(f"{what} is missing on {self.remote.access.url}")
        if int(size) > limit:
            self.close()
            raise Damaged(f"{what} is larger than {limit} bytes")
        content = answers.read(int(size) + 1)[:-1]
        if len(content) != int(size):
            self.close()
            raise Damaged(f"{what} cannot be read")
        return content

    def _commit(self, change: Change, before: str | None) -> str:
        """Make the commit that the line's ref gets, without moving any ref of the remote."""
        draft = "refs/heads/draft"
        self.git.attempt("update-ref", "-d", draft)
        words = self.git.fed(
            *("fast-import", "--quiet", "--done", "--date-format=raw"),
            chunks=self._stream(change, before, draft),
        )
        if words is not None:
            raise GitFailed(f"git fast-import failed: {words}")
        return self.git.run("rev-parse", "--verify", draft).strip().decode("ascii")

    def _stream(self, change: Change, before: str | None, ref: str) -> Iterator[bytes]:
        words = change.words.encode()
        yield f"commit {ref}\ncommitter {_WHO} {int(time.time())} +0000\n".encode()
        yield b"data %d\n%s\n" % (len(words), words)
        parents = list(dict.fromkeys(change.pins.values()))
        if before is not None:
            yield f"from {before}\n".encode()
        elif parents:
            # Otherwise the first parent's files would be the beginning of the line's.
            yield f"from {self._root()}\n".encode()
        yield b"".join(f"merge {oid}\n".encode() for oid in parents)
        if before is not None:
            for folder, keep in change.keep.items():
                for name in self._names(before, folder) - keep:
                    yield f"D {folder}/{name}\n".encode()
        for piece in change.pieces:
            yield from self._inline(f"{piece.folder}/{piece.digest}", _loaded(piece))
        yield from self._inline(_HEAD, change.head)
        yield b"\ndone\n"

    def _root(self) -> str:
        """Return an empty commit that a line begins with."""
        tree = self.git.run("mktree", stdin=b"").strip().decode("ascii")
        extra = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in (
                ("NAME", "sealrun mirror"),
                ("EMAIL", "mirror@sealrun.invalid"),
                ("DATE", "946684800 +0000"),
            )
        }
        made = self.git.run("commit-tree", tree, stdin=b"sealrun mirror\n", extra=extra)
        return made.strip().decode("ascii")

    def _names(self, commit: str, folder: str) -> set[str]:
        status, listed, _ = self.git.attempt("ls-tree", "--name-only", "-z", f"{commit}:{folder}")
        if status != 0:
            return set()
        return {name.decode("ascii", "replace") for name in listed.split(b"\0") if name}

    @staticmethod
    def _inline(path: str, content: bytes) -> Iterator[bytes]:
        yield b"M 100644 inline %s\ndata %d\n" % (path.encode(), len(content))
        yield content
        yield b"\n"


def _loaded(piece: Piece) -> bytes:
    content = piece.load()
    if hashlib.sha256(content).hexdigest() != piece.digest:
        raise Unreachable(f"a file of {piece.folder} changed while it was mirrored")
    return content


def lines(remote: Remote) -> list[str]:
    """Return the names of the lines of a remote.

    Raises:
        Unreachable: nobody answers.
    """
    found = remote.refs(f"{LINE_REFS}*")
    return sorted(name for ref in found if is_line(name := ref.removeprefix(LINE_REFS)))
