"""Turns records into canonical, bounded JSON and back; all text in it may be hostile.

Rules that this module keeps:

- Canonical: keys sorted, no spaces, ASCII only. Equal records give equal bytes.
- Always valid JSON, for any reader: what Unicode text cannot hold (bytes that are not UTF-8, which
  Python keeps as U+DC80 to U+DCFF; any other lone surrogate) stands as U+FFFD and four hexadecimal
  digits; U+FFFD itself likewise. Reading gives back exactly what was written.
- A number that is not finite stands as the text ``NaN``, ``Infinity`` or ``-Infinity``.
- Bounded: a text holds at most ``TEXT_BOUND`` bytes of UTF-8, a list or mapping ``LIST_BOUND``
  bytes in all, unless the field's metadata says otherwise. What was cut is named in ``truncated``:
  field path -> how much there was (bytes of a text, elements of a list).
- Reading checks every type: a payload that does not fit its record is ``Misfit``, never a record.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union, cast

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Bytes of one text.
TEXT_BOUND = 64 << 10
#: Bytes of one list or mapping, its texts counted as UTF-8 and each element as 16 more.
LIST_BOUND = 1 << 20
#: Levels of nesting; deeper values are cut.
DEPTH_BOUND = 32

T = TypeVar("T")

#: What JSON can hold.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_ELEMENT = 16
_UNFIT = re.compile("[\ud800-\udfff\ufffd]")
_FITTED = re.compile("\ufffd([0-9A-F]{4})")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Misfit(ValueError):
    """A payload that does not fit its record."""


def fit(text: str) -> str:
    """Return a text that any JSON reader takes (see the module's rules)."""
    return _UNFIT.sub(lambda found: f"\ufffd{ord(found[0]):04X}", text)


def unfit(text: str) -> str:
    """Return the text that ``fit`` was given."""
    return _FITTED.sub(lambda found: chr(int(found[1], 16)), text)


def canonical(document: Json) -> str:
    """Return the one JSON text of a document, as the ledger hashes it."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_document(record: DataclassInstance) -> tuple[dict[str, Json], dict[str, int]]:
    """Turn a record into a bounded JSON document.

    Returns:
        The document, and what was cut: field path -> bytes or elements that there were.
    """
    writer = _Writer()
    return writer.record(record, "", None, 0), writer.cut


def from_document(kind: type[T], document: Json) -> T:
    """Turn a JSON document back into a record; fields that it lacks get their defaults.

    Raises:
        Misfit: a value is missing or of another type than the record says.
    """
    return cast("T", _read(kind, document, kind.__name__))


def load(payload: str) -> dict[str, Json]:
    """Return the document of a stored payload.

    Raises:
        Misfit: it is no JSON object.
    """
    try:
        document: Json = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Misfit(f"it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise Misfit("it is no JSON object")
    return document


def cut_of(document: dict[str, Json]) -> dict[str, int]:
    """Return what was cut from a stored document (``truncated``).

    Raises:
        Misfit: it does not say so as it should.
    """
    return cast(
        "dict[str, int]", _read_many(Mapping[str, int], document.get("truncated", {}), "cut")
    )


class _Budget:
    """What is left of one list's or mapping's bytes."""

    def __init__(self, left: int) -> None:
        self.left = left


class _Writer:
    """One record on its way out; ``cut`` collects what was too much."""

    def __init__(self) -> None:
        self.cut: dict[str, int] = {}

    def record(
        self, record: DataclassInstance, at: str, budget: _Budget | None, depth: int
    ) -> dict[str, Json]:
        document: dict[str, Json] = {}
        for field in dataclasses.fields(record):
            if field.metadata.get("column"):
                continue
            path = f"{at}.{field.name}" if at else field.name
            bounds = field.metadata.get("bounds", (TEXT_BOUND, LIST_BOUND))
            value = getattr(record, field.name)
            document[field.name] = self.value(value, path, budget, depth, bounds)
        return document

    def value(
        self,
        value: object,
        at: str,
        budget: _Budget | None,
        depth: int,
        bounds: tuple[int, int] = (TEXT_BOUND, LIST_BOUND),
    ) -> Json:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, str | PurePath):
            return self.text(str(value), at, budget, bounds[0])
        if value is None or isinstance(value, bool | int | float):
            return _number(value)
        return self.nested(value, at, budget, depth, bounds)

    def nested(
        self,
        value: object,
        at: str,
        budget: _Budget | None,
        depth: int,
        bounds: tuple[int, int],
    ) -> Json:
        if depth >= DEPTH_BOUND:
            self.cut[at] = DEPTH_BOUND
            return None
        if isinstance(value, Mapping):
            items = cast("Mapping[object, object]", value)
            return self.mapping(items, at, budget or _Budget(bounds[1]), depth, bounds)
        if isinstance(value, list | tuple):
            elements = cast("tuple[object, ...]", value)
            return self.elements(elements, at, budget or _Budget(bounds[1]), depth, bounds)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.record(value, at, budget, depth + 1)
        raise TypeError(f"{at}: a {type(value).__name__} cannot be recorded")

    def text(self, text: str, at: str, budget: _Budget | None, bound: int) -> str:
        kept, size = _shorten(text, bound)
        if size > bound:
            self.cut[at] = size
        if budget is not None:
            budget.left -= min(size, bound)
        return fit(kept)

    def elements(
        self,
        elements: tuple[object, ...] | list[object],
        at: str,
        budget: _Budget,
        depth: int,
        bounds: tuple[int, int],
    ) -> list[Json]:
        kept: list[Json] = []
        for number, element in enumerate(elements):
            if budget.left <= 0:
                self.cut[at] = len(elements)
                break
            budget.left -= _ELEMENT
            kept.append(self.value(element, f"{at}.{number}", budget, depth + 1, bounds))
        return kept

    def mapping(
        self,
        items: Mapping[object, object],
        at: str,
        budget: _Budget,
        depth: int,
        bounds: tuple[int, int],
    ) -> dict[str, Json]:
        kept: dict[str, Json] = {}
        for name, item in items.items():
            if budget.left <= 0:
                self.cut[at] = len(items)
                break
            budget.left -= _ELEMENT
            key = self.text(str(name), f"{at} (a key)", budget, bounds[0])
            kept[key] = self.value(item, f"{at}.{key}", budget, depth + 1, bounds)
        return kept


def _number(value: float | None) -> Json:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _shorten(text: str, bound: int) -> tuple[str, int]:
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= bound:
        return text, len(raw)
    end = bound
    while raw[end] & 0xC0 == 0x80:  # noqa: PLR2004 - a continuation byte of UTF-8 (RFC 3629)
        end -= 1
    return raw[:end].decode("utf-8", "surrogatepass"), len(raw)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(hint: Any, plain: Json, at: str) -> Any:  # noqa: ANN401 - what a type hint says
    origin = typing.get_origin(hint)
    if hint is object:
        return _free(plain)
    if origin in (Union, types.UnionType):
        if plain is None and types.NoneType in typing.get_args(hint):
            return None
        (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
        return _read(hint, plain, at)
    if origin in (tuple, Mapping):
        return _read_many(hint, plain, at)
    if dataclasses.is_dataclass(hint):
        return _read_record(cast("type", hint), plain, at)
    return _read_scalar(hint, plain, at)


def _read_many(hint: Any, plain: Json, at: str) -> object:  # noqa: ANN401 - what a type hint says
    if typing.get_origin(hint) is tuple:
        if not isinstance(plain, list):
            raise Misfit(f"{at} is not a list")
        element = typing.get_args(hint)[0]
        return tuple(_read(element, one, at) for one in plain)
    if not isinstance(plain, dict):
        raise Misfit(f"{at} is not an object")
    item = typing.get_args(hint)[1]
    return {unfit(name): _read(item, one, at) for name, one in plain.items()}


def _read_record(kind: type, plain: Json, at: str) -> object:
    if not isinstance(plain, dict):
        raise Misfit(f"{at} is not an object")
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in plain:
            values[field.name] = _read(hints[field.name], plain[field.name], f"{at}.{field.name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise Misfit(f"{at}: {error}") from error


def _read_scalar(kind: type, plain: Json, at: str) -> object:
    if kind is float:
        if isinstance(plain, str) and plain in _NON_FINITE:
            return _NON_FINITE[plain]
        if isinstance(plain, int | float) and not isinstance(plain, bool):
            return plain
    elif kind is str and isinstance(plain, str):
        return unfit(plain)
    elif type(plain) is kind:
        return plain
    raise Misfit(f"{at} is not {kind.__name__}")


def _free(plain: Json) -> object:
    if isinstance(plain, str):
        return unfit(plain)
    if isinstance(plain, list):
        return [_free(one) for one in plain]
    if isinstance(plain, dict):
        return {unfit(name): _free(one) for name, one in plain.items()}
    return plain
