"""Finds keys in bytes. Pure: no IO, no clock.

Rules that this module keeps:

- The time is bounded by the size: literals are searched for, a pattern is matched only where one
  stands, at so many places at most.
- A key is never given away: what is returned names its kind, its line, its public prefix and its
  length.
- What is plainly no key (a placeholder, an example of a manual, a name) is none. A line that says so
  in the words of detect-secrets or gitleaks is believed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.secrets.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealrun.secrets.shapes import Shape

#: Places at which one literal is looked at, in one piece of bytes.
PLACES = 20_000
#: Keys that are named, of one piece of bytes.
MOST = 20
#: Bytes by which text is told from the rest: no NUL in them (as git does it, buffer_is_binary).
HEAD = 8000

#: What people write where a key goes.
_PLACEHOLDER = re.compile(
    rb"(?i)example|placeholder|change[_-]?me|changethis|your|insert|dummy|fake|redacted|sample"
    rb"|replace|secret|password|token|xxxx|\*\*\*|\.\.\.|0{6}|1{6}|12345|abcdef|qwerty|foobar|test"
)
#: The same for keys with a form of their own: a real one may hold a short word by chance.
_OBVIOUS = re.compile(rb"(?i)example|placeholder|changeme|redacted|your[_-]|x{6}|0{8}|1{8}|1234567")
#: Words by which other tools' users say that a line holds no secret.
_ALLOWED = re.compile(rb"pragma: ?(?:allow|white)list secret|gitleaks:allow")
_HEXADECIMAL = re.compile(rb"[0-9a-fA-F-]+")
#: Bytes before and after a key in which its line may say that it is none.
_LINE = 400
#: Digits and letters of either case that a key without a form of its own has at least.
_MIXED = 2

#: Another table or another rule: what was looked at before is looked at again.
VERSION = hashlib.sha256(
    repr(
        [(s.name, s.anchors, s.text, s.random, s.folded, s.assigned) for s in SHAPES]
        + [_PLACEHOLDER.pattern, _OBVIOUS.pattern, _ALLOWED.pattern, PLACES, MOST]
    ).encode()
).hexdigest()[:16]


@dataclass(frozen=True)
class Key:
    """What looks like a key; the key itself is not part of it.

    Attributes:
        kind: what it is.
        line: number, from 1.
        shown: its public prefix and its length.
    """

    kind: str
    line: int
    shown: str

    def words(self) -> str:
        """Return it as people read it."""
        return f"{self.kind} ({self.shown})"


def keys(content: bytes) -> list[Key]:
    """Return what looks like a key, in order, at most ``MOST``.

    Args:
        content: of a file or a part of one; lines are counted from its beginning.
    """
    text = b"\0" not in content[:HEAD]
    lowered = content.lower() if text else b""
    found: dict[int, tuple[int, Shape, re.Match[bytes]]] = {}
    for shape in SHAPES:
        if shape.assigned and not text:
            continue
        for at in _places(lowered if shape.folded else content, shape.anchors):
            match = shape.pattern.match(content, at)
            if match is None:
                continue
            start, end = match.span("key")
            # What has a form of its own comes first in the table, and counts.
            if start not in found and _is_one(shape, match["key"], content, end):
                found[start] = (end, shape, match)
                if len(found) >= MOST:
                    break
    return [_told(content, *found[start]) for start in _apart(found)[:MOST]]


def variable(name: str, value: str) -> Key | None:
    """Return what a variable of the environment holds, if it looks like a key.

    Args:
        name: of the variable; one that says what it holds is believed.
        value: of it.
    """
    content = value.encode("utf-8", "surrogateescape")
    found = keys(f"{name}=".encode("utf-8", "surrogateescape") + content)
    if found:
        return found[0]
    if not _KEY_NAME.search(name) or len(content) < _SHORTEST or _PLACEHOLDER.search(content):
        return None
    if content.startswith((b"/", b"~", b"./")) or content.lower() in _SWITCHES or content.isdigit():
        return None
    return Key("key in a variable", 1, f"{len(content)} characters")


#: Names of variables that hold a key. MAX_TOKENS, HF_TOKEN_PATH and TOKENIZERS_PARALLELISM do not.
_KEY_NAME = re.compile(
    r"(?i)(?:(?:API|ACCESS|SECRET|AUTH|PRIVATE)_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$"
)
_SHORTEST = 12
_SWITCHES = {b"true", b"false", b"none", b"null"}


def _places(content: bytes, anchors: tuple[bytes, ...]) -> Iterator[int]:
    for anchor in anchors:
        at = content.find(anchor)
        for _ in range(PLACES):
            if at < 0:
                break
            yield at
            at = content.find(anchor, at + 1)


def _apart(found: dict[int, tuple[int, Shape, re.Match[bytes]]]) -> list[int]:
    """Return where keys begin, without those that lie in another one."""
    kept: list[int] = []
    until = -1
    for start in sorted(found):
        if start >= until:
            kept.append(start)
            until = found[start][0]
    return kept


def _is_one(shape: Shape, key: bytes, content: bytes, end: int) -> bool:
    if entropy(key) < shape.random:
        return False
    if (_PLACEHOLDER if shape.assigned else _OBVIOUS).search(key):
        return False
    if shape.assigned and not _is_mixed(key):
        return False
    start = content.rfind(b"\n", max(0, end - _LINE), end) + 1
    stop = content.find(b"\n", end, end + _LINE)
    line = content[start : stop if stop >= 0 else end + _LINE]
    return _ALLOWED.search(line) is None


def _is_mixed(key: bytes) -> bool:
    """Tell whether a text is no name, no path, no number and no digest."""
    if _HEXADECIMAL.fullmatch(key):
        return False
    digits = sum(chr(one).isdigit() for one in key)
    upper = sum(chr(one).isupper() for one in key)
    lower = sum(chr(one).islower() for one in key)
    if min(digits, upper + lower) < _MIXED:
        return False
    # A name is made of words and numbers; in a key the two stand in one another.
    parts = [part for part in re.split(rb"[_/=+-]", key) if part]
    return any(
        re.search(rb"[A-Za-z][0-9]+[A-Za-z]", part) and len(part) >= _SHORTEST for part in parts
    )


def entropy(content: bytes) -> float:
    """Return Shannon's entropy of a text's bytes, in bits per byte."""
    total = len(content)
    return -sum(n / total * math.log2(n / total) for n in Counter(content).values())


def _told(content: bytes, end: int, shape: Shape, match: re.Match[bytes]) -> Key:
    start = match.start("key")
    known = match.groupdict().get("known")
    shown = [] if known is None else [f"{known.decode('ascii', 'replace')}…"]
    if known is None or match.start("known") >= start:
        shown.append(f"{end - start} characters")
    return Key(shape.name, content.count(b"\n", 0, start) + 1, ", ".join(shown))
