"""Reads the number that an experiment printed about itself.

Rules that this module keeps:

- Whatever is read was written by the experiment and is hostile: lines are bounded, files are opened
  without following links or waiting on pipes, JSON bombs end in a sentence and not in a crash.
- A metric is always ``self-reported``; one that is missing or no finite number has no value, and
  the reason stands beside it.
- The last match counts, as with ``grep | tail -n 1``.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sealrun.policy import MetricPolicy

#: Bytes of a line that are looked at, and of a JSON file that are read.
LINE_LIMIT = 4096
FILE_LIMIT = 1 << 20
#: Bytes at the end of the output in which a metric is looked for.
OUTPUT_LIMIT = 16 << 20
_NUMBER = r"([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?))"


@dataclass(frozen=True)
class Metric:
    """A number that the experiment reported about itself.

    Attributes:
        value: a finite number, or None.
        source: ``output`` or the file below ``/out``.
        problem: why there is no value.
    """

    name: str
    value: float | None
    direction: str
    source: str
    problem: str | None = None
    self_reported: bool = True


def read_metric(policy: MetricPolicy, log: Path, out: Path) -> Metric:
    """Read the metric from an ended run.

    Args:
        log: the run's kept output.
        out: the host's directory behind ``/out``.
    """
    source = policy.file or "output"
    if policy.file is not None:
        value = _from_file(out, policy.file, policy.key or policy.name)
    else:
        pattern = policy.pattern or rf"^{re.escape(policy.name)}\s*[:=]\s*{_NUMBER}\s*$"
        value = _from_output(log, re.compile(pattern.encode(), re.IGNORECASE))
    if isinstance(value, str):
        return Metric(policy.name, None, policy.direction, source, value)
    if not math.isfinite(value):
        return Metric(policy.name, None, policy.direction, source, f"{value} is no finite number")
    return Metric(policy.name, value, policy.direction, source)


def _from_output(log: Path, pattern: re.Pattern[bytes]) -> float | str:
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - OUTPUT_LIMIT))
            content = file.read(OUTPUT_LIMIT)
    except OSError as error:
        return f"the output cannot be read: {error.strerror}"
    # Progress lines end in a carriage return; a metric may stand behind one.
    for line in reversed(re.split(rb"[\r\n]+", content)):
        if len(line) <= LINE_LIMIT and (match := pattern.search(line)):
            return _number(match[1].decode("utf-8", "replace"))
    return "the output holds no such line"


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return f"{text[:40]!r} is no number"


def _from_file(out: Path, name: str, key: str) -> float | str:
    try:
        document = json.loads(_read(out, name))
    except FileNotFoundError:
        return f"/out/{name} does not exist"
    except (OSError, ValueError, RecursionError) as error:
        return f"/out/{name} cannot be read: {str(error)[:200] or type(error).__name__}"
    for part in key.split("."):
        if not isinstance(document, dict) or part not in document:
            return f"/out/{name} holds no key {key}"
        document = document[part]
    if isinstance(document, bool) or not isinstance(document, int | float):
        return f"{key} in /out/{name} is no number"
    try:
        return float(document)
    except OverflowError:
        return f"{key} in /out/{name} is too large for a number"


def _read(out: Path, name: str) -> bytes:
    directory = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    nofollow = os.O_NOFOLLOW | os.O_CLOEXEC
    *parents, last = name.split("/")
    try:
        for part in parents:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | nofollow, dir_fd=directory)
            os.close(directory)
            directory = below
        handle = os.open(last, os.O_RDONLY | os.O_NONBLOCK | nofollow, dir_fd=directory)
    finally:
        os.close(directory)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no regular file")
        if status.st_size > FILE_LIMIT:
            raise OSError(f"larger than {FILE_LIMIT} bytes")
        return file.read(FILE_LIMIT)
