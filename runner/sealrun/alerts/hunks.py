"""Line differences between two contents, bounded in time whatever the contents are. Pure.

Rules that this module keeps:

- Time and memory are bounded by the number of lines and ``CELLS``, also for contents made to be
  slow: ``difflib`` takes quadratic to cubic time on many equal lines, and what is compared here was
  written by somebody else.
- Lines that stand once in both are paired first (Bram Cohen's patience diff); what lies between is
  paired by longest common subsequence while ``CELLS`` last. What is left unpaired is one hunk: never
  wrong, only less fine.
- A line ends with LF or CRLF and nothing else, as git counts lines.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Cells of the tables of longest common subsequences that one comparison may fill.
CELLS = 1_000_000
#: Bytes at the beginning that decide whether a content is text, as git does (xdiff-interface.c).
_SNIFFED = 8000
#: How often pairing by single lines is repeated between the pairs that it found.
_DEPTH = 8
_END = re.compile(rb"\r?\n")


@dataclass(frozen=True)
class Hunk:
    """Lines ``before[start:end]`` became lines ``after[at:to]``; all count from 0."""

    start: int
    end: int
    at: int
    to: int


def is_text(content: bytes) -> bool:
    """Tell whether git would compare a content by lines."""
    return b"\0" not in content[:_SNIFFED]


def lines_of(content: bytes) -> list[bytes]:
    """Return the lines of a content without their ends."""
    lines = _END.split(content)
    return lines[:-1] if not lines[-1] else lines


def pairs(before: Sequence[bytes], after: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return which lines of two contents are the same line, rising in both."""
    return sorted(_Pairing(before, after).all())


def hunks(before: Sequence[bytes], after: Sequence[bytes]) -> list[Hunk]:
    """Return what changed between two contents, from the first line to the last."""
    found: list[Hunk] = []
    start = at = 0
    for one, other in (*pairs(before, after), (len(before), len(after))):
        if (start, at) != (one, other):
            found.append(Hunk(start, one, at, other))
        start, at = one + 1, other + 1
    return found


_Span = tuple[int, int, int, int]


class _Pairing:
    """One comparison under way, with what is left of its budget."""

    def __init__(self, before: Sequence[bytes], after: Sequence[bytes]) -> None:
        # Small numbers instead of lines: each later comparison of two lines costs the same.
        numbers: dict[bytes, int] = {}
        self.before = [numbers.setdefault(line, len(numbers)) for line in before]
        self.after = [numbers.setdefault(line, len(numbers)) for line in after]
        self.cells = CELLS

    def all(self) -> Iterator[tuple[int, int]]:
        """Yield every pair, in no order."""
        spans = [((0, len(self.before), 0, len(self.after)), 0)]
        while spans:
            span, depth = spans.pop()
            inner, ends = self._trimmed(span)
            yield from ends
            start, end, at, to = inner
            if start == end or at == to:
                continue
            if (single := self._single(inner)) and depth < _DEPTH:
                yield from single
                spans += [(between, depth + 1) for between in _between(inner, single)]
            elif (size := (end - start) * (to - at)) <= self.cells:
                self.cells -= size
                yield from self._common(inner)

    def _trimmed(self, span: _Span) -> tuple[_Span, list[tuple[int, int]]]:
        start, end, at, to = span
        ends: list[tuple[int, int]] = []
        while start < end and at < to and self.before[start] == self.after[at]:
            ends.append((start, at))
            start, at = start + 1, at + 1
        while start < end and at < to and self.before[end - 1] == self.after[to - 1]:
            end, to = end - 1, to - 1
            ends.append((end, to))
        return (start, end, at, to), ends

    def _single(self, span: _Span) -> list[tuple[int, int]]:
        """Return the longest rising run of pairs of lines that stand once in each part."""
        start, end, at, to = span
        one, other = Counter(self.before[start:end]), Counter(self.after[at:to])
        places = {line: at + n for n, line in enumerate(self.after[at:to]) if other[line] == 1}
        candidates = [
            (start + n, places[line])
            for n, line in enumerate(self.before[start:end])
            if one[line] == 1 and line in places
        ]
        return _rising(candidates)

    def _common(self, span: _Span) -> Iterator[tuple[int, int]]:
        """Yield the pairs of a longest common subsequence."""
        start, end, at, to = span
        one, other = self.before[start:end], self.after[at:to]
        width = len(other) + 1
        # lengths[i * width + j]: of the longest common subsequence of one[i:] and other[j:]
        lengths = [0] * (width * (len(one) + 1))
        for i in range(len(one) - 1, -1, -1):
            row, below = i * width, (i + 1) * width
            for j in range(len(other) - 1, -1, -1):
                if one[i] == other[j]:
                    lengths[row + j] = lengths[below + j + 1] + 1
                else:
                    lengths[row + j] = max(lengths[below + j], lengths[row + j + 1])
        i = j = 0
        while i < len(one) and j < len(other):
            if one[i] == other[j]:
                yield start + i, at + j
                i, j = i + 1, j + 1
            elif lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]:
                i += 1
            else:
                j += 1


def _between(span: _Span, found: list[tuple[int, int]]) -> Iterator[_Span]:
    start, end, at, to = span
    for one, other in (*found, (end, to)):
        yield start, one, at, other
        start, at = one + 1, other + 1


def _rising(candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest part of pairs, sorted by their first, that rises in the second too."""
    tails: list[int] = []
    indices: list[int] = []
    previous: list[int] = []
    for index, (_, place) in enumerate(candidates):
        length = bisect_left(tails, place)
        previous.append(indices[length - 1] if length else -1)
        tails[length : length + 1] = [place]
        indices[length : length + 1] = [index]
    found: list[tuple[int, int]] = []
    index = indices[-1] if indices else -1
    while index >= 0:
        found.append(candidates[index])
        index = previous[index]
    return found[::-1]
