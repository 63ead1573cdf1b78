"""Compiles a standard library: by its own interpreter, in a container, into the same bytes each time.

Rules that this module keeps:

- The interpreter never runs on the host. It runs on the base that it is for, as nobody's user,
  without network, capabilities or any file of the host: that it starts there is part of the answer.
- Hash seed 0 and the ``unchecked-hash`` form (PEP 552), as the shipped bases have it (``recipe``).
- What comes out is hostile: a member counts only where it is a bytecode file of that form for a
  source that went in.
- The container is removed when it ends; one whose owner died is removed by the next, whose lock
  proves that nobody else uses it.
"""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING, Any

from sealrun.errors import EnvironmentFault
from sealrun.image import build, normal, tool
from sealrun.image.model import MTIME
from sealrun.image.reference import engine_words

if TYPE_CHECKING:
    from collections.abc import Collection, Generator
    from pathlib import Path

    from sealrun.image.model import Layer

_DIRECTORY = "sealrun-bytecode"
_USER = 10001
#: Seconds for some thousand files on a slow machine.
_LONGEST = 1800
#: Bytes of all that may come back; CPython 3.13's standard library compiles to about 30 MB.
_LARGEST = 1 << 30
#: A header's flags for "hash-based, not checked" (PEP 552), little endian.
_UNCHECKED = b"\x01\0\0\0"
#: Directories whose sources no experiment imports; some are syntax errors on purpose.
_LEFT_OUT = r"/(test|tests|site-packages|idlelib|turtledemo|ensurepip|config-[^/]*)(/|$)"
_SCRIPT = """
import compileall, platform, py_compile, re, sys
done = compileall.compile_dir(sys.argv[1], force=True, quiet=1, rx=re.compile(sys.argv[2]),
    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
print(platform.python_implementation(), platform.python_version())
sys.exit(not done)
"""


def compiled(
    image: str,
    engine: Any,  # noqa: ANN401 - docker-py ships no types
    files: Layer,
    python: str,
    library: str,
    sources: Collection[bytes],
    *,
    label: str,
    scratch: Path,
) -> tuple[str, Generator[normal.Member]]:
    """Compile a standard library in a container.

    Args:
        image: what the engine calls the base.
        engine: docker-py's low-level client.
        files: the interpreter, as a layer.
        python: its path in the container.
        library: its standard library's directory in the container.
        sources: paths of the Python sources in the layer.
        label: what makes this work one of its kind; its lock is held.
        scratch: a directory for what comes back.

    Returns:
        What the interpreter calls itself (``CPython 3.10.13``), and the bytecode as members of a
        layer, to be read once and at once.

    Raises:
        EnvironmentFault: it does not start, fails, or leaves something else behind.
    """
    what = "compiling the standard library"
    with engine_words(what):
        for left in engine.containers(all=True, filters={"label": f"{build.LABEL}={label}"}):
            engine.remove_container(left["Id"], force=True, v=True)
        container = engine.create_container(
            image,
            command=[
                *(python, "-S", "-X", f"pycache_prefix=/{_DIRECTORY}"),
                *("-c", _SCRIPT, library, _LEFT_OUT),
            ],
            user=f"{_USER}:{_USER}",
            working_dir="/",
            environment={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            labels={build.LABEL: label},
            host_config=engine.create_host_config(
                network_mode="none",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                pids_limit=256,
            ),
        )["Id"]
        try:
            with files.path.open("rb") as layer:
                engine.put_archive(container, "/", layer)
            engine.put_archive(container, "/", _room())
            engine.start(container)
            status = engine.wait(container, timeout=_LONGEST)["StatusCode"]
            printed = engine.logs(container).decode("utf-8", "replace").splitlines()
            words = "\n".join(f"  {tool.visible(line)}" for line in printed[-tool.LAST_LINES :])
            if status != 0:
                raise tool.ToolFailed(
                    f"{what} in a container ended with status {status}; it printed last:\n{words}",
                    words,
                    hint="This interpreter does not run on this base; name a base that has the "
                    'Python: [image] base = "NAME@sha256:..." in sealrun.toml.',
                )
            back = scratch / "bytecode.tar"
            _receive(engine, container, back)
        finally:
            engine.remove_container(container, force=True, v=True)
    name = tool.visible(printed[-1]) if printed else "nothing"
    return name, _members(back, sources)


def _room() -> bytes:
    """Return an archive with the directory that bytecode is written to."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(_DIRECTORY)
        info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, MTIME
        info.uid = info.gid = _USER
        archive.addfile(info)
    return out.getvalue()


def _receive(engine: Any, container: str, into: Path) -> None:  # noqa: ANN401 - docker-py ships no types
    stream, _ = engine.get_archive(container, f"/{_DIRECTORY}")
    size = 0
    with into.open("wb") as file:
        for chunk in stream:
            size += len(chunk)
            if size > _LARGEST:
                raise EnvironmentFault("a standard library's bytecode has more than 1 GiB")
            file.write(chunk)


def _members(archive: Path, sources: Collection[bytes]) -> Generator[normal.Member]:
    try:
        with tarfile.open(archive) as opened:
            for info in opened:
                if info.isdir():
                    continue
                yield _member(opened, info, sources)
    except tarfile.TarError as error:
        raise EnvironmentFault(f"the bytecode that came back cannot be read: {error}") from error


def _member(
    archive: tarfile.TarFile, info: tarfile.TarInfo, sources: Collection[bytes]
) -> normal.Member:
    place = place_of(os.fsencode(info.name))
    content = archive.extractfile(info) if info.isreg() else None
    if content is None or place is None or place[1] not in sources:
        raise EnvironmentFault(
            f"compiling a standard library left {tool.visible(info.name)}, which it must not"
        )
    compiled = content.read()
    if compiled[4:8] != _UNCHECKED:
        raise EnvironmentFault(f"{tool.visible(info.name)} is no bytecode of the form asked for")
    return normal.file(place[0], compiled)


def place_of(name: bytes) -> tuple[bytes, bytes] | None:
    """Return where a bytecode file that came back belongs, and its source; None: it is none.

    CPython writes ``PREFIX/directory/name.cpython-310.pyc`` for ``directory/name.py`` below a
    ``pycache_prefix`` (importlib, "cache_from_source").
    """
    inside = name.strip(b"/").removeprefix(_DIRECTORY.encode() + b"/")
    directory, _, file = inside.rpartition(b"/")
    stem, tag, end = file.rpartition(b".cpython-")
    if not stem or not tag or not end.endswith(b".pyc") or b".." in inside.split(b"/"):
        return None
    return b"%b/__pycache__/%b" % (directory, file), b"%b/%b.py" % (directory, stem)
