"""Codex's patch format: read a patch, and compute what a file becomes.

The format is that of the ``apply_patch`` tool as its documentation gives it: an envelope of file
sections; in an update, hunks of context, removed and added lines, each optionally led by ``@@``
with a line to look for. Where the tool is lenient in finding a place (spaces at the ends of lines,
typographic characters), so is this: the tool's result is what the agent meant.

Rules that this module keeps:

- Pure: contents come in, contents go out.
- A patch that the tool would refuse raises; no content is guessed.
- Bounded: work is in proportion to the patch times the file, and both are bounded by the caller.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs every hook 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ADD, _DELETE, _UPDATE = "*** Add File: ", "*** Delete File: ", "*** Update File: "
_MOVE = "*** Move to: "
_END_OF_FILE = "*** End of File"
_BEGIN, _END = "*** Begin Patch", "*** End Patch"
_HEREDOC = ("<<EOF", "<<'EOF'", '<<"EOF"')
#: Comparisons of lines that one patch may cost: about 200 ms.
_MOST_WORK = 2_000_000

_DASHES = dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
_SINGLE = dict.fromkeys(range(0x2018, 0x201C), "'")
_DOUBLE = dict.fromkeys(range(0x201C, 0x2020), '"')
_SPACES = dict.fromkeys([0xA0, *range(0x2002, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_PLAIN = {**_DASHES, **_SINGLE, **_DOUBLE, **_SPACES}


class PatchError(ValueError):
    """The patch is malformed, or does not fit the file."""


class Hunk:
    """One hunk: the line that leads to it, and old lines that become new ones."""

    __slots__ = ("after", "at_end", "new", "old")

    def __init__(self, after: str | None) -> None:
        self.after = after
        self.old: list[str] = []
        self.new: list[str] = []
        self.at_end = False


class Section:
    """What a patch does to one file.

    Attributes:
        action: ``add``, ``delete`` or ``update``.
        path: as the patch names it.
        move: the new path of an updated file, or None.
        content: of an added file.
        hunks: of an updated file.
    """

    __slots__ = ("action", "content", "hunks", "move", "path")

    def __init__(self, action: str, path: str) -> None:
        self.action = action
        self.path = path
        self.move: str | None = None
        self.content = ""
        self.hunks: list[Hunk] = []


def parse(text: str) -> list[Section]:
    """Return the sections of a patch.

    Raises:
        PatchError: it is not one.
    """
    lines = text.strip().split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    if lines[0] in _HEREDOC and lines[-1].endswith("EOF"):
        lines = lines[1:-1]
    if len(lines) < 2 or lines[0].strip() != _BEGIN or lines[-1].strip() != _END:  # noqa: PLR2004 - begin and end
        raise PatchError("no patch envelope")
    lines, sections, at = lines[1:-1], [], 0
    while at < len(lines):
        section, at = _section(lines, at)
        sections.append(section)
    return sections


def _section(lines: list[str], at: int) -> tuple[Section, int]:
    header = lines[at].strip()
    at += 1
    if header.startswith(_ADD):
        section = Section("add", header[len(_ADD) :])
        first = at
        while at < len(lines) and lines[at].startswith("+"):
            at += 1
        section.content = "".join(line[1:] + "\n" for line in lines[first:at])
        return section, at
    if header.startswith(_DELETE):
        return Section("delete", header[len(_DELETE) :]), at
    if not header.startswith(_UPDATE):
        raise PatchError("no file header")
    section = Section("update", header[len(_UPDATE) :])
    if at < len(lines) and lines[at].startswith(_MOVE):
        section.move = lines[at][len(_MOVE) :]
        at += 1
    while at < len(lines) and not lines[at].startswith("*"):
        if not lines[at].strip():
            at += 1
            continue
        hunk, at = _hunk(lines, at, first=not section.hunks)
        section.hunks.append(hunk)
    if not section.hunks:
        raise PatchError("an update without a hunk")
    return section, at


def _hunk(lines: list[str], at: int, *, first: bool) -> tuple[Hunk, int]:
    hunk = Hunk(None)
    if lines[at] == "@@":
        at += 1
    elif lines[at].startswith("@@ "):
        hunk.after = lines[at][3:]
        at += 1
    elif not first:
        raise PatchError("a hunk without @@")
    begun = at
    while at < len(lines):
        line = lines[at]
        if line == _END_OF_FILE and at > begun:
            hunk.at_end = True
            at += 1
            break
        sign, rest = line[:1], line[1:]
        if sign not in ("", " ", "+", "-"):
            break
        if sign != "+":
            hunk.old.append(rest)
        if sign != "-":
            hunk.new.append(rest)
        at += 1
    if at == begun:
        raise PatchError("an empty hunk")
    return hunk, at


def apply(hunks: Sequence[Hunk], before: str) -> str:
    """Return what a file's text becomes.

    Raises:
        PatchError: a hunk's place is not found, or finding it is too much work.
    """
    lines = before.split("\n")
    if lines[-1] == "":
        lines.pop()
    finder = _Finder(lines)
    changes: list[tuple[int, int, list[str]]] = []
    at = 0
    for hunk in hunks:
        if hunk.after is not None:
            at = _required(finder.find([hunk.after], at, at_end=False)) + 1
        if not hunk.old:
            end = len(lines) - 1 if lines and lines[-1] == "" else len(lines)
            changes.append((end, 0, hunk.new))
            continue
        old, new = hunk.old, hunk.new
        found = finder.find(old, at, at_end=hunk.at_end)
        if found is None and old[-1] == "":
            # The last, empty line stands for the file's final line feed.
            old = old[:-1]
            new = new[:-1] if new and new[-1] == "" else new
            found = finder.find(old, at, at_end=hunk.at_end)
        place = _required(found)
        changes.append((place, len(old), new))
        at = place + len(old)
    changes.sort(key=lambda change: change[0])
    for place, length, new in reversed(changes):
        lines[place : place + length] = new
    if not lines or lines[-1] != "":
        lines.append("")
    return "\n".join(lines)


def _required(place: int | None) -> int:
    if place is None:
        raise PatchError("a hunk does not fit the file")
    return place


class _Finder:
    """Finds lines in a file, each time as strictly as it can."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.work = 0

    def find(self, wanted: list[str], start: int, *, at_end: bool) -> int | None:
        if not wanted:
            return start
        if len(wanted) > len(self.lines):
            return None
        if at_end:
            start = len(self.lines) - len(wanted)
        for form in (_exactly, str.rstrip, str.strip, _plainly):
            found = self._find(form, wanted, start)
            if found is not None:
                return found
        return None

    def _find(self, form: Callable[[str], str], wanted: list[str], start: int) -> int | None:
        sought = [form(line) for line in wanted]
        lines = [form(line) for line in self.lines[start:]]
        for at in range(len(lines) - len(sought) + 1):
            self.work += 1
            if lines[at] == sought[0] and lines[at : at + len(sought)] == sought:
                return start + at
            self.work += len(sought) if lines[at] == sought[0] else 0
            if self.work > _MOST_WORK:
                raise PatchError("finding a hunk is too much work")
        return None


def _exactly(line: str) -> str:
    return line


def _plainly(line: str) -> str:
    return line.strip().translate(_PLAIN)
