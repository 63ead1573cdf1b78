"""Is a file of ``__pycache__`` what its source compiles to?

Rules that this module keeps:

- Bytecode that Python would run instead of its source is compared with what the source compiles to;
  what Python would not run (another time or size in its header, no source) is harmless.
- Nothing of the bytecode is ever loaded: ``marshal.loads`` is not safe against made-up data, so the
  format is read here, bounded, and compared piece by piece. File names in it do not count.
- The source is compiled in another process, by an interpreter of the same bytecode version from outside
  the workspace, isolated; a crash or a source that takes too long is no answer.
- No interpreter, no judgement: ``unverified`` is never taken for a match.
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import stat
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sealrun.importable import source_of
from sealrun.workspace import read_bounded

#: Bytes of source and of bytecode that are judged, and seconds that compiling may take.
LIMIT = 8 << 20
PATIENCE = 10.0
_HEADER = 16
_DEPTH = 200
#: One request: level of optimisation, length of source; the answer: length of bytecode, or an error.
_COMPILER = """
import marshal, struct, sys
inp, out = sys.stdin.buffer, sys.stdout.buffer
while len(head := inp.read(5)) == 5:
    level, size = struct.unpack("<BI", head)
    source = inp.read(size)
    try:
        code = compile(source, "<source>", "exec", dont_inherit=True, optimize=level)
        answer = marshal.dumps(code)
        out.write(struct.pack("<i", len(answer)) + answer)
    except Exception:
        out.write(struct.pack("<i", -1))
    out.flush()
"""


class Judgement(StrEnum):
    """What a cached file of bytecode is."""

    MATCHES = "matches"
    UNUSED = "unused"
    FORGED = "forged"
    UNVERIFIED = "unverified"


@dataclass(frozen=True)
class Cached:
    """A judged file.

    Attributes:
        header: its first 16 bytes: version, flags, and which state of the source it claims.
        digest: sha256 of the whole file.
    """

    judgement: Judgement
    header: bytes = b""
    digest: str = ""


class Bytecode:
    """Judges cached bytecode of one workspace; keeps one compiler process an interpreter."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._compilers: dict[str, _Compiler | None] = {}

    def close(self) -> None:
        """End the compilers."""
        for compiler in self._compilers.values():
            if compiler is not None:
                compiler.end()
        self._compilers.clear()

    def judge(self, path: bytes) -> Cached:
        """Judge one file.

        Args:
            path: relative to the workspace.
        """
        content = read_bounded(self._workspace, path, LIMIT + 1)
        named = source_of(path)
        if content is None or len(content) < _HEADER:
            # Python compiles anew where it cannot read a header.
            return Cached(Judgement.UNUSED)
        digest = hashlib.sha256(content).hexdigest()
        header = content[:_HEADER]
        if named is None:
            return Cached(Judgement.UNVERIFIED, header, digest)
        source, tag, level = named
        text = read_bounded(self._workspace, source, LIMIT + 1)
        if text is None or not self._used(header, source):
            return Cached(Judgement.UNUSED, header, digest)
        if max(len(text), len(content)) > LIMIT:
            return Cached(Judgement.UNVERIFIED, header, digest)
        return Cached(self._compare(content, text, tag, level), header, digest)

    def _used(self, header: bytes, source: bytes) -> bool:
        """Whether Python would take this file for its source's (importlib, PEP 552)."""
        flags, time_, size = struct.unpack("<III", header[4:])
        if flags & ~0b11:
            return False
        if flags & 1:
            # Hash-based. A checked one of another source is compiled anew; to be on the safe side
            # it is compared all the same: an honest one of an earlier source is rare.
            return True
        try:
            status = os.lstat(os.fsencode(self._workspace) + b"/" + source)
        except OSError:
            return False
        return bool(
            time_ == int(status.st_mtime) & 0xFFFFFFFF and size == status.st_size & 0xFFFFFFFF
        )

    def _compare(self, content: bytes, source: bytes, tag: str, level: int) -> Judgement:
        compiler = self._compiler(tag)
        if compiler is None or compiler.magic != content[:4]:
            return Judgement.UNVERIFIED
        wanted = compiler.compile(source, level)
        if wanted is None:
            return Judgement.UNVERIFIED
        if wanted == content[_HEADER:]:
            return Judgement.MATCHES
        version = _version(tag)
        try:
            same = parse(wanted, version) == parse(content[_HEADER:], version)
        except (ValueError, IndexError, struct.error, RecursionError):
            return Judgement.FORGED
        return Judgement.MATCHES if same else Judgement.FORGED

    def _compiler(self, tag: str) -> _Compiler | None:
        known = self._compilers.get(tag)
        if known is not None and known.alive:
            return known
        if tag in self._compilers and known is None:
            return None
        program = self._interpreter(tag)
        self._compilers[tag] = made = None if program is None else _Compiler.start(program)
        return made

    def _interpreter(self, tag: str) -> str | None:
        if tag == sys.implementation.cache_tag:
            return sys.executable
        number = tag.removeprefix("cpython-")
        if number == tag or not number.isdecimal():
            return None
        program = shutil.which(f"python{number[0]}.{number[1:]}")
        return program if program is not None and self._trusted(Path(program)) else None

    def _trusted(self, program: Path) -> bool:
        """Whether nobody but root and ourselves can have put a program where it is."""
        real = program.resolve()
        if real.is_relative_to(self._workspace):
            return False
        for place in (real, *real.parents):
            status = place.stat()
            shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if status.st_uid not in (0, os.geteuid()) or (shared and not status.st_mode & 0o1000):
                return False
        return True


class _Compiler:
    """An isolated interpreter that compiles what it is given."""

    def __init__(self, process: subprocess.Popen[bytes], magic: bytes) -> None:
        self._process = process
        self.magic = magic
        self.alive = True

    @classmethod
    def start(cls, program: str) -> _Compiler | None:
        """Start one; None where it cannot be started."""
        isolated = (program, "-I", "-S", "-B", "-c")
        ask = "import sys, _imp, importlib.util as u; sys.stdout.buffer.write(u.MAGIC_NUMBER)"
        try:
            magic = subprocess.run(
                [*isolated, ask], cwd="/", capture_output=True, timeout=PATIENCE, check=True
            ).stdout
            process = subprocess.Popen(
                [*isolated, _COMPILER],
                cwd="/",
                env={},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # the user's Ctrl-C is for the watch alone
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return cls(process, magic)

    def compile(self, source: bytes, level: int) -> bytes | None:
        """Return the marshalled code of a source; None where there is none."""
        pipe, answer = self._process.stdin, self._process.stdout
        if pipe is None or answer is None:  # pragma: no cover - both are pipes
            return None
        deadline = time.monotonic() + PATIENCE
        try:
            view = memoryview(struct.pack("<BI", level, len(source)) + source)
            while view:
                view = view[pipe.write(view) or 0 :]
            (size,) = struct.unpack("<i", self._read(answer.fileno(), 4, deadline))
            return None if size < 0 else self._read(answer.fileno(), size, deadline)
        except (OSError, EOFError):
            self.end()
            return None

    def end(self) -> None:
        """End the process."""
        self.alive = False
        self._process.kill()
        with suppress(OSError):
            self._process.communicate()

    @staticmethod
    def _read(handle: int, size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size:
            ready = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]
            chunk = os.read(handle, size) if ready else b""
            if not chunk:
                raise EOFError
            parts.append(chunk)
            size -= len(chunk)
        return b"".join(parts)


def _version(tag: str) -> tuple[int, int]:
    digits = "".join(filter(str.isdecimal, tag))
    return int(digits[:1] or 0), int(digits[1:] or 0)


def parse(data: bytes, version: tuple[int, int]) -> bytes:
    """Return a digest of marshalled data that is the same exactly when the code is.

    Each part is hashed once: data that refers to its own parts over and over unfolds nowhere.

    Args:
        data: as ``marshal.dumps`` writes it (format 4; CPython's Python/marshal.c).
        version: of the Python that wrote it; the fields of a code object differ between versions.

    Raises:
        ValueError: it is malformed, or nests too deeply.
        IndexError: it refers to something that is not there.
    """
    reader = _Marshal(data, version)
    value = reader.value(0)
    if reader.at != len(data):
        raise ValueError("bytes after the end")
    return value


class _Marshal:
    def __init__(self, data: bytes, version: tuple[int, int]) -> None:
        self.data, self.at = data, 0
        self.refs: list[bytes] = []
        if version >= (3, 11):
            # argcount posonlyargcount kwonlyargcount stacksize flags, code consts names
            # localsplusnames localspluskinds FILENAME name qualname, firstlineno, linetable exceptions
            self.layout = "iiiii" + "ooooo" + "f" + "oo" + "i" + "oo"
        elif version >= (3, 8):
            self.layout = "iiiiii" + "oooooo" + "f" + "o" + "i" + "o"
        else:
            raise ValueError("a version that is not known here")

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise ValueError("cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def value(self, depth: int) -> bytes:
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        byte = self.take(1)[0]
        kind, flag = chr(byte & 0x7F), byte & 0x80
        if kind == "r":
            return self.refs[self.number("<I")]
        place = len(self.refs)
        if flag:
            self.refs.append(b"")
        made = self._made(kind, depth)
        if flag:
            self.refs[place] = made
        return made

    def _made(self, kind: str, depth: int) -> bytes:  # noqa: C901, PLR0911 - one line a type
        if kind in "0NFTS.":
            return _joined(kind)
        if kind == "i":
            return _joined(kind, self.take(4))
        if kind == "l":
            size = self.number("<i")
            return _joined(kind, struct.pack("<i", size), self.take(2 * abs(size)))
        if kind in "gy":
            return _joined(kind, self.take(8 if kind == "g" else 16))
        if kind in "utaA":
            return _joined("u", self.take(self.number("<I")))
        if kind in "zZ":
            return _joined("u", self.take(self.number("<B")))
        if kind == "s":
            return _joined("s", self.take(self.number("<I")))
        if kind in "()":
            size = self.number("<I" if kind == "(" else "<B")
            return _joined("(", *self._several(size, depth))
        if kind in "<>":
            # A set's order follows the hashes of the process that wrote it.
            return _joined(kind, *sorted(self._several(self.number("<I"), depth)))
        if kind in "[:":
            return _joined(kind, *self._several(self.number("<I") if kind == "[" else 3, depth))
        if kind == "c":
            return _joined("c", *self._code(depth))
        raise ValueError(f"unknown type {kind!r}")

    def _several(self, size: int, depth: int) -> list[bytes]:
        if size > len(self.data) - self.at:
            raise ValueError("longer than the data")
        return [self.value(depth + 1) for _ in range(size)]

    def _code(self, depth: int) -> list[bytes]:
        found: list[bytes] = []
        for field in self.layout:
            if field == "i":
                found.append(self.take(4))
            else:
                value = self.value(depth + 1)
                if field == "o":
                    found.append(value)
        return found


def _joined(kind: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256(kind.encode("ascii"))
    for part in parts:
        digest.update(struct.pack("<Q", len(part)) + part)
    return digest.digest()
