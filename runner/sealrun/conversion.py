"""What git writes for a blob when it checks it out, and whether a file is that.

Rules that this module keeps:

- Pure: attributes, settings and bytes come in, bytes and judgements go out. No command is run.
- Line endings, ``$Id$``, character encodings and Git LFS pointers are computed in git's order:
  ident, line endings, encoding, filter (gitattributes(5), "Interaction between checkin/checkout
  attributes"; ``convert_to_working_tree_ca_internal`` in git's convert.c).
- A file is as checked out when it is what git would write, to the byte. What only git's own way
  back would make equal is a judgement of its own; what stands behind a filter or an unknown
  encoding is another. Neither is ever taken for equal.
- A setting of the machine that an equality rests on is named with it: the commit did not ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The attributes that decide (``convert_attrs`` in git's convert.c).
ATTRIBUTES = ("text", "eol", "crlf", "ident", "filter", "working-tree-encoding")
#: The filter of Git LFS, by the name that ``git lfs install`` gives it.
LFS = b"lfs"

_STANDS_FOR_NOTHING = (b"unspecified", b"set", b"unset")
_FALSE = (b"", b"false", b"no", b"off")
_TRUE = (b"true", b"yes", b"on")
_ZERO = re.compile(rb"[-+]?0+[kmg]?", re.IGNORECASE)


# -- what git's configuration says ---------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One value of git's configuration.

    Attributes:
        name: lower case, e.g. ``core.autocrlf``.
        value: None where the file gives none, which git takes for true.
        origin: where it stands, in git's words without the kind, e.g. ``/root/.gitconfig``.
    """

    name: str
    value: bytes | None
    origin: str

    @property
    def on(self) -> bool:
        """The value as git reads a boolean (git-config(1), "Values")."""
        if self.value is None:
            return True
        low = self.value.lower()
        # git itself stops at a value that is no boolean; then nothing was checked out under it.
        return low in _TRUE or (low not in _FALSE and _ZERO.fullmatch(low) is None)

    def __str__(self) -> str:
        """Return it as a person would write it."""
        value = "true" if self.value is None else self.value.decode("utf-8", "backslashreplace")
        return f"{self.name}={value} in {self.origin}"


@dataclass(frozen=True)
class Driver:
    """The commands of one filter as configured; None where there is none."""

    smudge: bytes | None = None
    process: bytes | None = None
    clean: bytes | None = None

    @property
    def configured(self) -> bool:
        """Whether git knows any command for it."""
        return (self.smudge, self.process, self.clean) != (None, None, None)

    @property
    def changes(self) -> bool:
        """Whether a checkout could write other bytes than it gives the filter.

        A configured process outranks the smudge command, and an empty one runs nothing
        (``apply_filter`` in git's convert.c). ``cat`` is the usual way to say that only the clean
        side does something.
        """
        if self.process is not None:
            return bool(self.process)
        return (self.smudge or b"").strip() not in (b"", b"cat")


@dataclass(frozen=True)
class Settings:
    """What git's configuration here says about checking out.

    Attributes:
        automatic: ``core.autocrlf`` where it is on: files without attributes are converted.
        keeps_lf: ``core.autocrlf=input``: line endings are converted on the way in alone.
        crlf: the setting by which text has CRLF here; None where it has LF.
        modes: ``core.fileMode`` where it says that executable bits mean nothing.
        links: ``core.symlinks`` where it says that links are written as plain files.
        sparse: ``core.sparseCheckout`` where it is on.
        drivers: filters by name.
    """

    automatic: Setting | None = None
    keeps_lf: bool = False
    crlf: Setting | None = None
    modes: Setting | None = None
    links: Setting | None = None
    sparse: Setting | None = None
    drivers: Mapping[bytes, Driver] = field(default_factory=dict[bytes, Driver])

    @classmethod
    def of(cls, values: Iterable[Setting]) -> Settings:
        """Read them from configuration values in git's order: a later one replaces an earlier."""
        last: dict[str, Setting] = {}
        drivers: dict[bytes, dict[str, bytes | None]] = {}
        for setting in values:
            section, _, rest = setting.name.partition(".")
            name, _, key = rest.rpartition(".")
            if section == "filter" and name and key in ("smudge", "process", "clean"):
                command = setting.value or b""
                drivers.setdefault(name.encode("utf-8", "surrogateescape"), {})[key] = command
            else:
                last[setting.name] = setting
        autocrlf, eol = last.get("core.autocrlf"), last.get("core.eol")
        keeps_lf = autocrlf is not None and (autocrlf.value or b"").lower() == b"input"
        automatic = autocrlf if autocrlf is not None and autocrlf.on and not keeps_lf else None
        # core.eol counts where core.autocrlf decides nothing; unset and native mean LF on Linux
        # (text_eol_is_crlf in git's convert.c).
        asks = eol is not None and (eol.value or b"").lower() == b"crlf"
        return cls(
            automatic=automatic,
            keeps_lf=keeps_lf,
            crlf=automatic or (eol if asks and not keeps_lf else None),
            modes=_where(last.get("core.filemode"), on=False),
            links=_where(last.get("core.symlinks"), on=False),
            sparse=_where(last.get("core.sparsecheckout"), on=True),
            drivers={name: Driver(**commands) for name, commands in drivers.items()},
        )


def _where(setting: Setting | None, *, on: bool) -> Setting | None:
    return setting if setting is not None and setting.on is on else None


# -- what git does to one path -------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """The filter that a path's attributes name.

    Attributes:
        changes: a configured command could write other bytes than it is given.
        cleans: a configured command decides what git would store.
    """

    name: bytes
    changes: bool
    cleans: bool


@dataclass(frozen=True)
class Rule:
    """What git does to one path on its way from and to the blob.

    Attributes:
        strips: CRLF becomes LF when the file is stored.
        writes_crlf: LF becomes CRLF when it is checked out.
        guessed: both only where the content looks like text, and not where it holds CRLF already.
        ident: ``$Id$`` is expanded.
        streamed: git expands it by the code for streams, which differs in rare cases.
        encoding: of the file; None for UTF-8.
        filter: None where the attributes name none.
        setting: what the line endings rest on, where the commit's attributes alone do not decide.
    """

    strips: bool = False
    writes_crlf: bool = False
    guessed: bool = False
    ident: bool = False
    streamed: bool = False
    encoding: str | None = None
    filter: Filter | None = None
    setting: Setting | None = None

    @property
    def changes(self) -> bool:
        """Whether a file under this rule can differ from its blob."""
        return bool(self.writes_crlf or self.ident or self.encoding or self.filter)


def rule_for(attributes: Mapping[str, bytes], settings: Settings) -> Rule:
    """Return what git does to a path.

    Args:
        attributes: values as git-check-attr(1) prints them; a missing one is unspecified.
        settings: of the repository that the path belongs to.
    """
    text = _text(attributes.get("text")) or _text(attributes.get("crlf")) or "undefined"
    eol = attributes.get("eol")
    if text != "binary" and eol in (b"lf", b"crlf"):
        ending = "lf" if eol == b"lf" else "crlf"
        text = f"auto-{ending}" if text == "auto" else ending
    setting = None
    if text in ("text", "auto") and settings.crlf is not None:
        setting = settings.crlf
    if text == "undefined":
        setting = settings.automatic
        text = "auto-crlf" if setting else "auto-lf" if settings.keeps_lf else "binary"
    name = attributes.get("filter", b"unspecified")
    named = name not in _STANDS_FOR_NOTHING
    driver = settings.drivers.get(name, Driver()) if named else Driver()
    encoding = _encoding(attributes.get("working-tree-encoding"))
    return Rule(
        strips=text != "binary",
        writes_crlf=text in ("crlf", "auto-crlf") or setting is not None,
        guessed=text.startswith("auto"),
        ident=attributes.get("ident") == b"set",
        streamed=not driver.configured and encoding is None and text not in ("auto", "auto-crlf"),
        encoding=encoding,
        filter=Filter(name, driver.changes, driver.configured) if named else None,
        setting=setting,
    )


def _text(value: bytes | None) -> str | None:
    """Return what ``text``, or its older name ``crlf``, says; None where it says nothing."""
    return {
        b"set": "text",
        b"unset": "binary",
        b"input": "lf",
        b"auto": "auto",
    }.get(value or b"")


def _encoding(value: bytes | None) -> str | None:
    if not value or value in _STANDS_FOR_NOTHING:
        return None
    name = value.decode("utf-8", "backslashreplace")
    return None if _folded(name) == "utf-8" else name


# -- line endings --------------------------------------------------------------------------------

#: Control characters that text does not hold; backspace, tab, form feed and escape it may, and
#: carriage return and line feed are counted apart (``gather_stats`` in git's convert.c).
_UNPRINTABLE = bytes(set(range(32)) - set(b"\b\t\n\f\r\x1b")) + b"\x7f"
_LONE_LF = re.compile(rb"(?<!\r)\n")


def is_binary(content: bytes) -> bool:
    """Tell whether git takes content for binary when it guesses at line endings.

    That is a NUL, a carriage return without a line feed, or more than one unprintable byte among
    128 others; an end-of-file mark (0x1a) at the end does not count (``convert_is_binary`` in
    git's convert.c).
    """
    returns, pairs = content.count(b"\r"), content.count(b"\r\n")
    if returns > pairs or b"\0" in content:
        return True
    printable = len(content.translate(None, _UNPRINTABLE)) - pairs - content.count(b"\n")
    unprintable = len(content) - pairs - content.count(b"\n") - printable
    if content.endswith(b"\x1a"):
        unprintable -= 1
    return printable >> 7 < unprintable


def with_crlf(content: bytes, *, guessed: bool) -> bytes:
    """Return content with CRLF for each line feed that stands alone.

    Args:
        guessed: leave it alone where it is binary, or holds a carriage return already.
    """
    if guessed and (b"\r" in content or is_binary(content)):
        return content
    return _LONE_LF.sub(b"\r\n", content)


# -- $Id$ ----------------------------------------------------------------------------------------

_EXPANDED = re.compile(rb"\$Id: (?:[0-9a-f]{40}|[0-9a-f]{64}) \$")
_FOREIGN = re.compile(rb"[ \t\n\r](?!\$)")
#: What the code for streams looks for, one byte at a time; it counts its closing NUL too.
_HEAD = b"$Id\0"
_NAME = 3


def expanded(content: bytes, oid: str, *, streamed: bool) -> bytes:
    """Return content with ``$Id$``, and ids that git expanded earlier, expanded to a blob's id.

    Ids of other systems, which hold more than one word, stay (``ident_to_worktree`` and
    ``ident_filter_fn`` in git's convert.c).

    Args:
        oid: of the blob, hexadecimal.
        streamed: by the rules of git's code for streams.
    """
    if b"$Id" not in content:
        return content
    mark = b": " + oid.encode() + b" $"
    return _expanded_streamed(content, mark) if streamed else _expanded_whole(content, mark)


def _expanded_whole(content: bytes, mark: bytes) -> bytes:
    out = bytearray()
    at = 0
    while (dollar := content.find(b"$Id", at)) >= 0:
        after = dollar + _NAME
        out += content[at:after]
        at = after
        sign = content[after : after + 1]
        if sign == b"$":
            at = after + 1
        elif sign == b":":
            end = content.find(b"$", after + 1)
            if end < 0:
                break
            words = content[after + 1 : end]
            # A space after the first place and before the last one: another system's id.
            if b"\n" in words or 0 < words.find(b" ", 1) < len(words) - 1:
                continue
            at = end + 1
        else:
            continue
        out += mark
    return bytes(out + content[at:])


def _expanded_streamed(content: bytes, mark: bytes) -> bytes:
    out, held = bytearray(), bytearray()
    at, size = 0, len(content)
    while at < size:
        dollar = content.find(b"$", at)
        if dollar != at:
            end = size if dollar < 0 else dollar
            out += held + content[at:end]
            held.clear()
            at = end
            continue
        matched = 0
        while at < size and matched < len(_HEAD) and content[at] == _HEAD[matched]:
            matched += 1
            at += 1
        held += _HEAD[:matched]
        if at == size:
            break
        held.append(content[at])
        at += 1
        if matched == _NAME:
            sign = bytes(held[-1:])
            if sign == b"$":
                held[-1:] = mark
            elif sign == b":":
                at = _skip(content, at, held, mark)
            else:
                # Held back until something else is written: an id that follows at once swallows it.
                continue
        out += held
        held.clear()
    return bytes(out + held)


def _skip(content: bytes, at: int, held: bytearray, mark: bytes) -> int:
    """Take an id that is expanded already; return where the rest of the content begins."""
    ends = [end for end in (content.find(b"\n", at), content.find(b"$", at)) if end >= 0]
    if not ends:
        held += content[at:]
        return len(content)
    end = min(ends)
    held += content[at : end + 1]
    # Read as a C string: it ends at a NUL.
    words = bytes(held).split(b"\0", 1)[0]
    foreign = words.startswith(b"$Id: ") and _FOREIGN.search(words, len(b"$Id: "))
    if content[end : end + 1] == b"$" and not foreign:
        held[:] = b"$Id" + mark
    return end + 1


# -- encodings -----------------------------------------------------------------------------------

_UNICODE = ("utf-16", "utf-16le", "utf-16be", "utf-32", "utf-32le", "utf-32be")
#: Encodings whose tables are the same in Python and in the C library's iconv, which git asks:
#: each of their characters was compared, and a test compares them again.
ENCODINGS = (
    *_UNICODE,
    *("us-ascii", "ascii", "latin1", "koi8-r", "koi8-u", "gb2312", "cp949"),
    *(f"iso-8859-{part}" for part in range(1, 17) if part != 12),  # noqa: PLR2004 - there is none
    *(f"{name}125{part}" for name in ("cp", "windows-") for part in (0, 1, 2, 3, 4, 6, 7)),
    *(f"cp{page}" for page in (437, 850, 852, 866)),
)
#: Git writes these byte order marks itself (``reencode_string_len`` in git's utf8.c).
_MARKED = {"utf-16le-bom": ("utf-16le", b"\xff\xfe"), "utf-16be-bom": ("utf-16be", b"\xfe\xff")}
#: Which files with which marks git reads in an encoding (``validate_encoding``, likewise).
_NEEDS_MARK = {"utf-16": (b"\xff\xfe", b"\xfe\xff"), "utf-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff")}
_NO_MARK = {
    **dict.fromkeys(("utf-16le", "utf-16be"), _NEEDS_MARK["utf-16"]),
    **dict.fromkeys(("utf-32le", "utf-32be"), _NEEDS_MARK["utf-32"]),
}
#: The C library's iconv leaves Unicode's tag characters out where a character set lacks them.
_TAGS = dict.fromkeys(range(0xE0000, 0xE0080))


def _folded(name: str) -> str:
    """Return an encoding's name in one spelling; git takes ``UTF16`` for ``UTF-16``."""
    low = name.lower()
    return f"utf-{low[3:]}" if low.startswith("utf") and low[3:4] != "-" else low


def is_known(encoding: str) -> bool:
    """Tell whether what git writes in an encoding can be computed here."""
    return _folded(encoding) in (*ENCODINGS, *_MARKED)


def encoded(content: bytes, encoding: str) -> bytes:
    """Return a blob's content in a working directory's encoding.

    What cannot be converted is written as it is, which is what git does after a message.
    """
    if not content or not is_known(encoding):
        return content
    codec, mark = _MARKED.get(_folded(encoding), (_folded(encoding), b""))
    try:
        text = content.decode("utf-8")
        return mark + (text if codec in _UNICODE else text.translate(_TAGS)).encode(codec)
    except UnicodeError:
        return content


def _decoded(content: bytes, encoding: str) -> bytes | None:
    """Return a file's content as git would store it; None where git would not."""
    codec = _folded(encoding)
    if codec == "utf-16le-bom":
        codec = "utf-16"
    if codec not in ENCODINGS or content.startswith(_NO_MARK.get(codec, ())):
        return None
    if codec in _NEEDS_MARK and not content.startswith(_NEEDS_MARK[codec]):
        return None
    try:
        return content.decode(codec).encode("utf-8")
    except UnicodeError:
        return None


# -- Git LFS -------------------------------------------------------------------------------------

_VERSION = re.compile(
    rb"version (?:https://git-lfs\.github\.com/spec/v1|https://hawser\.github\.com/spec/v1"
    rb"|http://git-media\.io/v/2)\n"
)
_POINTER = re.compile(_VERSION.pattern + rb"oid sha256:([0-9a-f]{64})\nsize ([0-9]{1,18})\n")
#: Bytes below which a pointer has to stay (git-lfs, docs/spec.md).
_POINTER_LIMIT = 1024


@dataclass(frozen=True)
class Pointer:
    """What a Git LFS pointer stands for.

    Attributes:
        sha256: of the file's content, hexadecimal.
        size: bytes.
    """

    sha256: str
    size: int


def lfs_pointer(content: bytes) -> Pointer | None:
    """Return the pointer that content is; None where it is none, or has extensions.

    The form is that of git-lfs, docs/spec.md. With extensions the id is not that of the file.
    """
    if len(content) >= _POINTER_LIMIT:
        return None
    match = _POINTER.fullmatch(content)
    return None if match is None else Pointer(match[1].decode(), int(match[2]))


# -- the judgement -------------------------------------------------------------------------------


class Judgement(StrEnum):
    """What a file is, that is not its blob byte for byte."""

    CHECKED_OUT = "checked-out"
    OTHERWISE = "otherwise"
    UNKNOWN = "unknown"
    DIFFERENT = "different"


@dataclass(frozen=True)
class Standing:
    """A file as it stands.

    Attributes:
        size: bytes.
        sha256: of its content, hexadecimal; None where nobody asked.
        content: None where it is longer than any file that could be judged equal.
    """

    size: int
    sha256: str | None
    content: bytes | None


@dataclass(frozen=True)
class Judged:
    """A judgement and, where it is not that the file is as checked out, what it rests on."""

    judgement: Judgement
    why: str = ""


def written(blob: bytes, oid: str, rule: Rule) -> bytes:
    """Return what git writes for a blob; where a filter follows, what the filter is given."""
    if rule.ident:
        blob = expanded(blob, oid, streamed=rule.streamed)
    if rule.writes_crlf:
        blob = with_crlf(blob, guessed=rule.guessed)
    return encoded(blob, rule.encoding) if rule.encoding is not None else blob


def stored(content: bytes, blob: bytes, rule: Rule) -> bytes | None:
    """Return what git would store for a file in place of a blob; None where it would not.

    Stricter than git in one thing: of the expanded ids only those that git itself could have
    written are taken back, because git takes back any text in their place.

    Args:
        blob: what is stored now: where git guesses, CRLF that is stored already stays.
    """
    if rule.encoding is not None:
        decoded = _decoded(content, rule.encoding) if content else content
        if decoded is None:
            return None
        content = decoded
    keeps = rule.guessed and (is_binary(content) or (b"\r\n" in blob and not is_binary(blob)))
    if rule.strips and not keeps:
        content = content.replace(b"\r\n", b"\n")
    return _EXPANDED.sub(b"$Id$", content) if rule.ident else content


def judge(standing: Standing, blob: bytes, oid: str, rule: Rule) -> Judged:
    """Say what a file is that differs from its blob."""
    given = written(blob, oid, rule)
    if standing.content == given:
        return Judged(Judgement.CHECKED_OUT)
    if rule.filter is not None:
        return _filtered(standing, given, rule.filter)
    if rule.encoding is not None and not is_known(rule.encoding):
        return Judged(
            Judgement.UNKNOWN,
            f"its working-tree-encoding {rule.encoding} is not one that can be compared",
        )
    if standing.content is not None and stored(standing.content, blob, rule) == blob:
        return Judged(
            Judgement.OTHERWISE,
            "it differs from what git would check out only in line endings, byte order or the id "
            "in $Id$, which git takes back when it stores the file",
        )
    return Judged(Judgement.DIFFERENT)


def _filtered(standing: Standing, given: bytes, chosen: Filter) -> Judged:
    name = chosen.name.decode("utf-8", "backslashreplace")
    if chosen.name == LFS:
        pointer = lfs_pointer(given)
        if pointer is not None:
            same = (standing.sha256, standing.size) == (pointer.sha256, pointer.size)
            if same:
                return Judged(Judgement.CHECKED_OUT)
            return Judged(Judgement.DIFFERENT, "it is not the file that its Git LFS pointer names")
        if _VERSION.match(given):
            return Judged(Judgement.UNKNOWN, "its Git LFS pointer is not of the plain form")
        # Git LFS passes on what is no pointer (git-lfs-smudge(1)).
        return Judged(Judgement.DIFFERENT)
    if chosen.changes:
        return Judged(
            Judgement.UNKNOWN,
            f"what the filter {name} writes is known only by running it, which is never done here",
        )
    why = f"the filter {name} changes nothing on checkout" if chosen.cleans else ""
    return Judged(Judgement.DIFFERENT, why)
