"""A finished night, judged: table, repository and logs held against each other.

Rules that this module keeps:

- Findings are data: whatever a table says, a night that can be read is judged.
- What cannot be known any more is said in words and numbers, beside what is known.
- Nothing is executed and nothing is written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun.audit import printed
from sealrun.audit.decisions import judge
from sealrun.audit.history import History, State, read_history
from sealrun.audit.lineage import Lineage, read_scripts, unmentioned
from sealrun.audit.objects import Objects
from sealrun.audit.suspects import decided_on, inherits
from sealrun.audit.table import CRASH, DISCARD, KEEP, STATUSES, Row, Table
from sealrun.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sealrun.audit.findings import Found
    from sealrun.audit.logs import Log, Logs
    from sealrun.git import Repository

_WORDS = {KEEP: "kept", DISCARD: "discarded", CRASH: "crashed"}


@dataclass(frozen=True)
class Question:
    """How a night is to be judged.

    Attributes:
        noise: gains below it could be luck; None where nobody said.
        maximize: whether more of the metric is better.
        metric: its name in logs.
        script: path of the training script in the commits.
        contaminated: row numbers or commits that are known to be contaminated.
    """

    noise: float | None = None
    maximize: bool = False
    metric: str = "val_bpb"
    script: str = "train.py"
    contaminated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Night:
    """A night as it was judged.

    Attributes:
        table: as read.
        lineage: of its rows; None where there is no repository.
        logs: of its rows; None where none were given.
        found: by row, then by code.
        agreed: numbers of the rows whose logs print the hashes of the committed bytes.
        repeat: numbers of the contaminated rows whose commits exist: a run of each gives its number.
        unknown: what cannot be known any more, each in a few words.
    """

    table: Table
    lineage: Lineage | None
    logs: Logs | None
    found: tuple[Found, ...]
    agreed: frozenset[int]
    repeat: tuple[int, ...]
    unknown: tuple[str, ...]


def judge_night(
    table: Table, question: Question, repository: Repository | None = None, logs: Logs | None = None
) -> Night:
    """Judge a night by its table and by what repository and logs still know.

    Raises:
        UsageError: a row named as contaminated is not in the table.
    """
    rows = table.rows
    marked = _marked(rows, question.contaminated)
    found = list(judge(rows, noise=question.noise, maximize=question.maximize))
    found += decided_on(rows, marked, maximize=question.maximize)
    by_row: Mapping[int, Log] = logs.by_row if logs else {}
    for row in rows:
        if row.number in by_row:
            found += printed.table(row, by_row[row.number], question.metric)
    lineage: Lineage | None = None
    agreed: set[int] = set()
    if repository is not None:
        written = [row.commit.lower() for row in rows if row.has_id]
        with Objects(repository) as objects:
            lineage = Lineage(rows, read_history(repository, written, objects))
            found += lineage.judge()
            found += inherits(lineage, marked)
            agreed = _committed(lineage, objects, by_row, question.script, found)
    order = {row.number: place for place, row in enumerate(rows)}
    found.sort(key=lambda one: (order[one.row], one.code))
    exists = lineage.commits if lineage else {}
    return Night(
        table=table,
        lineage=lineage,
        logs=logs,
        found=tuple(found),
        agreed=frozenset(agreed),
        repeat=tuple(number for number in sorted(marked) if number in exists),
        unknown=tuple(_unknown(rows, lineage, logs, agreed)),
    )


def _committed(
    lineage: Lineage,
    objects: Objects,
    logs: Mapping[int, Log],
    script: str,
    found: list[Found],
) -> set[int]:
    """Add what committed bytes say; return the rows whose logs print those bytes' hashes."""
    scripts = read_scripts(lineage, objects, script.encode("utf-8", "surrogateescape"))
    found += unmentioned(lineage, scripts)
    found += printed.same_code(lineage, logs)
    hashes = printed.Hashes(objects)
    for row in lineage.rows:
        commit, log = lineage.commits.get(row.number), logs.get(row.number)
        if commit is None or log is None:
            continue
        found += hashes.judge(row, log, commit)
        says = scripts.get(commit.id)
        if says is not None:
            found += printed.constants(row, log, says)
    return hashes.agreed


def _marked(rows: Sequence[Row], names: Sequence[str]) -> set[int]:
    marked: set[int] = set()
    for name in names:
        wanted = name.strip().lower()
        numbers = [row.number for row in rows if row.has_id and _same_id(row.commit, wanted)]
        if not numbers and wanted.isascii() and wanted.isdecimal():
            numbers = [row.number for row in rows if row.number == int(wanted[:9])]
        if not numbers:
            raise UsageError(
                f"--contaminated {name!r} is no row of this table",
                hint="Give the number of a row, counted from 1, or its commit as it is written.",
            )
        marked.update(numbers)
    return marked


def _same_id(written: str, wanted: str) -> bool:
    one = written.lower()
    return len(wanted) >= 4 and (one.startswith(wanted) or wanted.startswith(one))  # noqa: PLR2004 - git's shortest


def _unknown(
    rows: Sequence[Row], lineage: Lineage | None, logs: Logs | None, agreed: set[int]
) -> Iterator[str]:
    if not rows:
        return
    if lineage is None:
        yield "anything about the commits: there is no repository here"
    else:
        gone = sum(row.has_id and row.number not in lineage.commits for row in rows)
        if gone:
            yield f"what the commits of {gone} {_rows(gone)} held"
        unnamed = sum(not row.has_id for row in rows)
        if unnamed:
            yield f"which commit {unnamed} {_rows(unnamed)} {'is' if unnamed == 1 else 'are'} of"
        if lineage.history.shallow:
            yield "what is older than this shallow clone"
        if not lineage.history.moves:
            yield "what was amended or reset: there is no reflog"
    left = len(rows) - len(agreed)
    if left:
        why = "no logs were given" if logs is None else "no log says so"
        yield f"whether what ran was what was committed, for {left} {_rows(left)}: {why}"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def summary(night: Night) -> str:
    """Return one line: the rows, how many commits still exist, and what cannot be known any more."""
    rows = night.table.rows
    counts = Counter(row.status if row.status in STATUSES else "other" for row in rows)
    parts = [f"{counts[status]} {word}" for status, word in _WORDS.items()]
    if counts["other"]:
        parts.append(f"{counts['other']} of unknown status")
    line = f"{len(rows)} {_rows(len(rows))}: {', '.join(parts)}"
    if night.lineage is not None:
        existing, named = existing_commits(night)
        line += f"; {existing} of {named} commits still exist"
    if night.unknown:
        line += f"; not known any more: {'; '.join(night.unknown)}"
    return line


def existing_commits(night: Night) -> tuple[int, int]:
    """Return how many of the commits that the table names exist, and how many it names."""
    named = {row.commit.lower(): row.number for row in night.table.rows if row.has_id}
    commits = night.lineage.commits if night.lineage else {}
    return sum(number in commits for number in named.values()), len(named)


def document(night: Night) -> dict[str, Any]:
    """Return a night as JSON, schema 1."""
    rows = night.table.rows
    existing, named = existing_commits(night)
    counts = Counter(row.status for row in rows)
    return {
        "summary": {
            "rows": len(rows),
            **{_WORDS[status]: counts[status] for status in STATUSES},
            "commits": named,
            "existing": existing if night.lineage else None,
            "agreed": sorted(night.agreed),
            "unknown": list(night.unknown),
        },
        "problems": [{"line": one.line, "text": one.text} for one in night.table.problems],
        "log_problems": list(night.logs.problems) if night.logs else [],
        "rows": [_row(night, row) for row in rows],
        "findings": [
            {"code": one.code, "row": one.row, "other": one.other, "text": one.text}
            for one in night.found
        ],
        "repeat": list(night.repeat),
    }


def _row(night: Night, row: Row) -> dict[str, Any]:
    lineage = night.lineage
    history: History | None = lineage.history if lineage else None
    commit = lineage.commits.get(row.number) if lineage else None
    state = history.states.get(row.commit.lower(), State.NO_ID) if history else None
    log = night.logs.by_row.get(row.number) if night.logs else None
    return {
        "row": row.number,
        "line": row.line,
        "commit": row.commit,
        "value": row.value,
        "memory": row.memory,
        "status": row.status,
        "description": row.description,
        "state": state,
        "id": commit.id if commit else None,
        "parents": list(commit.parents) if commit else None,
        "in_reflog": history.seen_by_reflog(commit.id) if commit and history else None,
        "log": str(log.file) if log else None,
        "facts": dict(log.facts) if log else None,
    }
