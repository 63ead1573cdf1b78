"""``sealrun reproduce``: run a recorded run again from its image, and compare.

Rules that this module keeps:

- The experiment's output goes to the repetition's log; stdout holds the comparison alone.
- Status 123 means ``different`` and nothing else. In a batch it wins over trouble of ours (125), so
  that no run that failed to start hides one that differs.
"""

from __future__ import annotations

import math
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.cli.reading import metric_value, visible
from sealrun.errors import Fault, Interrupted, SealrunError, Status, StorageFault, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from sealrun.ledger import Ledger, RunRecord
    from sealrun.reproduce.again import Repetition, Reproduction
    from sealrun.reproduce.rebuild import Stored

#: What a loop calls its table.
RESULTS = "results.tsv"
#: Bytes of a table that are read.
_TABLE_LIMIT = 64 << 20
#: Repetitions of one run at most.
_MOST = 1000


def command(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|COMMIT]", help="A run's id, or a commit as a table has it."),
    ] = None,
    times: Annotated[
        int,
        typer.Option(
            min=1, max=_MOST, help="How often; from two on they show a tolerance.", metavar="N"
        ),
    ] = 1,
    tolerance: Annotated[
        float | None,
        typer.Option(help="How far the metric may be from the original's.", metavar="X"),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every run on record that had an image, oldest first.")
    ] = False,
    kept: Annotated[
        bool, typer.Option("--kept", help="Each row that the loop's table keeps.")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="The loop's table, with --kept.", metavar="FILE", show_default=RESULTS),
    ] = None,
    pass_variable: Annotated[
        list[str] | None,
        typer.Option(help="A variable of yours that a run from a bundle gets too.", metavar="NAME"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> int:
    """Run a recorded run again from its image, without network, and compare.

    Says whether the outputs are identical bit for bit, or the metric is, or lies within the
    tolerance, or differs (status 123), or cannot be compared because something that decides it
    differs: GPU, CPU, threads, a budget of time. Each repetition is a run on record.

    Example:  sealrun reproduce 01KAJ3 --times 3
    """
    from sealrun.git import Repository
    from sealrun.leftovers import identify, writable_ledger
    from sealrun.reproduce.again import originals, reproduce
    from sealrun.reproduce.rebuild import Stored
    from sealrun.state import Places

    if (run is not None) + all_ + kept != 1:
        raise UsageError(
            "name one run or commit, or give --all or --kept",
            hint="sealrun log lists the runs.",
        )
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError("--tolerance is no distance", hint="For example 0.002.")
    if results is not None and not kept:
        raise UsageError("--results goes with --kept", hint="Give --kept, or leave the table out.")
    passing = tuple(pass_variable or ())
    if passing and run is None:
        raise UsageError("--pass-variable goes with one run", hint="Name the run.")
    voice = console.current()
    repository = Repository.here()
    places = Places.of_user()
    stored = Stored(repository, identify(repository), places)
    with writable_ledger(repository, places, stored.repository_id) as ledger:
        if run is not None:
            wanted = [own_or_imported(ledger, stored, run)]
        elif all_:
            wanted = originals(ledger)
        else:
            wanted = kept_by(ledger, results or repository.workspace / RESULTS)
    if run is not None:
        made = reproduce(
            wanted[0], stored, voice, times=times, tolerance=tolerance, passing=passing
        )
        if json:
            voice.json(_document(made))
        else:
            _tell(made)
        return _status([made], failed=False)
    return _batch(wanted, stored, times, tolerance, json=json)


def own_or_imported(ledger: Ledger, stored: Stored, named: str) -> RunRecord:
    """Return the run that is named by id or commit; of imported ones by id alone.

    Raises:
        UsageError: there is none, or several.
    """
    from sealrun.provenance.bundle import imported
    from sealrun.reproduce.again import find

    try:
        return find(ledger, named)
    except UsageError as unknown:
        try:
            return imported.find(stored.places, stored.repository_id, named).record
        except UsageError:
            raise unknown from None


def kept_by(ledger: Ledger, file: Path) -> list[RunRecord]:
    """Return the run of each row that a loop's table keeps; says which rows have none.

    Raises:
        UsageError: the table cannot be read.
    """
    from sealrun.reproduce.again import kept

    try:
        with file.open("rb") as stream:
            content = stream.read(_TABLE_LIMIT)
    except OSError as error:
        raise UsageError(
            f"the table {file} cannot be read: {error.strerror}",
            hint="Name the loop's table with --results FILE.",
        ) from error
    found, without = kept(ledger, content)
    for sentence in without:
        console.current().say(sentence)
    return found


def _batch(
    wanted: list[RunRecord], stored: Stored, times: int, tolerance: float | None, *, json: bool
) -> int:
    from sealrun.reproduce.again import reproduce

    voice = console.current()
    made: list[tuple[RunRecord, Reproduction | SealrunError]] = []
    interrupted: Interrupted | None = None
    for number, original in enumerate(wanted, 1):
        voice.say(f"{number} of {len(wanted)}: run {original.run}, commit {original.commit[:9]}")
        try:
            made.append(
                (original, reproduce(original, stored, voice, times=times, tolerance=tolerance))
            )
        except Interrupted as error:
            interrupted = error
            break
        except StorageFault:
            # A full disk, or a ledger that cannot be written, will not be better for the next one.
            raise
        except SealrunError as error:
            voice.error(error)
            made.append((original, error))
    if json:
        voice.json({"reproductions": [_row(original, one) for original, one in made]})
    elif made:
        voice.table(_table(made))
    else:
        voice.say("no run to reproduce")
    if interrupted is not None:
        raise interrupted
    done = [one for _, one in made if not isinstance(one, SealrunError)]
    return _status(done, failed=len(done) < len(made))


def _status(made: list[Reproduction], *, failed: bool) -> Status:
    from sealrun.reproduce.sameness import Likeness

    if any(one.likeness is Likeness.DIFFERENT for one in made):
        return Status.DIFFERENT
    return Status.FAULT if failed else Status.OK


def _tell(made: Reproduction) -> None:
    out = console.current()
    name = made.original.run
    out.data(f"run {name}, commit {made.original.commit[:9]}: {_words(made.likeness)}")
    image = made.original.progress.image_id or ""
    out.data(f"  image      {image} rebuilt to the same id")
    for one in made.repetitions:
        _tell_one(made, one, several=len(made.repetitions) > 1)
    if made.tolerance is not None:
        out.data(f"  tolerance  {made.tolerance.width:.10g}, {made.tolerance.source}")


def _tell_one(made: Reproduction, one: Repetition, *, several: bool) -> None:
    from sealrun.reproduce.again import metric_of

    out = console.current()
    suffix = f": {_words(one.sameness.likeness)}" if several else ""
    out.data(f"  again as   {one.record.run}{suffix}")
    then, now = metric_of(made.original), metric_of(one.record)
    if then is not None or now is not None:
        out.data(f"  metric     {metric_value(then)} then, {metric_value(now)} now")
    if one.sameness.compared:
        out.data(f"  outputs    {one.sameness.compared} files compared by content")
    for words in one.sameness.differences:
        out.data(f"  differs    {visible(words)}")
    for words in one.sameness.conditions:
        out.data(f"  condition  {visible(words)}")


def _words(likeness: str) -> str:
    return {
        "outputs-identical": "outputs identical bit for bit",
        "metric-identical": "metric identical",
        "within-tolerance": "metric within tolerance",
        "different": "different",
        "incomparable": "incomparable",
    }[likeness]


def _table(made: list[tuple[RunRecord, Reproduction | SealrunError]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from sealrun.reproduce.again import metric_of

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "commit", "then", "now", "result", "why"):
        shown.add_column(name, no_wrap=name != "why", overflow="fold")
    for original, one in made:
        if isinstance(one, SealrunError):
            now, result, why = None, "not reproduced", one.message
        else:
            last = one.repetitions[-1]
            now, result = metric_of(last.record), _words(one.likeness)
            why = "; ".join((*last.sameness.conditions, *last.sameness.differences))
        cells = (
            original.run,
            original.commit[:9],
            metric_value(metric_of(original)),
            metric_value(now),
            result,
            why,
        )
        shown.add_row(*(Text(visible(cell)) for cell in cells))
    return shown


def _row(original: RunRecord, made: Reproduction | SealrunError) -> dict[str, Any]:
    if isinstance(made, SealrunError):
        kind = "fault" if isinstance(made, Fault) else "refused"
        return {
            "original": original.run,
            "commit": original.commit,
            "likeness": None,
            kind: made.message,
            "repetitions": [],
        }
    return _document(made)


def _document(made: Reproduction) -> dict[str, Any]:
    from sealrun.ledger import document
    from sealrun.reproduce.again import metric_of

    allowed = made.tolerance
    return {
        "original": made.original.run,
        "commit": made.original.commit,
        "image_id": made.original.progress.image_id,
        "likeness": made.likeness.value,
        "metric": metric_of(made.original),
        "tolerance": None
        if allowed is None
        else {"width": allowed.width, "source": allowed.source},
        "repetitions": [
            {
                "run": one.record.run,
                "image_id": one.record.progress.image_id,
                "likeness": one.sameness.likeness.value,
                "metric": metric_of(one.record),
                "outputs_compared": one.sameness.compared,
                "differences": list(one.sameness.differences),
                "conditions": list(one.sameness.conditions),
                "verdict": one.record.verdict,
                "outcome": one.record.outcome,
                "seconds": document(one.record)["seconds"],
            }
            for one in made.repetitions
        ],
    }
