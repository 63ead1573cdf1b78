"""Reads the logs of a night: which belongs to which row, and the facts that it prints.

Rules that this module keeps:

- Logs are hostile: opened without following links or waiting on pipes, read to a bound, printed
  names and values bounded; a carriage return ends a line as a line feed does.
- The last value of a name counts, as with ``grep | tail -n 1``.
- A log belongs to a row by its name alone: the row's commit, or the row's number. What fits two rows,
  or none, is named and not used.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import UsageError
from sealrun.regular import end

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.audit.table import Row

#: Bytes of a log that are read, its end; names in one; files in a directory.
SIZE_LIMIT = 16 << 20
NAMES_LIMIT = 1000
FILES_LIMIT = 20_000
_LINE_LIMIT = 4096
_FACT = re.compile(rb"[ \t]*([A-Za-z_]\w{0,99})[ \t]*[:=][ \t]*(\S[^\t]{0,199}?)[ \t]*")
#: As sha256sum(1) prints it.
_SUM = re.compile(rb"([0-9a-f]{64}) [ *](\S[^\n]{0,999})")
_NUMBERED = re.compile(r"(?:row|run|exp|experiment)?[-_ ]?0*(\d{1,6})", re.IGNORECASE | re.ASCII)
_HEXADECIMAL = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class Log:
    """The facts that one log prints.

    Attributes:
        file: where it is.
        facts: name -> value as printed, the last of each name.
        sums: file name -> sha256, as sha256sum prints them.
    """

    file: Path
    facts: Mapping[str, str]
    sums: Mapping[bytes, str]


@dataclass(frozen=True)
class Logs:
    """The logs of a night.

    Attributes:
        by_row: number of the row -> its log.
        problems: about files that were not used, each a sentence.
    """

    by_row: Mapping[int, Log]
    problems: tuple[str, ...]


def read_logs(directory: Path, rows: Sequence[Row]) -> Logs:
    """Read the logs in a directory.

    Raises:
        UsageError: the directory cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(directory))
    except OSError as error:
        raise UsageError(
            f"--logs {directory} cannot be read: {error.strerror}",
            hint="Give a directory of files named by commit or by row number, e.g. bea057b.log.",
        ) from error
    by_row: dict[int, Log] = {}
    problems: list[str] = []
    if len(names) > FILES_LIMIT:
        problems.append(f"only the first {FILES_LIMIT} of {len(names)} files are looked at")
    owners = _Owners(rows)
    for name in names[:FILES_LIMIT]:
        numbers = owners.of(name)
        if len(numbers) != 1:
            problems.append(f"{name}: names {'several rows' if numbers else 'no row'}")
        elif numbers[0] in by_row:
            problems.append(f"{name}: row {numbers[0]} has {by_row[numbers[0]].file.name} already")
        elif (content := end(directory / name, SIZE_LIMIT)) is None:
            problems.append(f"{name}: cannot be read as a regular file")
        else:
            by_row[numbers[0]] = parse_log(directory / name, content)
    return Logs(by_row, tuple(problems))


class _Owners:
    """Finds the rows that a file's name means."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.numbers = {row.number for row in rows}
        self.commits: dict[str, list[tuple[str, int]]] = {}
        for row in rows:
            if row.has_id:
                commit = row.commit.lower()
                self.commits.setdefault(commit[:4], []).append((commit, row.number))

    def of(self, name: str) -> list[int]:
        stem = name.partition(".")[0].lower()
        digits = re.sub(r"^(?:commit|run|row|log)[-_]", "", stem)
        if _HEXADECIMAL.fullmatch(digits):
            named = [
                number
                for commit, number in self.commits.get(digits[:4], [])
                if commit.startswith(digits) or digits.startswith(commit)
            ]
            if named:
                return named
        match = _NUMBERED.fullmatch(stem)
        return [int(match[1])] if match and int(match[1]) in self.numbers else []


def parse_log(file: Path, content: bytes) -> Log:
    """Collect the facts that a log prints."""
    facts: dict[str, str] = {}
    sums: dict[bytes, str] = {}
    for line in _lines(content):
        if (summed := _SUM.fullmatch(line)) and len(sums) < NAMES_LIMIT:
            sums[summed[2].removeprefix(b"./")] = summed[1].decode("ascii")
        elif match := _FACT.fullmatch(line):
            name = match[1].decode("ascii", "replace")
            if name in facts or len(facts) < NAMES_LIMIT:
                facts[name] = match[2].decode("utf-8", "replace").strip()
    return Log(file, facts, sums)


def _lines(content: bytes) -> Iterator[bytes]:
    for line in re.split(rb"[\r\n]", content):
        if 0 < len(line) <= _LINE_LIMIT:
            yield line
