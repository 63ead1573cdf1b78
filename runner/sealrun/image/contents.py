"""What a base holds, found by reading its layers: its Python, its C library, its packages.

Rules that this module keeps:

- Nothing of a base is ever run to learn about it.
- A base's layers are somebody else's data: names, links, sizes and compression are bounded, links
  are followed inside the base alone, and what does not fit a pattern is not known.
- Layers are merged as the OCI image specification says ("Whiteouts"): ``.wh.NAME`` hides NAME,
  ``.wh..wh..opq`` hides everything that lower layers put into its directory.
"""

from __future__ import annotations

import json
import re
import tarfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import EnvironmentFault
from sealrun.image.model import Package
from sealrun.image.store import open_layer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from sealrun.image.model import Layer

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
#: Links followed before a path is called a loop, as Linux does (path_resolution(7)).
_LINKS = 40
#: Bytes of the largest file that is read whole: a libpython has about 30 MB.
_READ_LIMIT = 256 << 20
#: Where interpreters stand, in the order that an image's PATH finds them.
_PYTHONS = ("usr/local/bin", "usr/bin", "opt/conda/bin", "opt/venv/bin", "bin")
_VERSION = rb"3\.\d{1,2}\.\d{1,3}"


@dataclass(frozen=True)
class Interpreter:
    """A base's Python.

    Attributes:
        version: ``3.11.2``.
        path: absolute, not resolved: where the base's own links lead to it.
    """

    version: str
    path: str


class Contents:
    """The merged files of a base's layers; open it with ``reading``."""

    def __init__(self, archives: Sequence[tarfile.TarFile], where: str) -> None:
        self._where = where
        self._files: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}
        for archive in archives:
            try:
                self._merge(archive)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise EnvironmentFault(
                    f"a layer of {where} is not a readable tar: {error}"
                ) from error

    def _merge(self, archive: tarfile.TarFile) -> None:
        added: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}
        hidden: set[str] = set()
        emptied: set[str] = set()
        for info in archive:
            path = info.name.removeprefix("./").strip("/")
            parent, _, name = path.rpartition("/")
            if name == _OPAQUE:
                emptied.add(parent)
            elif name.startswith(_WHITEOUT):
                hidden.add(f"{parent}/{name.removeprefix(_WHITEOUT)}".strip("/"))
            else:
                added[path] = (archive, info)
        if hidden or emptied:
            self._files = {
                path: found
                for path, found in self._files.items()
                if not _hides(path, hidden, emptied)
            }
        replaced = {
            path
            for path, (_, info) in added.items()
            if not info.isdir() and path in self._files and self._files[path][1].isdir()
        }
        if replaced:
            self._files = {p: f for p, f in self._files.items() if not _hides(p, replaced, set())}
        self._files |= added

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted; empty where there is none."""
        resolved = self.resolve(directory)
        if resolved is None:
            return []
        prefix = resolved + "/" if resolved else ""
        below = (path[len(prefix) :] for path in self._files if path.startswith(prefix))
        return sorted({path.split("/", 1)[0] for path in below} - {""})

    def exists(self, path: str) -> bool:
        """Say whether a path leads to something."""
        return self.resolve(path) is not None

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, links followed inside the base; None where there is none."""
        resolved = self.resolve(path)
        found = self._files.get(resolved or "")
        if found is None or not (found[1].isreg() or found[1].islnk()):
            return None
        archive, info = found
        if info.size > _READ_LIMIT:
            return None
        try:
            content = archive.extractfile(info)
            return content.read() if content else None
        except (tarfile.TarError, KeyError, RecursionError) as error:
            raise EnvironmentFault(f"{path} in {self._where} cannot be read: {error}") from error

    def resolve(self, path: str) -> str | None:
        """Return where a path leads inside the base, links followed; None: nowhere."""
        left = [part for part in reversed(path.split("/")) if part]
        here: list[str] = []
        links = 0
        while left:
            part = left.pop()
            if part in (".", ".."):
                here = here[:-1] if part == ".." else here
                continue
            here.append(part)
            found = self._files.get("/".join(here))
            if found and found[1].issym():
                links += 1
                if links > _LINKS:
                    return None
                target = found[1].linkname
                here = [] if target.startswith("/") else here[:-1]
                left += [part for part in reversed(target.split("/")) if part]
        resolved = "/".join(here)
        if resolved in self._files or not resolved:
            return resolved
        prefix = resolved + "/"
        return resolved if any(name.startswith(prefix) for name in self._files) else None


def _hides(path: str, hidden: set[str], emptied: set[str]) -> bool:
    if path in hidden:
        return True
    while "/" in path:
        path = path.rpartition("/")[0]
        if path in hidden or path in emptied:
            return True
    return "" in emptied


@contextmanager
def reading(layers: Iterable[Layer], where: str) -> Generator[Contents]:
    """Open a base's layers for reading.

    Args:
        layers: from the bottom up.
        where: what the base is called in an error.

    Raises:
        EnvironmentFault: a layer is not a tar archive.
    """
    with ExitStack() as stack:
        archives: list[tarfile.TarFile] = []
        for layer in layers:
            try:
                file = stack.enter_context(open_layer(layer))
                archives.append(stack.enter_context(tarfile.open(fileobj=file, mode="r:")))
            except (tarfile.TarError, OSError) as error:
                raise EnvironmentFault(f"a layer of {where} is not a tar: {error}") from error
        yield Contents(archives, where)


def find_python(contents: Contents) -> Interpreter | None:
    """Find the interpreter that ``python3`` would be, and its full version.

    The version comes from the header ``patchlevel.h``, else from the bytes of the interpreter or
    its library, which hold it as text.
    """
    for directory in _PYTHONS:
        path = f"{directory}/python3"
        resolved = contents.resolve(path)
        if resolved is None:
            continue
        match = re.search(r"python3\.\d+$", resolved)
        minor = match[0] if match else _library_name(contents, directory)
        version = minor and _full_version(contents, directory, minor, resolved)
        if version:
            return Interpreter(version, "/" + path)
    return None


def _library_name(contents: Contents, directory: str) -> str | None:
    prefix = directory.rpartition("/")[0]
    names = [n for n in contents.names(f"{prefix}/lib") if re.fullmatch(r"python3\.\d+", n)]
    return names[0] if len(names) == 1 else None


def _full_version(contents: Contents, directory: str, name: str, resolved: str) -> str | None:
    prefix = directory.rpartition("/")[0]
    header = contents.read(f"{prefix}/include/{name}/patchlevel.h") or b""
    if match := re.search(rb'#define\s+PY_VERSION\s+"(' + _VERSION + rb")", header):
        return match[1].decode()
    minor = re.escape(name.removeprefix("python").encode())
    for candidate in (resolved, f"{prefix}/lib/lib{name}.so.1.0"):
        found = set(
            re.findall(rb"\0(" + minor + rb"\.\d{1,3})\+?\0", contents.read(candidate) or b"")
        )
        if len(found) == 1:
            return found.pop().decode()  # type: ignore[no-any-return]  # findall of one group
    return None


def find_libc(contents: Contents, architecture: str) -> str | None:
    """Find the C library that wheels would be linked against: ``glibc-2.36`` or ``musl-1.2``."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture, architecture)
    for directory in (
        f"lib/{machine}-linux-gnu",
        f"usr/lib/{machine}-linux-gnu",
        "lib64",
        "usr/lib",
    ):
        content = contents.read(f"{directory}/libc.so.6") or b""
        if match := re.search(rb"GNU C Library[^\0\n]*version (\d+\.\d+)", content):
            return f"glibc-{match[1].decode()}"
    content = contents.read(f"lib/ld-musl-{machine}.so.1") or b""
    if match := re.search(rb"\0(1\.\d+)\.\d+\0", content):
        return f"musl-{match[1].decode()}"
    return None


def find_packages(contents: Contents) -> tuple[Package, ...]:
    """List the packages that the base's own databases name: dpkg's, apk's and conda's.

    Hashes are known for conda alone; the others' databases do not keep the archive's.
    """
    found = [*_dpkg(contents), *_apk(contents), *_conda(contents)]
    return tuple(sorted(found, key=lambda package: (package.name, package.version)))


def _dpkg(contents: Contents) -> list[Package]:
    texts = [contents.read("var/lib/dpkg/status")]
    # Distroless images keep one file a package there.
    names = contents.names("var/lib/dpkg/status.d")
    texts += [contents.read(f"var/lib/dpkg/status.d/{n}") for n in names if "." not in n]
    found: list[Package] = []
    for text in texts:
        for paragraph in (text or b"").decode("utf-8", "replace").split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", paragraph, re.MULTILINE))
            if len(fields) >= 2 and fields.get("Status", "x installed").endswith(" installed"):  # noqa: PLR2004 - a name and a version
                found.append(Package(fields["Package"], fields["Version"]))
    return found


def _apk(contents: Contents) -> list[Package]:
    text = (contents.read("lib/apk/db/installed") or b"").decode("utf-8", "replace")
    pairs = re.findall(r"^P:(.*)\nV:(.*)$", text, re.MULTILINE)
    return [Package(name, version) for name, version in pairs]


def _conda(contents: Contents) -> list[Package]:
    found: list[Package] = []
    for name in contents.names("opt/conda/conda-meta"):
        if not name.endswith(".json"):
            continue
        try:
            document = json.loads(contents.read(f"opt/conda/conda-meta/{name}") or b"")
            found.append(
                Package(str(document["name"]), str(document["version"]), document.get("sha256"))
            )
        except (ValueError, KeyError, TypeError):
            continue
    return found
