"""Builds a base from a Dockerfile in the commit, through the engine's own builder.

Rules that this module keeps:

- The context comes from the spool's bytes, never from the working directory, and holds only what
  the Dockerfile takes in: so an edit of any other file needs no new base, and a source that we
  overlooked fails the build instead of making a stale one.
- Where its sources cannot be told by reading (variables, patterns), the whole commit is the context.
- The engine's words are shown when a build fails, escaped; nothing of the build stays in the engine
  but what was there before.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tempfile
from collections import deque
from typing import TYPE_CHECKING, Any

from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import tool
from sealrun.image.model import MTIME
from sealrun.image.reference import engine_words
from sealrun.tree import EXECUTABLE, SYMLINK

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from sealrun.image.model import Platform
    from sealrun.progress import Progress
    from sealrun.tree import CommittedTree, Entry

_INSTRUCTION = re.compile(r"^\s*(COPY|ADD|RUN)\s+(.*)$", re.IGNORECASE | re.DOTALL)
_FLAG = re.compile(r"--[a-z-]+(?:=\S*)?\s+")
_UNCERTAIN = re.compile(r"[*?\[\]$\\\"'<]")
_IGNORE = ".dockerignore"


def sources(text: str) -> tuple[str, ...] | None:
    """Return the paths that a Dockerfile takes from its context; None: they cannot be told.

    An empty path is the whole context.
    """
    found: list[str] = []
    joined = re.sub(r"\\[ \t]*\r?\n(?:\s*#[^\n]*\n)*", " ", text)
    for line in joined.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        kind, rest = match[1].upper(), match[2]
        if kind == "RUN":
            if "--mount" in rest:
                return None
            continue
        flags = ""
        while flag := _FLAG.match(rest):
            flags += flag[0]
            rest = rest[flag.end() :]
        if "--from" in flags:
            continue
        if _UNCERTAIN.search(rest) or "--exclude" in flags:
            return None
        words = rest.split()
        found += [w.lstrip("/") for w in words[:-1] if "://" not in w and not w.startswith("git@")]
    return tuple(sorted({"" if path in (".", "./") else path.strip("/") for path in found}))


def needed(tree: CommittedTree, path: str) -> list[Entry]:
    """Return the entries of the commit that make up the build's context.

    Args:
        path: of the Dockerfile in the tree.

    Raises:
        SealRefused: it is not in the commit, or not text.
    """
    entry = tree.get(path.encode())
    if entry is None or entry.mode == SYMLINK:
        raise SealRefused(
            f"{path}: [image] base names this Dockerfile, but the commit does not hold it",
            hint="Commit it, or name another base.",
        )
    try:
        named = sources(tree.read(entry).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SealRefused(f"{path} is not UTF-8: {error}") from error
    if named is None or "" in named:
        return list(tree.entries)
    wanted = [path.encode(), _IGNORE.encode(), f"{path}{_IGNORE}".encode()]
    wanted += [name.encode() for name in named]
    return [
        e for e in tree.entries if any(e.path == w or e.path.startswith(w + b"/") for w in wanted)
    ]


def key(tree: CommittedTree, path: str) -> str:
    """Return what a build depends on in the commit, as one sha256."""
    digest = hashlib.sha256()
    for entry in needed(tree, path):
        digest.update(b"%o %s %s\0" % (entry.mode, entry.oid.encode(), entry.path))
    return digest.hexdigest()


def build(
    tree: CommittedTree,
    path: str,
    platform: Platform,
    engine: Any,  # noqa: ANN401 - docker-py ships no types
    scratch: Path,
    progress: Progress,
) -> tuple[str, bool]:
    """Build a Dockerfile of the commit.

    Args:
        path: of the Dockerfile in the tree.
        engine: docker-py's low-level client.

    Returns:
        The image's id, and whether the engine had it before.

    Raises:
        EnvironmentFault: the build failed, or there is no engine.
    """
    if engine is None:
        raise EnvironmentFault(
            f"building {path} needs a container engine, and none answers",
            hint="sealrun engine up starts one.",
        )
    what = f"building {path}"
    with progress.task(what) as task, engine_words(what):
        before = {str(image["Id"]) for image in engine.images(all=True)}
        with tempfile.TemporaryFile(dir=scratch) as context:
            _write_context(tree, needed(tree, path), context)
            context.seek(0)
            lines = engine.build(
                fileobj=context,
                custom_context=True,
                dockerfile=path,
                platform=str(platform),
                rm=True,
                forcerm=True,
                decode=True,
            )
            last: deque[str] = deque(maxlen=tool.LAST_LINES)
            built: str | None = None
            for line in lines:
                built = line.get("aux", {}).get("ID", built)
                for text in str(line.get("stream") or line.get("status") or "").splitlines():
                    if shown := tool.visible(text):
                        last.append(shown)
                        task.describe(shown)
                if "error" in line:
                    words = "\n".join(f"  {text}" for text in last)
                    raise EnvironmentFault(
                        f"{path} does not build: {tool.visible(str(line['error']))}\n"
                        f"the engine printed last:\n{words}",
                        hint="Build it by hand with docker build, from a clean clone, to see all.",
                    )
    if built is None:
        raise EnvironmentFault(f"{what}: the engine named no image at its end")
    return built, built in before


def remove(engine: Any, image: str) -> None:  # noqa: ANN401 - docker-py ships no types
    """Remove an image that a build made; one that is in use meanwhile stays."""
    from docker.errors import APIError

    try:
        engine.remove_image(image)
    except APIError:
        return


def _write_context(tree: CommittedTree, entries: list[Entry], out: IO[bytes]) -> None:
    from docker.utils.build import PatternMatcher

    ignore = tree.get(_IGNORE.encode())
    lines = tree.read(ignore).decode("utf-8", "replace").splitlines() if ignore else []
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    matcher: Any = PatternMatcher(patterns)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            name = entry.path.decode("utf-8", "surrogateescape")
            if patterns and matcher.matches(name):
                continue
            content = tree.read(entry)
            info = tarfile.TarInfo(name)
            info.mtime = MTIME
            info.mode = 0o755 if entry.mode == EXECUTABLE else 0o644
            if entry.mode == SYMLINK:
                info.type, info.linkname = (
                    tarfile.SYMTYPE,
                    content.decode("utf-8", "surrogateescape"),
                )
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
