"""``sealrun cancel``: end a run that is under way."""

from __future__ import annotations

import os
import signal
import time
from typing import Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Fault, Status, UsageError

#: Seconds that the controller gets to stop, judge and record.
PATIENCE = 60.0


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a unique prefix.")],
) -> int:
    """End a run: its experiment is stopped, judged and recorded as stopped.

    Example:  sealrun cancel 01K9
    """
    from sealrun import facts
    from sealrun.git import Repository
    from sealrun.ledger import is_alive
    from sealrun.leftovers import identify, record_dead, writable_ledger
    from sealrun.state import Places

    repository = Repository.here()
    places = Places.of_user()
    identity = identify(repository)
    with writable_ledger(repository, places, identity) as ledger:
        run_id = ledger.resolve(run)
        record = ledger.run(run_id)
        if record.ended is not None:
            raise UsageError(
                f"run {run_id} has ended: {record.outcome}",
                hint="sealrun ps lists the runs that are under way.",
            )
        if not is_alive(places, identity, run_id):
            record_dead(ledger, places, identity)
            console.current().say(f"run {run_id}: its controller had died; recorded as interrupted")
            return Status.OK
    controller = record.opened.controller
    if controller is None or facts.start_time(controller.pid) != controller.started:
        raise Fault(
            f"the controller of run {run_id} cannot be found from here",
            hint="It may run in another container; cancel it there.",
        )
    os.kill(controller.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while is_alive(places, identity, run_id):
        if time.monotonic() > deadline:
            raise Fault(f"run {run_id} did not end within {PATIENCE:.0f} s")
        time.sleep(0.05)
    console.current().say(f"run {run_id} was stopped")
    return Status.OK
