"""The layer store: what an image is made of, kept as content-addressed data.

Rules that this module keeps:

- A stored file is named by the sha256 of its own bytes, and appears under that name only when it
  is complete: written beside it, hashed on the way, then linked into place. A death in between
  leaves a draft that the next writer removes, because the draft's lock died with its owner.
- A layer that is kept as data is compressed (``packed``); what is made again at any time is not. It
  is named by its plain bytes either way.
- A layer whose size is wrong is never handed out; its hash is checked by ``verify`` and whenever
  it is sent to an engine.
- Two processes may store the same layer at once: they write the same bytes.
- A record that cannot be read, or that names a layer which is gone or damaged, is no record: what
  it described is made again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sealrun.errors import StorageFault
from sealrun.image import packed
from sealrun.image.model import Base, Environment, Layer, Package, Platform

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from types import TracebackType
    from typing import BinaryIO

#: Bytes moved at once.
CHUNK = 1 << 20
#: Seconds that a draft may exist before anybody asks whether its writer still lives.
DRAFT_GRACE = 60.0
_DRAFT = ".draft"
_PREFIX = "sha256:"
#: Counts up when the meaning of a record changes; older records are then made again.
_RECORD_VERSION = 1


def sha256(content: bytes) -> str:
    """Return the digest of some bytes in OCI's notation, ``sha256:`` and 64 hexadecimal digits."""
    return _PREFIX + hashlib.sha256(content).hexdigest()


class LayerStore:
    """A directory of files that are named by their sha256."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, diff_id: str) -> Path:
        """Return where a layer stands, or would stand as data: its name then ends in ``.gz``."""
        name = diff_id.removeprefix(_PREFIX)
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):  # noqa: PLR2004 - 256 bits
            raise StorageFault(f"{diff_id!r} does not name a layer")
        compressed, plain = self.directory / f"{name}{packed.SUFFIX}", self.directory / name
        return compressed if compressed.exists() or not plain.exists() else plain

    def get(self, diff_id: str, size: int) -> Layer | None:
        """Return a stored layer, or None where it is missing or has another size than it must."""
        path = self.path(diff_id)
        return Layer(diff_id, size, path) if self.size(diff_id) == size else None

    def size(self, diff_id: str) -> int | None:
        """Return the plain bytes of a stored layer, or None where there is none that is whole."""
        path = self.path(diff_id)
        try:
            return packed.plain_size(path) if is_packed(path) else path.stat().st_size
        except OSError:
            return None

    def writer(self, *, durable: bool = True, expected: int | None = None) -> LayerWriter:
        """Open a layer for writing.

        Args:
            durable: it is data: compressed, and the disk has it afterwards; not needed for what is
                easily made again.
            expected: bytes of the whole layer, where known; a full disk's message tells them.

        Raises:
            StorageFault: nothing can be written here.
        """
        self._sweep()
        return LayerWriter(self, durable=durable, expected=expected)

    def verify(self, layer: Layer) -> None:
        """Hash a layer again.

        Raises:
            StorageFault: it is missing, unreadable, or its bytes are not those it is named by.
        """
        for _ in chunks(layer):
            pass

    def discard(self, layer: Layer) -> None:
        """Remove a layer; missing is fine."""
        layer.path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove drafts whose writers are dead: nobody holds their lock."""
        oldest = time.time() - DRAFT_GRACE
        for draft in self.directory.glob(f"*{_DRAFT}"):
            try:
                # The grace covers the moment between a draft's creation and its lock.
                if draft.stat().st_ctime > oldest:
                    continue
                handle = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink(missing_ok=True)
            except OSError:
                continue
            finally:
                os.close(handle)


def is_packed(path: Path) -> bool:
    """Tell whether a stored layer is compressed."""
    return path.suffix == packed.SUFFIX


def open_layer(layer: Layer) -> BinaryIO:
    """Open the plain bytes of a stored layer whose size is what it must be.

    Raises:
        StorageFault: it is missing, unreadable or of another size.
    """
    file = _opened(layer)
    return io.BufferedReader(file, CHUNK) if isinstance(file, packed.Reader) else file


def _opened(layer: Layer) -> packed.Reader | io.FileIO:
    try:
        if is_packed(layer.path):
            reader = packed.Reader(layer.path)
            file: packed.Reader | io.FileIO = reader
            found = reader.size
        else:
            file = layer.path.open("rb", buffering=0)
            found = os.fstat(file.fileno()).st_size
    except packed.Corrupt as error:
        raise _damaged(layer, str(error)) from error
    except OSError as error:
        raise StorageFault(
            f"the stored layer {layer.path} cannot be read: {error.strerror}",
            hint="Run the command again, or sealrun warm: it is then made anew.",
        ) from error
    if found != layer.size:
        file.close()
        raise _damaged(layer, f"it has {found} bytes instead of {layer.size}")
    return file


def chunks(layer: Layer) -> Iterator[bytes]:
    """Read a layer, checking its size before the first byte and its hash after the last.

    Raises:
        StorageFault: it is missing, unreadable or damaged.
    """
    for _, content in _pairs(layer):
        if content:
            yield content


def stored_chunks(layer: Layer) -> Iterator[bytes]:
    """Read a layer as it is stored, packed or not; its plain bytes are checked as ``chunks`` does.

    Raises:
        StorageFault: it is missing, unreadable or damaged.
    """
    for raw, _ in _pairs(layer):
        yield raw


def stored_size(layer: Layer) -> int:
    """Return the bytes that ``stored_chunks`` yields.

    Raises:
        StorageFault: the layer is missing or unreadable.
    """
    try:
        return layer.path.stat().st_size
    except OSError as error:
        raise StorageFault(
            f"the stored layer {layer.path} cannot be read: {error.strerror}"
        ) from error


def _pairs(layer: Layer) -> Iterator[tuple[bytes, bytes]]:
    """Yield stored and plain bytes of a layer side by side, checked at the end."""
    digest = hashlib.sha256()
    with _opened(layer) as file:
        try:
            pairs = file.members() if isinstance(file, packed.Reader) else _plainly(file)
            for raw, content in pairs:
                digest.update(content)
                yield raw, content
        except packed.Corrupt as error:
            raise _damaged(layer, str(error)) from error
        except OSError as error:
            raise StorageFault(
                f"cannot read the stored layer {layer.path}: {error.strerror}",
                hint="Check the disk; once the file is removed, sealrun warm or run makes it anew.",
            ) from error
    if _PREFIX + digest.hexdigest() != layer.diff_id:
        raise _damaged(layer, "its bytes do not hash to its name")


def _plainly(file: io.FileIO) -> Iterator[tuple[bytes, bytes]]:
    while chunk := file.read(CHUNK):
        yield chunk, chunk


@contextlib.contextmanager
def plain_file(layer: Layer, scratch: Path) -> Generator[Path]:
    """Yield a file with a layer's plain bytes, for readers that need a path; gone afterwards.

    Args:
        scratch: where it may lie meanwhile.

    Raises:
        StorageFault: the layer is missing or damaged, or there is no room.
    """
    if not is_packed(layer.path):
        yield layer.path
        return
    file = scratch / f"{secrets.token_hex(8)}.tar"
    try:
        try:
            with file.open("xb") as stream:
                for chunk in chunks(layer):
                    stream.write(chunk)
        except OSError as error:
            raise StorageFault(
                f"cannot unpack a layer to {file}: {error.strerror}",
                hint=f"It needs {layer.size} bytes, {_free(scratch)} are free there.",
            ) from error
        yield file
    finally:
        file.unlink(missing_ok=True)


class Damaged(StorageFault):
    """A stored layer is not what its name says."""


def _damaged(layer: Layer, detail: str) -> Damaged:
    return Damaged(
        f"the stored layer {layer.path} is damaged: {detail}",
        hint=f"Check the disk and remove {layer.path}; the next sealrun warm or run makes it anew.",
    )


class LayerWriter:
    """Writes one layer, hashing on the way; a context manager that leaves nothing behind.

    Use ``write`` any number of times, then ``commit``; without ``commit`` the draft is removed.
    """

    def __init__(self, store: LayerStore, *, durable: bool, expected: int | None) -> None:
        self.size = 0
        self._expected = expected
        self._store = store
        self._durable = durable
        self._packer = packed.Packer() if durable else None
        self._digest = hashlib.sha256()
        self._draft = store.directory / f"{secrets.token_hex(8)}{_DRAFT}"
        try:
            # Group and others get nothing: a layer may hold a private repository's files.
            self._handle = os.open(
                self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        except OSError as error:
            raise self._fault(error) from error

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            StorageFault: they do not fit; the draft is gone when the ``with`` block ends.
        """
        self._digest.update(chunk)
        reached = self.size + len(chunk)
        for piece in (chunk,) if self._packer is None else self._packer.feed(chunk):
            self._put(piece, reached)
        self.size = reached

    def _put(self, piece: bytes | bytearray | memoryview, reached: int) -> None:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError as error:
            raise self._fault(error, reached) from error

    def commit(self) -> Layer:
        """Put the layer into the store under its digest; return it.

        Raises:
            StorageFault: the disk does not take it.
        """
        diff_id = _PREFIX + self._digest.hexdigest()
        plain = self._store.directory / diff_id.removeprefix(_PREFIX)
        path = plain
        if self._packer is not None:
            path = plain.with_name(plain.name + packed.SUFFIX)
            for piece in self._packer.finish():
                self._put(piece, self.size)
        try:
            if self._durable:
                os.fsync(self._handle)
            os.fchmod(self._handle, 0o400)
            # Replacing, not linking: what stands there already has the same name, and where it was
            # damaged this heals it.
            self._draft.replace(path)
            if self._durable:
                _sync_directory(self._store.directory)
        except OSError as error:
            raise self._fault(error) from error
        return Layer(diff_id, self.size, path)

    def _fault(self, error: OSError, reached: int = 0) -> StorageFault:
        directory = self._store.directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFault(
                f"no space left for a layer in {directory}: it needs "
                f"{self._expected or f'at least {reached}'} bytes, {_free(directory)} are free",
                hint="Free space there (sealrun gc removes what no run needs), or set SEALRUN_HOME "
                "to another disk.",
            )
        return StorageFault(
            f"cannot write a layer in {directory}: {error.strerror}",
            hint="Fix the directory's permissions, or set SEALRUN_HOME to another place.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._packer is not None:
            self._packer.close()
        self._draft.unlink(missing_ok=True)
        os.close(self._handle)


def _free(directory: Path) -> int:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a small file as a whole, so that a reader sees the old bytes or the new ones.

    Args:
        path: the file.
        content: its new bytes.
        durable: wait until the disk has them; not needed for what is easily made again.

    Raises:
        StorageFault: it cannot be written; what stood there still stands there.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise StorageFault(
            f"cannot write {path}: {error.strerror}",
            hint=f"{_free(path.parent)} bytes are free there; free space or fix permissions.",
        ) from error


class Records:
    """Bases and environments by key: small JSON files that point into a layer store.

    Args:
        directory: where the records stand (``Places.bases``).
        layers: the store that their layers stand in (``Places.layers``).
    """

    def __init__(self, directory: Path, layers: LayerStore) -> None:
        self.directory = directory
        self.layers = layers

    def base(self, key: str) -> Base | None:
        """Return the base stored under a key, or None where it has to be made (again)."""
        document = self._read("base", key)
        try:
            return None if document is None else _base(document, self.layers)
        except (KeyError, TypeError, ValueError, AttributeError, _Stale):
            return None

    def put_base(self, key: str, base: Base) -> None:
        """Store a base under a key, in place of an earlier one.

        Raises:
            StorageFault: the record cannot be written.
        """
        self._write("base", key, base)

    def environment(self, key: str) -> Environment | None:
        """Return the environment stored under a key, or None where it has to be made (again)."""
        document = self._read("environment", key)
        try:
            return None if document is None else _environment(document, self.layers)
        except (KeyError, TypeError, ValueError, AttributeError, _Stale):
            return None

    def put_environment(self, key: str, environment: Environment) -> None:
        """Store an environment under a key, in place of an earlier one.

        Raises:
            StorageFault: the record cannot be written.
        """
        self._write("environment", key, environment)

    def _file(self, kind: str, key: str) -> Path:
        # Keys hold slashes and colons and may be long; the key itself stands in the record.
        return self.directory / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}.json"

    def _read(self, kind: str, key: str) -> Mapping[str, Any] | None:
        try:
            document = json.loads(self._file(kind, key).read_bytes())
            if (document["version"], document["kind"], document["key"]) == (
                _RECORD_VERSION,
                kind,
                key,
            ):
                return document[kind]  # type: ignore[no-any-return]  # narrowed by its reader
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def _write(self, kind: str, key: str, value: Base | Environment) -> None:
        document = {"version": _RECORD_VERSION, "kind": kind, "key": key, kind: asdict(value)}
        text = json.dumps(document, indent=1, sort_keys=True, default=_plain)
        write_atomically(self._file(kind, key), text.encode())


class _Stale(Exception):
    """A record names a layer that the store does not hold any more."""


def _plain(value: object) -> str:
    # The path of a layer follows from its digest and is not read back.
    if isinstance(value, Path):
        return value.name
    raise TypeError(type(value).__name__)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _text(value)


def _layer(document: Mapping[str, Any], layers: LayerStore) -> Layer:
    try:
        layer = layers.get(_text(document["diff_id"]), int(document["size"]))
    except StorageFault as error:
        raise _Stale from error
    if layer is None:
        raise _Stale
    return layer


def _packages(documents: list[Mapping[str, Any]]) -> tuple[Package, ...]:
    return tuple(
        Package(_text(d["name"]), _text(d["version"]), _optional(d["sha256"])) for d in documents
    )


def _base(document: Mapping[str, Any], layers: LayerStore) -> Base:
    platform = document["platform"]
    return Base(
        origin=_text(document["origin"]),
        platform=Platform(_text(platform["os"]), _text(platform["architecture"])),
        layers=tuple(_layer(d, layers) for d in document["layers"]),
        python=_optional(document["python"]),
        python_path=_optional(document["python_path"]),
        libc=_optional(document["libc"]),
        packages=_packages(document["packages"]),
    )


def _environment(document: Mapping[str, Any], layers: LayerStore) -> Environment:
    layer = document["layer"]
    return Environment(
        key=_text(document["key"]),
        source=_optional(document["source"]),
        layer=None if layer is None else _layer(layer, layers),
        variables={_text(k): _text(v) for k, v in document["variables"].items()},
        packages=_packages(document["packages"]),
    )
