"""The one file that a bundle is: a tar, compressed or not, that is also an image archive.

Rules that this module keeps:

- Members are plain files with our own header, byte for byte; anything else (a link, a directory, a
  device, a long name, an extended header, owners, times) is refused, so no reader of tar's many
  features is needed.
- First the index, then the contents in the index's order under ``blobs/sha256/``, then what makes
  the images readable to others: ``oci-layout``, ``index.json``, ``manifest.json``. These follow
  from the index and are compared with what follows.
- What a file may unfold to is bounded by its own size: highly compressible contents are written
  without compression, so that a bundle of ours never looks like a bomb.
- A bundle appears under its name only when it is whole, and at first its owner alone can read it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import secrets
import stat
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, cast

from sealrun.errors import StorageFault
from sealrun.image import tar
from sealrun.image.config import canonical
from sealrun.image.store import CHUNK
from sealrun.provenance.bundle.index import LARGEST, from_json, to_json
from sealrun.provenance.faults import BadBundle

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from sealrun.provenance.bundle.index import Content, Index

INDEX: Final = b"bundle.json"
_BLOBS = b"blobs/sha256/"
_MODE = 0o644
_GZIP = b"\x1f\x8b"
#: What a compressed file may unfold to: so many bytes, and so many times its own size.
SLACK: Final = 64 << 20
RATIO: Final = 64
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def blob(digest: str) -> bytes:
    """Return the name of a content's member."""
    return _BLOBS + digest.encode()


def names(index: Index) -> list[tuple[bytes, bytes]]:
    """Return the members that let others read the images: OCI image layout and ``docker save``'s."""
    sizes = {one.digest: one.size for one in index.contents}
    entries: list[dict[str, object]] = []
    docker: list[dict[str, object]] = []
    for run in index.runs:
        if run.image is None:
            continue
        reference = f"sealrun-run:{run.run.lower()}"
        entries.append(
            {
                "annotations": {
                    "io.containerd.image.name": f"docker.io/library/{reference}",
                    "org.opencontainers.image.ref.name": run.run.lower(),
                },
                "digest": f"sha256:{run.image.manifest}",
                "mediaType": _MANIFEST_TYPE,
                "size": sizes[run.image.manifest],
            }
        )
        docker.append(
            {
                "Config": blob(run.image.config).decode(),
                "Layers": [blob(layer.digest).decode() for layer in run.image.layers],
                "RepoTags": [reference],
            }
        )
    whole = {"manifests": entries, "mediaType": _INDEX_TYPE, "schemaVersion": 2}
    return [
        (b"oci-layout", canonical({"imageLayoutVersion": "1.0.0"})),
        (b"index.json", canonical(whole)),
        (b"manifest.json", canonical(docker)),
    ]


# -- writing ---------------------------------------------------------------------------------------


def write(
    file: Path, index: Index, read: Callable[[Content], Iterator[bytes]], *, level: int
) -> int:
    """Write a bundle; return its size.

    Args:
        file: where.
        index: what is in it.
        read: yields the bytes of a content, which must hash to its digest.
        level: of compression, 1 to 9.

    Raises:
        StorageFault: it cannot be written, or a content is not what the index says.
    """
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    total = sum(tar.BLOCK + one.size for one in index.contents)
    try:
        try:
            # It may hold private code, and values of variables: nobody else's until it is given away.
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with (
                os.fdopen(handle, "wb") as raw,
                gzip.GzipFile("", "wb", level, raw, mtime=0) as packed,
            ):
                _write(cast("IO[bytes]", packed), index, read)
            if total > _limit(draft.stat().st_size) - SLACK // 2:
                with draft.open("wb") as plain:
                    _write(plain, index, read)
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            size = draft.stat().st_size
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise StorageFault(
            f"the bundle {file} cannot be written: {error.strerror}",
            hint="Free space there or give another place with -o.",
        ) from error
    return size


def _write(out: IO[bytes], index: Index, read: Callable[[Content], Iterator[bytes]]) -> None:
    content = to_json(index)
    _member(out, INDEX, len(content), (content,))
    for one in index.contents:
        _member(out, blob(one.digest), one.size, _checked(one, read(one)))
    for name, content in names(index):
        _member(out, name, len(content), (content,))
    out.write(tar.END)


def _member(out: IO[bytes], name: bytes, size: int, chunks: Iterable[bytes]) -> None:
    out.write(tar.header(name, tar.FILE, _MODE, size))
    for chunk in chunks:
        out.write(chunk)
    out.write(tar.padding(size))


def _checked(one: Content, chunks: Iterator[bytes]) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    if digest.hexdigest() != one.digest or size != one.size:
        raise StorageFault(
            f"content {one.digest} changed while the bundle was written", hint="Export again."
        )


# -- reading ---------------------------------------------------------------------------------------


def _limit(size: int) -> int:
    return SLACK + RATIO * size


class Reader:
    """A bundle that is read from front to back, once. Made by ``opened``."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._left = limit
        content = b"".join(self._content(INDEX, None, LARGEST))
        self.index = from_json(content)
        total = sum(one.size for one in self.index.contents)
        if total > self._left:
            raise BadBundle(
                f"the bundle says that it unfolds to {total} bytes, more than {RATIO} times its size"
            )
        if to_json(self.index) != content:
            raise BadBundle("the bundle's index is not as sealrun writes it")

    def contents(self) -> Iterator[tuple[Content, Iterator[bytes]]]:
        """Yield each content with its bytes, which have to be taken before the next.

        The bytes' digest is checked at their end; what follows the last content at the very end.

        Raises:
            BadBundle: the file is cut off, was changed, or holds something else.
        """
        for one in self.index.contents:
            yield one, self._verified(one)
        for name, expected in names(self.index):
            if b"".join(self._content(name, len(expected), LARGEST)) != expected:
                raise BadBundle(f"{name.decode()} does not follow from the bundle's index")
        if self._take(len(tar.END)) != tar.END or self._read(1):
            raise BadBundle("something follows the end of the bundle")

    def _verified(self, one: Content) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for chunk in self._content(blob(one.digest), one.size, one.size):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != one.digest:
            raise BadBundle(f"content {one.digest} was changed: it has another digest")

    def _content(self, name: bytes, size: int | None, largest: int) -> Iterator[bytes]:
        header = self._take(tar.BLOCK)
        found, length = _plain(header)
        if found != name:
            raise BadBundle(f"the bundle holds {_shown(found)} where {_shown(name)} belongs")
        if length > largest:
            raise BadBundle(f"{_shown(name)} has {length} bytes in the bundle, which is too many")
        if size is not None and length != size:
            raise BadBundle(f"{_shown(name)} has {length} bytes in the bundle instead of {size}")
        left = length
        while left:
            chunk = self._take(min(left, CHUNK))
            left -= len(chunk)
            yield chunk
        if self._take(-length % tar.BLOCK).strip(b"\0"):
            raise BadBundle(f"something is hidden behind {_shown(name)}")

    def _take(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise BadBundle(
                f"the bundle unfolds to more than {RATIO} times its size and {SLACK} bytes"
            )
        content = self._read(size)
        if len(content) < size:
            raise BadBundle("the bundle is cut off")
        return content

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadBundle(f"the bundle is cut off or damaged: {error}") from error


@contextmanager
def opened(file: Path) -> Generator[Reader]:
    """Open a bundle for reading.

    Raises:
        BadBundle: it is none.
        StorageFault: it cannot be read.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StorageFault(f"the bundle {file} cannot be read: {error.strerror}") from error
    with os.fdopen(handle, "rb") as raw:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadBundle(f"{file} is no regular file")
        size = os.fstat(handle).st_size
        packed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw, mode="rb") if packed else raw
        yield Reader(stream, _limit(size))


def _plain(header: bytes) -> tuple[bytes, int]:
    """Return name and size of a member whose header is one of ours."""
    name, kind = header[:100].rstrip(b"\0"), header[156:157]
    if kind != tar.FILE:
        what = {tar.SYMLINK: "a symbolic link", b"1": "a hard link", tar.DIRECTORY: "a directory"}
        if header == bytes(tar.BLOCK):
            raise BadBundle("the bundle ends too early")
        raise BadBundle(f"{_shown(name)} in the bundle is {what.get(kind, 'no plain file')}")
    try:
        size = int(header[124:135], 8) if header[124] < 128 else int.from_bytes(header[125:136])  # noqa: PLR2004 - GNU's mark of base 256
    except ValueError as error:
        raise BadBundle(f"{_shown(name)} in the bundle has no size") from error
    if tar.header(name, tar.FILE, _MODE, size) != header:
        raise BadBundle(f"{_shown(name)} in the bundle has another header than sealrun writes")
    return name, size


def _shown(name: bytes) -> str:
    return repr(name[:100].decode("utf-8", "backslashreplace"))
