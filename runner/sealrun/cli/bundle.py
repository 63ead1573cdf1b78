"""``sealrun bundle``: runs in one file, to be checked and run again elsewhere.

Rules: whatever in a bundle does not hold is refused (121) with its reason, and nothing of it is
taken; what is not in a bundle is said when it is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.cli.reading import size as amount
from sealrun.cli.reading import visible
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from sealrun.provenance.keys import PublicKey

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Carry runs to another machine in one file, and check one that came from elsewhere.",
)

_Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
_File = Annotated[Path, typer.Argument(metavar="FILE", help="A bundle.")]
_Key = Annotated[
    Path | None,
    typer.Option("--key", help="The only public key that counts; else all known.", metavar="PUB"),
]
_Unsigned = Annotated[bool, typer.Option("--unsigned", help="Take runs that nobody signed, too.")]


@app.command("export")
def export_(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file.", metavar="FILE")],
    full: Annotated[
        bool, typer.Option("--full", help="With the layers of base and environment.")
    ] = False,
    json: _Json = False,
) -> Status:
    """Write runs into one file: commits, images, logs, outputs, evidence, statements.

    Without --full, whoever runs them again needs the same base and environment.

    Example:  sealrun bundle export 01KAJ3 -o night.sealrun --full
    """
    from sealrun.git import Repository
    from sealrun.leftovers import identify, writable_ledger
    from sealrun.provenance.bundle.export import export
    from sealrun.reproduce.rebuild import Stored
    from sealrun.state import Places

    voice = console.current()
    repository, places = Repository.here(), Places.of_user()
    stored = Stored(repository, identify(repository), places)
    with writable_ledger(repository, places, stored.repository_id) as ledger:
        wanted = [ledger.resolve(run) for run in runs]
        done = export(wanted, ledger, stored, output.absolute(), full=full, progress=voice)
    if json:
        voice.json(
            {
                "file": str(output),
                "bytes": done.size,
                "runs": [run.run for run in done.index.runs],
                "full": full,
                "left_out": list(done.left_out),
                "variables": list(done.variables),
            }
        )
        return Status.OK
    voice.data(f"{visible(output)}: {len(wanted)} runs, {amount(done.size)}")
    for sentence in done.left_out:
        voice.say(sentence)
    if done.variables:
        names = ", ".join(done.variables)
        voice.say(f"the values of these variables of the caller are in it: {names}")
    return Status.OK


@app.command("show")
def show(file: _File, json: _Json = False) -> Status:
    """Show what a bundle says that it holds; nothing but its form is checked.

    Example:  sealrun bundle show night.sealrun
    """
    from sealrun.provenance.bundle.checking import summary
    from sealrun.provenance.bundle.container import opened

    voice = console.current()
    with opened(file) as reader:
        index = reader.index
    runs = dict(summary(index))
    if json:
        voice.json(
            {
                "repository": index.repository,
                "full": index.full,
                "bytes": sum(one.size for one in index.contents),
                "runs": [{"run": run, **told} for run, told in runs.items()],
            }
        )
        return Status.OK
    total = amount(sum(one.size for one in index.contents))
    voice.data(f"{'full' if index.full else 'thin'} bundle, repository {index.repository}, {total}")
    for run, told in runs.items():
        signed = "signed" if told["signed"] else "not signed"
        voice.data(
            f"  {run}  commit {str(told['commit'])[:12]}  {signed}  {told['files']} files, "
            f"{told['layers_here']} of {told['layers']} layers"
        )
    return Status.OK


@app.command("verify")
def verify(
    file: _File, key: _Key = None, unsigned: _Unsigned = False, json: _Json = False
) -> Status:
    """Check everything in a bundle: form, digests, signatures, record, commits, images, files.

    Exits with 121 when something does not hold.

    Example:  sealrun bundle verify night.sealrun --key alice.pem
    """
    from sealrun.provenance.bundle.checking import checked
    from sealrun.state import Places

    voice, places = console.current(), Places.of_user()
    with checked(file, places.data / "unpacked", _keys(key), unsigned=unsigned) as found:
        rows = [
            {
                "run": run.entry.run,
                "key": run.key.id if run.key else None,
                "verdict": run.record.verdict,
            }
            for run in found.runs
        ]
        names = {run.entry.run: run.key.name if run.key else None for run in found.runs}
    if json:
        voice.json({"holds": True, "runs": rows})
        return Status.OK
    for row in rows:
        name = names[str(row["run"])]
        by = f"signed by {visible(name)} ({str(row['key'])[:16]})" if name else "not signed"
        voice.data(f"{row['run']}  {visible(row['verdict'])}  holds, {by}")
    return Status.OK


@app.command("import")
def import_(
    file: _File, key: _Key = None, unsigned: _Unsigned = False, json: _Json = False
) -> Status:
    """Check a bundle and take its runs: show, log --imported and reproduce find them here.

    They stand beside this repository's own runs, never among them.

    Example:  sealrun bundle import night.sealrun
    """
    from sealrun.gc.keeping import keeping
    from sealrun.git import Repository
    from sealrun.leftovers import identify
    from sealrun.provenance.bundle.checking import checked
    from sealrun.provenance.bundle.imported import install
    from sealrun.reproduce.rebuild import Stored
    from sealrun.state import Places

    voice = console.current()
    repository, places = Repository.here(), Places.of_user()
    with (
        keeping(places),
        checked(file, places.data / "unpacked", _keys(key), unsigned=unsigned) as found,
    ):
        # Only now: a bundle that is refused leaves nothing in the repository, not even its id.
        done = install(found, file, Stored(repository, identify(repository), places))
    if json:
        voice.json({"runs": done.runs, "known": done.known, "layers": done.layers})
        return Status.OK
    for run in done.runs:
        voice.data(f"{run}  imported")
    for run in done.known:
        voice.data(f"{run}  was here already")
    if done.layers:
        voice.say(f"{done.layers} layers of bases and environments were added")
    return Status.OK


def _keys(key: Path | None) -> list[PublicKey]:
    from sealrun.provenance.keys import Keys, read_public
    from sealrun.state import Places

    if key is None:
        return Keys.of(Places.of_user()).all()
    if not key.is_file():
        raise UsageError(f"there is no file {key}", hint="--key takes a public key in PEM.")
    return [read_public(key)]
