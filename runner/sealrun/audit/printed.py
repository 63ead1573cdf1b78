"""Holds what the logs print against the committed bytes and against the table.

Rules that this module keeps:

- Only what committed bytes alone decide is held against them: the hash of a file, a constant that
  nothing changes. ``num_steps`` and the like depend on the machine and are compared with nothing.
- A file whose committed bytes give the printed hash once line feeds are CRLF is the same file: a
  checkout may have converted it.
- What agrees is counted, too. A log's hash is the script's own word about a file at one moment: it
  can contradict, it cannot prove.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING

from sealrun.audit.constants import printed_as
from sealrun.audit.findings import Code, Found

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sealrun.audit.constants import Script
    from sealrun.audit.lineage import Lineage
    from sealrun.audit.logs import Log
    from sealrun.audit.objects import Commit, Objects
    from sealrun.audit.table import Row

#: Facts of autoresearch's summary that describe the model, and do not change from run to run.
STRUCTURAL = ("num_params_M", "depth")
_HASH = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_MIB_PER_GIB = 1024


class Hashes:
    """The hashes that logs print of their own scripts, held against the commits.

    Attributes:
        agreed: numbers of the rows whose log prints a hash, and each is the commit's.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.agreed: set[int] = set()

    def judge(self, row: Row, log: Log, commit: Commit) -> Iterator[Found]:
        """Yield each file of which the log prints another hash than the commit has."""
        wrong = known = False
        for path, printed in self._hashes(log, commit):
            content = self.objects.file(commit, path)
            if content is None:
                continue
            known = True
            if printed not in _digests(content):
                wrong = True
                name = path.decode("utf-8", "backslashreplace")
                yield Found(
                    Code.RAN_OTHER_BYTES,
                    row.number,
                    f"{name} ran as {printed[:12]}, the commit holds "
                    f"{hashlib.sha256(content).hexdigest()[:12]}",
                )
        if known and not wrong:
            self.agreed.add(row.number)

    def _hashes(self, log: Log, commit: Commit) -> Iterator[tuple[bytes, str]]:
        yield from log.sums.items()
        named = {_label(path): path for path in self.objects.files(commit)}
        for name, value in log.facts.items():
            file = named.get(name.lower().removesuffix("_sha256"))
            if file is not None and name.lower().endswith("_sha256") and _HASH.fullmatch(value):
                yield file, value.lower()


def _label(path: bytes) -> str:
    return re.sub(r"\W", "_", path.decode("utf-8", "replace")).lower()


def _digests(content: bytes) -> set[str]:
    crlf = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return {hashlib.sha256(content).hexdigest(), hashlib.sha256(crlf).hexdigest()}


def constants(row: Row, log: Log, script: Script) -> Iterator[Found]:
    """Yield each constant that the log prints otherwise than the commit assigns it."""
    for label, shown in script.labels.items():
        printed = log.facts.get(label)
        if shown is None or printed is None or shown.constant not in script.constants:
            continue
        expected = printed_as(script.constants[shown.constant], shown.spec)
        if expected is not None and expected != printed:
            yield Found(
                Code.CONSTANT_DIFFERS,
                row.number,
                f"the log prints {label}: {printed}, the commit has {shown.constant} = {expected}",
            )


def table(row: Row, log: Log, metric: str) -> Iterator[Found]:
    """Yield what the row says otherwise than its log."""
    printed = _number(log.facts.get(metric))
    if printed is not None and row.value is not None and row.value != 0:
        # Half a unit of the last digit that the row has, and what floats make of it.
        slack = 0.5 * 10.0 ** -min(row.digits, 15) + 1e-12 * abs(printed)
        if abs(printed - row.value) > slack:
            yield Found(
                Code.LOG_DIFFERS,
                row.number,
                f"the log prints {metric}: {printed:.10g}, the row has {row.value:.10g}",
            )
    elif printed is not None and row.value == 0:
        yield Found(
            Code.LOG_DIFFERS,
            row.number,
            f"the row is a crash, its log prints {metric}: {printed:.10g}",
        )
    peak = _number(log.facts.get("peak_vram_mb"))
    if peak is not None and row.memory and abs(peak / _MIB_PER_GIB - row.memory) > 0.1:  # noqa: PLR2004 - tables round to 0.1
        yield Found(
            Code.LOG_DIFFERS,
            row.number,
            f"the log prints {peak / _MIB_PER_GIB:.1f} GiB of memory, the row has {row.memory:.10g}",
        )


def same_code(lineage: Lineage, logs: Mapping[int, Log]) -> Iterator[Found]:
    """Yield rows whose log prints other facts about the model than a log of the very same tree."""
    first: dict[tuple[str, str], tuple[Row, str]] = {}
    for row, commit, log in _logged(lineage, logs):
        for name in STRUCTURAL:
            printed = log.facts.get(name)
            if printed is None:
                continue
            earlier, before = first.setdefault((commit.tree, name), (row, printed))
            if before != printed:
                yield Found(
                    Code.SAME_CODE_OTHER_FACT,
                    row.number,
                    f"the log prints {name}: {printed}, that of row {earlier.number}, whose tree is "
                    f"the same, {before}",
                    earlier.number,
                )


def _logged(lineage: Lineage, logs: Mapping[int, Log]) -> Iterable[tuple[Row, Commit, Log]]:
    for row in lineage.rows:
        if row.number in logs and row.number in lineage.commits:
            yield row, lineage.commits[row.number], logs[row.number]


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
