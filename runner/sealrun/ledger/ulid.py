"""Run ids: ULIDs, sorted by time, and what a user may type for one.

Rules that this module keeps:

- 48 bits of milliseconds since 1970 and 80 random bits as 26 characters of Crockford's base 32
  (github.com/ulid/spec).
- Within a process each id is greater than the one before, even when the clock steps back.
- A fork draws its own random bits: two processes never count on from one number.
- A prefix is read as Crockford reads it: either case, I and L as 1, O as 0.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time

#: Crockford's base 32: no I, L, O, U.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
#: Characters of a whole ULID.
LENGTH = 26

_RANDOM_BITS = 80
_WHOLE = re.compile(f"[0-7][{ALPHABET}]{{{LENGTH - 1}}}")
_LOOKALIKES = str.maketrans("ILO", "110")


class _Clockwork:
    """The last id of this process."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: a fork holds its parent's number, and perhaps its locked lock."""
        self.lock = threading.Lock()
        self.last = 0

    def next(self, milliseconds: int) -> int:
        with self.lock:
            fresh = milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
            same_or_past = milliseconds <= self.last >> _RANDOM_BITS
            self.last = self.last + 1 if same_or_past else fresh
            return self.last


_clockwork = _Clockwork()
os.register_at_fork(after_in_child=_clockwork.forget)


def encode(number: int) -> str:
    """Return the 26 characters of a 128-bit number."""
    return "".join(ALPHABET[number >> shift & 31] for shift in range(5 * (LENGTH - 1), -1, -5))


def new_ulid(milliseconds: int | None = None) -> str:
    """Return an id greater than each one that this process made before.

    Args:
        milliseconds: since 1970-01-01 UTC; now, when not given.
    """
    now = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    return encode(_clockwork.next(now))


def is_ulid(text: str) -> bool:
    """Tell whether a text is a whole, canonical ULID."""
    return _WHOLE.fullmatch(text) is not None


def canonical_prefix(text: str) -> str | None:
    """Return what a user typed in canonical spelling, or None when no ULID begins like that."""
    prefix = text.strip().upper().translate(_LOOKALIKES)
    if not prefix or len(prefix) > LENGTH or not set(prefix) <= set(ALPHABET):
        return None
    return prefix
