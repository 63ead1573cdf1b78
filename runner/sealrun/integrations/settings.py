"""Our entries in an agent's settings: put into the JSON text, and taken out again.

Rules that this module keeps:

- Pure: text comes in, text goes out.
- The text is spliced, never written anew: what is not ours keeps its order, its spaces, its way of
  writing numbers and letters.
- What is not one valid JSON object with the shape that hooks have is refused, never repaired.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from sealrun.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

#: Event, then the groups of hooks for it, as Claude Code's and Codex's references give the form.
Wanted = dict[str, list[dict[str, Any]]]


class SettingsError(UsageError):
    """A settings file that is not valid JSON, or whose hooks have another shape than documented."""


class _Span(NamedTuple):
    """A member or item of a container: ``key`` is empty for an item; ``at`` is where it begins."""

    key: str
    at: int
    value: int
    end: int


_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


def check(text: str, name: str) -> None:
    """Check that a text is one JSON object with hooks of the documented shape.

    Args:
        name: of the file, for the message.

    Raises:
        SettingsError: it is not.
    """
    hint = "Correct the file first; sealrun does not touch what it cannot read."
    try:
        document = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{name} is not valid JSON: {error}", hint=hint) from error
    hooks = document.get("hooks", {}) if isinstance(document, dict) else None
    if not isinstance(hooks, dict):
        raise SettingsError(f"{name} holds no JSON object with hooks", hint=hint)
    for event, groups in hooks.items():
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise SettingsError(f"{name}: hooks.{event} is no list of objects", hint=hint)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def document(wanted: Wanted) -> str:
    """Return the text of a file that holds our entries alone."""
    return json.dumps({"hooks": wanted}, indent=2, ensure_ascii=False) + "\n"


def made_by(text: str, wanted: Wanted) -> list[str]:
    """Return the containers that ``insert`` will have to make: ``hooks`` itself, and events."""
    hooks = json.loads(text).get("hooks")
    if hooks is None:
        return ["hooks", *wanted]
    return [event for event in wanted if event not in hooks]


def insert(text: str, wanted: Wanted) -> str:
    """Return a checked text with our entries after those that are there."""
    root = _start(text, 0)
    hooks = _member(text, root, "hooks")
    if hooks is None:
        return _append(text, root, wanted, "hooks", depth=1)
    for event, groups in wanted.items():
        for group in groups:
            hooks = _member(text, root, "hooks")
            container = hooks.value if hooks is not None else root
            found = _member(text, container, event)
            if found is None:
                text = _append(text, container, [group], event, depth=2)
            else:
                text = _append(text, found.value, group, None, depth=3)
    return text


def remove(text: str, is_ours: Callable[[str], bool], made: Collection[str] = ()) -> str:
    """Return a checked text without our entries.

    Args:
        is_ours: whether a command is ours.
        made: containers that ``insert`` made; they go too when nothing else is in them.
    """
    events = json.loads(text).get("hooks", {})
    for event in events:
        while (cut := _ours(text, event, is_ours)) is not None:
            text = _cut(text, *cut)
    for event in events:
        if event in made and _holds_nothing(text, event):
            root = _start(text, 0)
            hooks = _members(text, _member_or_fail(text, root, "hooks").value)
            text = _cut(text, hooks, [span.key for span in hooks].index(event))
    if "hooks" in made and json.loads(text).get("hooks") == {}:
        members = _members(text, _start(text, 0))
        text = _cut(text, members, [span.key for span in members].index("hooks"))
    return text


def commands(text: str) -> list[tuple[str, str]]:
    """Return event and command of every command hook in a checked text."""
    hooks: Mapping[str, Any] = json.loads(text).get("hooks", {})
    return [
        (event, handler["command"])
        for event, groups in hooks.items()
        for group in groups
        for handler in _handlers(group)
        if isinstance(handler.get("command"), str)
    ]


def _handlers(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    handlers = group.get("hooks")
    return [h for h in handlers if isinstance(h, dict)] if isinstance(handlers, list) else []


def _holds_nothing(text: str, event: str) -> bool:
    return bool(json.loads(text)["hooks"].get(event) == [])


def _ours(
    text: str, event: str, is_ours: Callable[[str], bool]
) -> tuple[Sequence[_Span], int] | None:
    """Return the place of our first entry for an event: a whole group, or one hook of a group."""
    hooks = _member_or_fail(text, _start(text, 0), "hooks")
    groups = _items(text, _member_or_fail(text, hooks.value, event).value)
    for number, group in enumerate(groups):
        value = json.loads(text[group.value : group.end])
        handlers = value.get("hooks")
        if not isinstance(handlers, list):
            continue
        ours = [isinstance(h, dict) and is_ours(str(h.get("command"))) for h in handlers]
        if any(ours) and all(ours):
            return groups, number
        if any(ours):
            inner = _items(text, _member_or_fail(text, group.value, "hooks").value)
            return inner, ours.index(True)
    return None


def _member_or_fail(text: str, container: int, key: str) -> _Span:
    found = _member(text, container, key)
    if found is None:  # pragma: no cover - check() and json agree with this scanner
        raise SettingsError(f"the settings hold no {key}")
    return found


def _start(text: str, at: int) -> int:
    """Return where the next token begins."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _members(text: str, container: int) -> list[_Span]:
    spans: list[_Span] = []
    at = _start(text, container + 1)
    while text[at] != "}":
        begin = at
        key, at = _DECODER.raw_decode(text, at)
        value = _start(text, _start(text, at) + 1)
        _, end = _DECODER.raw_decode(text, value)
        spans.append(_Span(key, begin, value, end))
        at = _start(text, end)
        at = _start(text, at + 1) if text[at] == "," else at
    return spans


def _items(text: str, container: int) -> list[_Span]:
    spans: list[_Span] = []
    at = _start(text, container + 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        spans.append(_Span("", at, at, end))
        at = _start(text, end)
        at = _start(text, at + 1) if text[at] == "," else at
    return spans


def _member(text: str, container: int, key: str) -> _Span | None:
    return next((span for span in _members(text, container) if span.key == key), None)


def _append(text: str, container: int, value: object, key: str | None, *, depth: int) -> str:
    """Add a member (with a key) or an item to a container, in the style of the file."""
    spans = _items(text, container) if key is None else _members(text, container)
    _, close = _DECODER.raw_decode(text, container)
    label = "" if key is None else f"{json.dumps(key)}: "
    newline = "\r\n" if "\r\n" in text else "\n"
    step = _indentation(text)
    if "\n" not in text.strip() and text.strip() != "{}":
        flat = label + json.dumps(value, ensure_ascii=False)
        at = spans[-1].end if spans else container + 1
        return text[:at] + (", " if spans else "") + flat + text[at:]
    shown = json.dumps(value, indent=step, ensure_ascii=False)
    lines = [label + line if number == 0 else line for number, line in enumerate(shown.split("\n"))]
    block = "".join(f"{newline}{step * depth}{line}" for line in lines)
    if spans:
        return text[: spans[-1].end] + "," + block + text[spans[-1].end :]
    return text[: container + 1] + block + newline + step * (depth - 1) + text[close - 1 :]


def _indentation(text: str) -> str:
    match = re.search(r"\{\r?\n([ \t]+)", text)
    return match[1] if match else "  "


def _cut(text: str, spans: Sequence[_Span], number: int) -> str:
    """Take one member or item out, with the comma that it needed."""
    if number > 0:
        return text[: spans[number - 1].end] + text[spans[number].end :]
    if len(spans) > 1:
        return text[: spans[0].at] + text[spans[1].at :]
    before = len(text[: spans[0].at].rstrip(" \t\r\n"))
    return text[:before] + text[_start(text, spans[0].end) :]
