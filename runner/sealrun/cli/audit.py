"""``sealrun audit``: judges a night that is over.

Rules that this module keeps:

- It reads; it never begins a ledger, makes no repository id and changes nothing.
- Findings are data: it exits with 0 whenever it could judge, and with 2 where it could not read.
- The first line is the summary, with what cannot be known any more.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.cli.reading import NO_RUNS, open_here, visible
from sealrun.errors import RepositoryError, Status, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sealrun.audit.findings import Found
    from sealrun.audit.night import Night
    from sealrun.audit.suspects import Suspects
    from sealrun.audit.table import Table
    from sealrun.git import Repository
    from sealrun.ledger import Ledger

#: Bytes of a results file that is read: a real night has some kilobytes.
SIZE_LIMIT = 64 << 20
#: Lines of a kind that are shown; --json has all.
_SHOWN = 100


def command(
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge the night of this results.tsv.")
    ] = None,
    logs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Its logs, named by commit or by row number."),
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Gains smaller than this could be luck, e.g. 3e-4.")
    ] = None,
    maximize: Annotated[
        bool, typer.Option("--maximize", help="More of the metric is better.")
    ] = False,
    metric: Annotated[str, typer.Option(help="Name of the metric in the logs.")] = "val_bpb",
    script: Annotated[
        str, typer.Option(help="Path of the training script in the commits.")
    ] = "train.py",
    contaminated: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROW",
            help="A row known to be contaminated, by number or commit: what rests on it? Repeatable.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> Status:
    """Judge a finished night: of a loop that ran without sealrun, or of this repository's record.

    With --results it holds a loop's table against what the repository, its reflog and the logs still
    know. Without, it names the runs on record that were compared with a number that does not count,
    and the fewest to repeat.

    Example:  sealrun audit --results results.tsv --logs logs/ --noise 3e-4
    """
    if results is None:
        given = {"--logs": logs, "--noise": noise, "--contaminated": contaminated}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} needs --results")
        return _record(json=json)
    if noise is not None and not 0 <= noise < float("inf"):
        raise UsageError(f"--noise {noise} is no amount", hint="Give a gain of 0 or more.")
    from sealrun.audit.logs import read_logs
    from sealrun.audit.night import Question, document, judge_night, summary

    table = read_table(results)
    night = judge_night(
        table,
        Question(noise, maximize, metric, script, tuple(contaminated or ())),
        _repository(),
        read_logs(logs, table.rows) if logs is not None else None,
    )
    screen = console.current()
    if json:
        screen.json({"audit": document(night)})
        return Status.OK
    screen.data(visible(summary(night)))
    for line in night_lines(night):
        screen.data(visible(line))
    return Status.OK


def read_table(file: Path) -> Table:
    """Read a results file.

    Raises:
        UsageError: it cannot be read, is too large, or holds no row and no header.
    """
    from sealrun.audit.table import parse

    try:
        # Not to wait on a pipe that nobody writes to.
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UsageError(f"--results {file} is no regular file")
            content = stream.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"--results {file} cannot be read: {words}") from error
    if len(content) > SIZE_LIMIT:
        raise UsageError(f"--results {file} has more than {SIZE_LIMIT >> 20} MiB: no night has")
    table = parse(content)
    if not table.rows and not table.headed:
        raise UsageError(
            f"--results {file} holds no row and no header of a results file",
            hint="It should have the columns commit, val_bpb, memory_gb, status, description.",
        )
    return table


def _repository() -> Repository | None:
    from sealrun.git import Repository

    try:
        return Repository.here()
    except RepositoryError as error:
        console.current().say(f"{error.message}: the table is judged by itself")
        return None


def night_lines(night: Night) -> Iterator[str]:
    """Yield what was found, for a person: what is wrong with the lines, then row by row."""
    problems = [f"line {one.line}: {one.text}" for one in night.table.problems]
    problems += [f"log {text}" for text in night.logs.problems] if night.logs else []
    yield from _section("not as it should be written", problems)
    lines = {row.number: row.line for row in night.table.rows}
    yield from _section("found", list(_grouped(night.found, lines)))
    if night.agreed:
        yield ""
        yield f"{ranges(night.agreed)}: the log prints the hash of the committed bytes"
    if night.repeat:
        yield ""
        yield f"to repeat, the contaminated commits that exist: {ranges(night.repeat)}"


def _section(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
        yield from (f"  {line}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"  and {len(lines) - _SHOWN} more; --json has them all"


def _grouped(found: Iterable[Found], lines: dict[int, int]) -> Iterator[str]:
    """Yield a line for each finding; those that say the same of several rows are one."""
    groups: dict[tuple[str, str], list[int]] = {}
    for one in found:
        groups.setdefault((one.code, one.text), []).append(one.row)
    for (code, text), rows in groups.items():
        where = ranges(rows)
        if len(rows) == 1:
            where += f" (line {lines[rows[0]]})"
        yield f"{where}: {text} [{code}]"


def ranges(numbers: Iterable[int]) -> str:
    """Return row numbers as a person reads them: ``rows 1, 3-7``."""
    ordered = sorted(set(numbers))
    parts: list[str] = []
    start = 0
    for place, number in enumerate(ordered):
        if place + 1 < len(ordered) and ordered[place + 1] == number + 1:
            continue
        first = ordered[start]
        parts.append(str(first) if first == number else f"{first}-{number}")
        start = place + 1
    return f"row{'s' if len(ordered) > 1 else ''} {', '.join(parts)}"


# -- our own record ------------------------------------------------------------------------------


def _record(*, json: bool) -> Status:
    from sealrun.audit.suspects import Suspects

    screen = console.current()
    with open_here() as here:
        if here.ledger is None or not here.ledger.runs():
            if json:
                screen.json({"suspects": _document(Suspects(), 0)})
            else:
                screen.say(NO_RUNS)
            return Status.OK
        numbers, found = _suspects(here.ledger)
        if json:
            screen.json({"suspects": _document(found, numbers)})
        else:
            for line in record_lines(found, numbers, here.ledger):
                screen.data(visible(line))
    return Status.OK


def _suspects(ledger: Ledger) -> tuple[int, Suspects]:
    from sealrun.audit.history import read_history
    from sealrun.audit.ledger import measured
    from sealrun.audit.objects import Objects
    from sealrun.audit.suspects import suspects
    from sealrun.git import Repository

    runs = measured(ledger.runs())
    repository = Repository.here()
    with Objects(repository) as objects:
        history = read_history(repository, (run.commit for run in runs if run.foreign), objects)
    return len(runs), suspects(runs, history.descends)


def _document(found: Suspects, numbers: int) -> dict[str, Any]:
    return {
        "numbers": numbers,
        "contaminated": list(found.contaminated),
        "compared": dict(found.compared),
        "inherits": dict(found.inherits),
        "repeat": list(found.repeat),
    }


def record_lines(found: Suspects, numbers: int, ledger: Ledger) -> Iterator[str]:
    """Yield what rests on numbers that do not count, for a person."""
    short = ledger.shortest
    yield (
        f"{numbers} runs with a number: {len(found.contaminated)} do not count, "
        f"{len(found.compared)} were compared with one of those, "
        f"{len(found.inherits)} are built on foreign bytes"
    )
    yield from _section(
        "does not belong to its commit alone", [short(run) for run in found.contaminated]
    )
    yield from _section(
        "suspect: a ratchet compared it with a number that does not count",
        [f"{short(run)}, with {short(best)}" for run, best in found.compared.items()],
    )
    yield from _section(
        "its commit is built on one that holds foreign bytes",
        [f"{short(run)}, on {short(source)}" for run, source in found.inherits.items()],
    )
    yield from _section(
        "to repeat: no run of the commit has a number that counts",
        [f"{short(run)}, commit {ledger.run(run).commit[:9]}" for run in found.repeat],
    )
