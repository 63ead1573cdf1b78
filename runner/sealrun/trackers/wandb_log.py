"""The file that the client of Weights & Biases keeps of a run: read, sifted, written anew.

Rules that this module keeps:

- The framing is LevelDB's log (leveldb/doc/log_format.md) behind seven bytes of the client's own, with
  zlib's CRC-32 in place of CRC-32C; a record is a protobuf message ``Record``
  (wandb/proto/wandb_internal.proto), whose field numbers protobuf keeps for ever.
- What makes a client read files, run something or write to somebody is left out: artifacts and
  TensorBoard directories name paths of the machine that uploads. What is not known is left out too.
- What sealrun says comes last, so that nothing that the experiment logged under that name stands.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sealrun.secrets import Key, keys, variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
_BLOCK, _FRAME = 32768, struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
#: Bytes of one record; records of one log.
LARGEST, MOST = 64 << 20, 10_000_000

# Fields of Record.
_NUMBER, _CONFIG, _SUMMARY, _FILES, _RUN, _EXIT = 1, 5, 3, 6, 17, 18
#: history, summary, output, config, files, statistics, telemetry, metric, output; run, exit, final;
#: header, footer, preemption, environment, output.
_KEPT = {2, 3, 4, 5, 6, 7, 11, 12, 13, 17, 18, 20, 21, 22, 23, 26, 27}
#: Of these the console, and the machine with the command's arguments.
_PRINTED = {4, 13, 26}
#: Bytes of them that are looked at for keys.
_SAID = 4 << 20
#: No kinds: number, control, identity, and the client's own notes.
_BESIDE = {1, 16, 19, 200}
_LEFT_OUT = {8: "artifact", 9: "TensorBoard directory", 10: "alert", 25: "use of an artifact"}
# Fields of RunRecord, of ConfigRecord and SummaryRecord, of their items, and of FilesRecord.
_RUN_ID, _ENTITY, _PROJECT, _RUN_CONFIG, _TAGS = 1, 2, 3, 4, 10
_UPDATE, _KEY, _NESTED_KEY, _VALUE = 1, 1, 2, 16
_FILE, _PATH = 1, 1

#: Under which sealrun's own facts stand in a run's config and summary, and how its tags begin.
NAME = "sealrun"


class Malformed(ValueError):
    """It is no log of that client; the text says what is wrong."""


class Source(Protocol):
    """Where bytes are read from."""

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer at the end."""
        ...


class Sink(Protocol):
    """Where bytes are written to."""

    def write(self, content: bytes, /) -> int:
        """Write them."""
        ...


@dataclass
class Sifted:
    """What became of a log.

    Attributes:
        name: the run's id in the tracker.
        left_out: kinds of records that are not in the copy, with their number.
        keys: of config, console and arguments, what looks like one, with where it stands.
        cut: why the end is missing, where it is: an experiment that was killed leaves such logs.
    """

    name: str | None = None
    project: str | None = None
    entity: str | None = None
    left_out: Counter[str] = field(default_factory=Counter[str])
    keys: list[tuple[str, Key]] = field(default_factory=list[tuple[str, Key]])
    cut: str | None = None


class _Said:
    """What the experiment printed and was called with, up to a bound, to look for keys in it."""

    def __init__(self) -> None:
        self._text = bytearray()

    def take(self, kind: int, content: bytes) -> None:
        if kind in _PRINTED and len(self._text) < _SAID:
            # The framing of protobuf is no text; what stands in it is, and ends its line.
            self._text += content.replace(b"\0", b" ") + b"\n"

    def keys(self) -> Iterator[tuple[str, Key]]:
        for key in keys(bytes(self._text)):
            yield "printed or called with", key


def sift(source: Source, sink: Sink, facts: Mapping[str, object], tags: Sequence[str]) -> Sifted:
    """Copy a log: what is harmless of it, and sealrun's facts before its end.

    Args:
        source: the log; read to its end.
        sink: where the copy goes.
        facts: JSON values that go into config and summary under ``NAME``.
        tags: that the run gets.

    Raises:
        Malformed: it does not begin like such a log.
    """
    sifted, writer, printed = Sifted(), _Writer(sink), _Said()
    ours, said = list(_said(facts)), False
    records = _records(source)
    for record in records:
        if isinstance(record, Malformed):
            sifted.cut = str(record)
            continue
        try:
            kept = _sifted(record, sifted, tags)
        except Malformed:
            sifted.left_out["unreadable record"] += 1
            continue
        if kept is None:
            continue
        kind, content = kept
        if kind == _EXIT and not said:
            said = True
            for one in ours:
                writer.write(one)
        if said and kind in (_CONFIG, _SUMMARY, _RUN):
            sifted.left_out["record after the end"] += 1
            continue
        printed.take(kind, content)
        writer.write(content)
    if not said:
        for one in ours:
            writer.write(one)
    sifted.keys += printed.keys()
    return sifted


def _said(facts: Mapping[str, object]) -> Iterator[bytes]:
    value = json.dumps(facts).encode()
    item = _put(_KEY, NAME.encode()) + _put(_VALUE, value)
    for kind in (_CONFIG, _SUMMARY):
        yield _put(kind, _put(_UPDATE, item))


def _sifted(record: bytes, sifted: Sifted, tags: Sequence[str]) -> tuple[int, bytes] | None:
    """Return a record's kind and its bytes as they are kept; None where it is left out."""
    fields = list(_fields(record))
    kinds = [number for number, _ in fields if number not in _BESIDE]
    if len(kinds) != 1 or kinds[0] not in _KEPT:
        name = _LEFT_OUT.get(kinds[0], "other record") if len(kinds) == 1 else "other record"
        sifted.left_out[name] += 1
        return None
    kind = kinds[0]
    content = _message(next(value for number, value in fields if number == kind))
    if kind == _RUN:
        if sifted.name is not None:
            sifted.left_out["second run"] += 1
            return None
        changed = _run(content, sifted, tags)
    elif kind == _FILES:
        changed = b"".join(
            _put(number, value)
            for number, value in _fields(content)
            if number == _FILE and _stays_below(_text(_last(value, _PATH)))
        )
    else:
        if kind == _CONFIG:
            _look_for_keys(content, sifted)
        return kind, record
    beside = b"".join(_put(number, value) for number, value in fields if number in _BESIDE)
    return kind, beside + _put(kind, changed)


def _run(content: bytes, sifted: Sifted, tags: Sequence[str]) -> bytes:
    kept = b""
    for number, value in _fields(content):
        if number == _RUN_ID:
            sifted.name = _text(value)
        elif number == _PROJECT:
            sifted.project = _text(value)
        elif number == _ENTITY:
            sifted.entity = _text(value)
        elif number == _RUN_CONFIG:
            _look_for_keys(_message(value), sifted)
        if number != _TAGS or not _text(value).startswith(f"{NAME}-"):
            kept += _put(number, value)
    return kept + b"".join(_put(_TAGS, tag.encode()) for tag in tags)


def _look_for_keys(content: bytes, sifted: Sifted) -> None:
    for number, item in _fields(content):
        if number != _UPDATE:
            continue
        names = [_text(v) for n, v in _fields(_message(item)) if n in (_KEY, _NESTED_KEY)]
        value = _text(_last(item, _VALUE)).strip('"')
        key = variable(names[-1], value) if names else None
        if key is not None:
            sifted.keys.append((f"config {'.'.join(names)}", key))


def _stays_below(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/")


# -- framing -------------------------------------------------------------------------------------------


def _records(source: Source) -> Iterator[bytes | Malformed]:
    """Yield each whole record; at the first fault the fault, and read on without looking."""
    block = source.read(len(_HEADER))
    if block != _HEADER:
        raise Malformed("it does not begin like a log of wandb")
    # The header belongs to the first block.
    size, count = _BLOCK - len(_HEADER), 0
    pending: bytearray | None = None
    fault: Malformed | None = None
    while block := source.read(size):
        size = _BLOCK
        for kind, data in () if fault else _frames(block):
            if kind == 0:
                fault = Malformed("its end is missing or damaged")
            elif (kind in (_FULL, _FIRST)) != (pending is None):
                fault = Malformed("its records are out of order")
            else:
                pending = bytearray() if pending is None else pending
                pending += data
                if len(pending) > LARGEST or count > MOST:
                    fault = Malformed("a record is too large, or they are too many")
                elif kind in (_FULL, _LAST):
                    yield bytes(pending)
                    pending, count = None, count + 1
            if fault:
                yield fault
                break


def _frames(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes of each fragment of a block; type 0 for one that cannot be believed."""
    at = 0
    while at + _FRAME.size <= len(block):
        crc, length, kind = _FRAME.unpack_from(block, at)
        data = block[at + _FRAME.size : at + _FRAME.size + length]
        at += _FRAME.size + length
        good = kind in (_FULL, _FIRST, _MIDDLE, _LAST) and len(data) == length
        if not good or zlib.crc32(bytes([kind]) + data) != crc:
            yield 0, b""
            return
        yield kind, data


class _Writer:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._at = sink.write(_HEADER)

    def write(self, record: bytes) -> None:
        view, first = memoryview(record), True
        while first or view:
            room = _BLOCK - self._at % _BLOCK
            if room < _FRAME.size:
                self._at += self._sink.write(bytes(room))
                continue
            data, view = bytes(view[: room - _FRAME.size]), view[room - _FRAME.size :]
            kind = (_FULL if not view else _FIRST) if first else (_LAST if not view else _MIDDLE)
            frame = _FRAME.pack(zlib.crc32(bytes([kind]) + data), len(data), kind)
            self._at += self._sink.write(frame + data)
            first = False


# -- protobuf's wire format (protobuf.dev/programming-guides/encoding) -----------------------------------

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_LARGEST_NUMBER = (1 << 29) - 1
Value = bytes | int | tuple[int, bytes]


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yield each field's number and value: bytes, a number, or a fixed number with its wire type."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= _LARGEST_NUMBER:
            # A reader that keeps 32 bits of it would see another field.
            raise Malformed("a field has a number that protobuf does not have")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire == _BYTES:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise Malformed("a field is longer than its message")
            yield number, message[at : at + length]
            at += length
        elif wire in (_FIXED_64, _FIXED_32):
            length = 8 if wire == _FIXED_64 else 4
            yield number, (wire, message[at : at + length])
            at += length
        else:
            raise Malformed("a field is of a type that protobuf does not have")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:  # noqa: PLR2004 - a varint has 64 bits
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004 - the last byte has no continuation bit
            return value, at
    raise Malformed("a number does not end")


def _number(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _put(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    if isinstance(value, tuple):
        return _number(number << 3 | value[0]) + value[1]
    return _number(number << 3 | _BYTES) + _number(len(value)) + value


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise Malformed("a field is no message")
    return value


def _last(value: Value, number: int) -> Value:
    """Return a field as every reader of protobuf takes it: of several, the last."""
    return ([b""] + [v for n, v in _fields(_message(value)) if n == number])[-1]


def _text(value: Value) -> str:
    return _message(value).decode("utf-8", "backslashreplace")
