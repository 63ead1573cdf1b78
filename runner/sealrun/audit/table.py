"""Reads a loop's ``results.tsv``: five tab-separated columns, written by a model, hence hostile.

Rules that this module keeps:

- Pure: bytes in, rows and problems out. No input raises; what is wrong is named by its line.
- A row is kept as far as it can be read: a tab in its description costs it nothing but a problem. A
  line without commit, value and status is no row.
- Nothing is corrected: an unknown status, or a word in the place of a commit, stays as it stands.
- The format is autoresearch's: ``commit val_bpb memory_gb status description``, where 0.000000 and
  0.0 stand for a crash (its ``program.md``); its notebook reads it with pandas, which fails on a
  sixth field.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")
KEEP, DISCARD, CRASH = STATUSES = ("keep", "discard", "crash")
#: Bytes of a line that are looked at, and rows that are read: a night has some hundreds.
LINE_LIMIT = 64 << 10
ROW_LIMIT = 100_000
_COMMIT = re.compile(r"[0-9a-f]{4,64}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NEEDED = 4


@dataclass(frozen=True)
class Row:
    """One row as it stands.

    Attributes:
        number: counts rows from 1.
        line: of the file, from 1; its header is line 1.
        commit: as written; whether it is an id at all, ``has_id`` says.
        value: of the metric; None where there is no finite number.
        digits: how many decimals the value was written with.
        memory: GiB; None where there is no finite number.
        status: as written; ``keep``, ``discard`` and ``crash`` are known.
        description: as written, tabs included.
    """

    number: int
    line: int
    commit: str
    value: float | None
    digits: int
    memory: float | None
    status: str
    description: str

    @property
    def has_id(self) -> bool:
        """Whether the commit is written as one: 4 to 64 hexadecimal digits."""
        return _COMMIT.fullmatch(self.commit.lower()) is not None

    @property
    def measured(self) -> float | None:
        """The value, where it is a measurement: 0 stands for a crash and is none."""
        return None if self.value == 0 or self.status == CRASH else self.value


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a line.

    Attributes:
        line: of the file, from 1.
        text: what it is, in a sentence without a full stop.
    """

    line: int
    text: str


@dataclass(frozen=True)
class Table:
    """A results file as far as it could be read.

    Attributes:
        rows: in the file's order.
        problems: by line.
        headed: whether its first line names the columns.
    """

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    headed: bool


def parse(content: bytes) -> Table:
    """Read a results file."""
    reading = _Reading()
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
        reading.report(1, "a byte order mark stands before the first column's name")
    # Only line feeds end lines here: a description may hold any other separator that Python knows.
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if len(reading.rows) >= ROW_LIMIT:
            reading.report(number, f"only the first {ROW_LIMIT} rows are read")
            break
        reading.line(number, line.removesuffix(b"\r"))
    return Table(tuple(reading.rows), tuple(reading.problems), reading.headed)


class _Reading:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.problems: list[Problem] = []
        self.headed = False

    def report(self, line: int, text: str) -> None:
        self.problems.append(Problem(line, text))

    def line(self, number: int, raw: bytes) -> None:
        if not raw.strip():
            self.report(number, "the line is empty")
            return
        if len(raw) > LINE_LIMIT:
            self.report(number, f"the line is {len(raw)} bytes long: it is not read")
            return
        text = raw.decode("utf-8", "surrogateescape")
        if not text.isprintable() and any("\udc80" <= character <= "\udcff" for character in text):
            self.report(number, "the line is not UTF-8")
        fields = text.split("\t")
        if fields[0].strip().lower() == COLUMNS[0] and not _is_number(fields[1:2]):
            self.header(number, fields)
            return
        if number == 1:
            self.report(number, "the first line does not name the columns")
        self.row(number, fields)

    def header(self, number: int, fields: list[str]) -> None:
        if number > 1:
            self.report(number, "the names of the columns stand here once more")
            return
        self.headed = True
        if tuple(fields) != COLUMNS:
            self.report(number, f"the columns are not {' '.join(COLUMNS)}")

    def row(self, number: int, fields: list[str]) -> None:
        if len(fields) < _NEEDED:
            self.report(number, f"{len(fields)} fields instead of {len(COLUMNS)}: no row")
            return
        if len(fields) > len(COLUMNS):
            self.report(number, f"{len(fields)} fields: pandas does not read such a file")
        elif len(fields) < len(COLUMNS):
            self.report(number, "there is no description")
        commit, value, memory, status = (field.strip() for field in fields[:_NEEDED])
        row = Row(
            number=len(self.rows) + 1,
            line=number,
            commit=commit,
            value=self.number(number, "value", value),
            digits=len(value.partition(".")[2]) if "e" not in value.lower() else 0,
            memory=self.number(number, "memory", memory),
            status=status,
            description="\t".join(fields[_NEEDED:]),
        )
        if not row.has_id:
            self.report(number, f"the commit is {_short(commit)}, which is no commit id")
        if status not in STATUSES:
            self.report(number, f"the status {_short(status)} is unknown: nothing counts it")
        self.rows.append(row)

    def number(self, line: int, name: str, text: str) -> float | None:
        parsed = float(text) if _is_number([text]) else math.nan
        if math.isfinite(parsed):
            return parsed
        self.report(line, f"the {name} {_short(text)} is no finite number")
        return None


def _is_number(fields: list[str]) -> bool:
    return bool(fields) and _NUMBER.fullmatch(fields[0].strip()) is not None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")  # noqa: PLR2004 - for a message
