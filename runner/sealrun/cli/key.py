"""``sealrun key``: the key that signs the caller's runs, and the keys of others.

Rules: no private key is ever printed; nothing is overwritten; loose permissions are refused.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from sealrun.provenance.keys import PublicKey

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make the key that signs your runs, and keep the keys that others' are checked with.",
)

_Json = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]


@app.command("create")
def create(json: _Json = False) -> Status:
    """Make an ed25519 key; from then on every run is signed at its end.

    Example:  sealrun key create
    """
    from sealrun.provenance.keys import Keys
    from sealrun.state import Places

    keys = Keys.of(Places.of_user())
    key = keys.create()
    screen = console.current()
    screen.say(f"made {keys.private}: keep it private, and give the public half away")
    _tell(key, json=json)
    return Status.OK


@app.command("show")
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A trusted key; else your own.")
    ] = None,
    json: _Json = False,
) -> Status:
    """Print a public key as PEM.

    Example:  sealrun key show > me.pem
    """
    from sealrun.provenance.keys import Keys
    from sealrun.state import Places

    keys = Keys.of(Places.of_user())
    if name is None:
        _tell(keys.own(), json=json)
        return Status.OK
    found = [key for key in keys.all() if key.name == name or key.id.startswith(name)]
    if len(found) != 1:
        raise UsageError(f"there is no key {name!r}", hint="sealrun key list shows the keys.")
    _tell(found[0], json=json)
    return Status.OK


@app.command("import")
def take(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="PEM, of ed25519.")],
    name: Annotated[
        str | None, typer.Option(help="Whose public key it is; else the file's name.")
    ] = None,
    json: _Json = False,
) -> Status:
    """Take a key: a public one is trusted for others' runs, a private one becomes your own.

    Take a public key from its owner, not from where you got the runs.

    Example:  sealrun key import alice.pem --name alice
    """
    from sealrun.provenance.keys import Keys
    from sealrun.state import Places

    _tell(Keys.of(Places.of_user()).take(file, name), json=json)
    return Status.OK


@app.command("list")
def list_(json: _Json = False) -> Status:
    """List your own key and those that you trust.

    Example:  sealrun key list
    """
    from sealrun.provenance.keys import Keys
    from sealrun.state import Places

    found = Keys.of(Places.of_user()).all()
    screen = console.current()
    if json:
        screen.json({"keys": [_document(key) for key in found]})
    elif not found:
        screen.say("no key: runs are not signed")
    else:
        for key in found:
            screen.data(f"{key.id}  {key.name}")
    return Status.OK


@app.command("sign")
def sign(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of earlier runs.")],
    json: _Json = False,
) -> Status:
    """Sign earlier runs as they are on record now; the statement says that it came late.

    A run whose signed statement is still there is left as it is.

    Example:  sealrun key sign 01KAJ3
    """
    from sealrun.git import Repository
    from sealrun.ledger import document
    from sealrun.leftovers import identify, writable_ledger
    from sealrun.provenance import sign_run
    from sealrun.provenance.faults import KeyFault
    from sealrun.provenance.signing import is_signed
    from sealrun.state import Places

    repository, places = Repository.here(), Places.of_user()
    screen = console.current()
    done: dict[str, str] = {}
    with writable_ledger(repository, places, identify(repository)) as ledger:
        for run in [ledger.resolve(one) for one in runs]:
            if is_signed(ledger.run(run), places.run(ledger.repository, run)):
                done[run] = "was signed already"
                continue
            if sign_run(run, ledger, repository, places, late=True) is None:
                raise KeyFault("there is no key", hint="sealrun key create makes one.")
            done[run] = "signed"
        documents = [document(ledger.run(run)) for run in done]
    if json:
        screen.json({"runs": [{"run": one["run"], "signed": one["signed"]} for one in documents]})
    else:
        for run, words in done.items():
            screen.data(f"{run}  {words}")
    return Status.OK


def _document(key: PublicKey) -> dict[str, str]:
    return {"id": key.id, "name": key.name, "public": key.pem}


def _tell(key: PublicKey, *, json: bool) -> None:
    screen = console.current()
    if json:
        screen.json({"key": _document(key)})
        return
    screen.say(f"key {key.id} ({key.name})")
    screen.data(key.pem.rstrip("\n"))
