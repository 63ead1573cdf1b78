"""Parts for tests of images: repositories made through git's own plumbing, and a small base."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sealrun.git import Repository
from sealrun.image import tar
from sealrun.image.model import Base, Environment, Layer, Platform
from sealrun.image.store import LayerStore
from sealrun.image.tree_layer import TreeLayers
from sealrun.state import private
from sealrun.tree import CommittedTree, Spool, read_commit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from docker import APIClient

FILE = b"100644"
EXECUTABLE = b"100755"
SYMLINK = b"120000"
GITLINK = b"160000"

#: Content as a file, or mode and content.
Content = bytes | tuple[bytes, bytes]

#: A tree with everything in it that tends to get lost.
AWKWARD: Mapping[bytes, Content] = {
    b"train.py": b"SCALAR_LR = 0.5\n",
    b"crlf.txt": b"one\r\ntwo\r\n",
    b"run.sh": (EXECUTABLE, b"#!/bin/sh\necho ran\n"),
    b"link": (SYMLINK, b"train.py"),
    b"dangling": (SYMLINK, b"deep/nothing"),
    b"empty": b"",
    b"latin1-\xe9\xff.txt": b"not UTF-8\n",
    b"long/" + b"d" * 150 + b"/" + b"n" * 150: b"a path of 306 bytes\n",
    b"deep/" + b"/".join(b"%d" % n for n in range(20)) + b"/leaf": b"twenty levels down\n",
    b"far": (SYMLINK, b"deep/" + b"/".join(b"%d" % n for n in range(20)) + b"/" + b"x" * 120),
    b"new\nline": b"a name of two lines\n",
    b".gitattributes": b"ignored export-ignore\nsubst export-subst\n*.eol text eol=crlf\n",
    b"ignored": b"git archive would drop this\n",
    b"subst": b"$Format:%H$\n",
    b"lines.eol": b"git archive would add CR\n",
    b"binary": bytes(range(256)) * 1000,
}


def git(directory: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run git as a user would; return its output."""
    result = subprocess.run(
        ["git", "-C", str(directory), *arguments],
        input=stdin,
        capture_output=True,
        check=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
    )
    return result.stdout


def repository(directory: Path, *, algorithm: str = "sha1") -> Path:
    """Make an empty repository."""
    directory.mkdir(parents=True)
    git(directory, "init", "--quiet", "--initial-branch=main", f"--object-format={algorithm}")
    return directory


def commit(directory: Path, files: Mapping[bytes, Content], message: bytes = b"a commit") -> None:
    """Commit exactly these files on main; names and bytes never touch a file system."""
    parts = [b"commit refs/heads/main\n", b"committer a <a@example.org> 1700000000 +0000\n"]
    parts += [b"data %d\n%b\n" % (len(message), message), b"deleteall\n"]
    for path, content in files.items():
        mode, data = content if isinstance(content, tuple) else (FILE, content)
        name = b'"' + path.replace(b"\n", b"\\n") + b'"' if b"\n" in path else path
        if mode == GITLINK:
            parts.append(b"M %b %b %b\n" % (mode, data, name))
        else:
            parts.append(b"M %b inline %b\ndata %d\n%b\n" % (mode, name, len(data), data))
    git(directory, "fast-import", "--quiet", "--force", stdin=b"".join(parts))


def committed(directory: Path, spool: Path) -> CommittedTree:
    """Read HEAD of a repository through a spool."""
    found = Repository.find(directory)
    return read_commit(found, found.resolve(), Spool(private(spool), found.algorithm))


def layer_of(store: LayerStore, files: Mapping[bytes, Content]) -> Layer:
    """Write a layer that holds some files below its root."""
    with store.writer() as writer:
        for path, content in sorted(files.items()):
            mode, data = content if isinstance(content, tuple) else (FILE, content)
            if mode == SYMLINK:
                writer.write(tar.header(path, tar.SYMLINK, 0o777, target=data))
                continue
            bits = 0o755 if mode == EXECUTABLE else 0o644
            writer.write(tar.header(path, tar.FILE, bits, len(data)))
            writer.write(data + tar.padding(len(data)))
        writer.write(tar.END)
        return writer.commit()


def base_of(*layers: Layer) -> Base:
    """Return a base without Python."""
    return Base("test", Platform(), layers, None, None, None)


def environment_of(layer: Layer | None = None, **variables: str) -> Environment:
    """Return an environment."""
    return Environment("test", None, layer, variables)


@dataclass
class Workshop:
    """Everything that sealing needs, below one directory."""

    root: Path
    count: int = 0
    store: LayerStore = field(init=False)
    trees: TreeLayers = field(init=False)

    def __post_init__(self) -> None:
        self.store = LayerStore(private(self.root / "layers"))
        self.trees = TreeLayers(private(self.root / "trees"))

    def tree(self, files: Mapping[bytes, Content], *, algorithm: str = "sha1") -> CommittedTree:
        """Commit files in a repository of their own and read them back."""
        self.count += 1
        directory = repository(self.root / f"repository-{self.count}", algorithm=algorithm)
        commit(directory, files)
        return committed(directory, self.root / f"spool-{self.count}")

    def base(self, mark: bytes = b"base") -> Base:
        """Return a base of two layers that hold the mark."""
        return base_of(
            layer_of(self.store, {b"etc/mark": mark}), layer_of(self.store, {b"etc/second": mark})
        )


def engine() -> APIClient:
    """Connect to the engine; the test fails where there is none."""
    import docker

    url: Any = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return docker.APIClient(base_url=url, version="auto", timeout=120)
