"""The experiment itself, from the gate's opening to the end of its process.

Rules that this module keeps:

- Output passes untouched while deadline, signals, mutations and others' acts are looked for.
- What ends an experiment is decided by the policy's own judgement of a finding, and takes effect at
  once; how it is put on record is decided after the end, from all that was found.
- A signal is noted up to the end of the record: an impatient second one must not cost the verdict.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun import findings as found_by
from sealrun.course import Course, outcome_of
from sealrun.errors import EngineError, GuardError
from sealrun.reasons import Reason
from sealrun.verdict import Finding, Kind, Outcome, judge

if TYPE_CHECKING:
    from pathlib import Path

    from sealrun.course import Asked
    from sealrun.errors import SealrunError
    from sealrun.guard import GuardClient, Mutation
    from sealrun.policy import Policy
    from sealrun.progress import Listener
    from sealrun.sandbox.protocol import Container
    from sealrun.surroundings import Surroundings

#: Seconds between two looks at the deadline and at what others did to the container.
WATCH_EVERY = 0.05


def aborts(policy: Policy, *findings: Finding) -> bool:
    """Return whether findings end an experiment that runs."""
    return judge(findings, policy, started=True).kind is Kind.ABORTED


@dataclass
class Execution:
    """One experiment in its container. Call ``run`` once.

    Attributes:
        log: the file that keeps the output.
        interrupted: set by a signal's handler.
        struck: set by what aborts, and at the end, so that nobody waits for it any longer.
    """

    run_id: str
    asked: Asked
    container: Container
    policy: Policy
    guard: GuardClient
    around: Surroundings
    course: Course
    listener: Listener
    log: Path
    interrupted: threading.Event
    struck: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Open the gate, and return when the process has ended and its output was passed on.

        Raises:
            EngineError: the engine or the machine ended it.
        """
        course, container = self.course, self.container
        if not gc.isenabled():
            # Our caller put collections off to start faster, but a run can last for days. Modules
            # never become garbage: looking through them now would cost more than it saved.
            gc.freeze()
            gc.enable()
        container.open_gate()
        course.gate = time.monotonic()
        self._follow()
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            container.pump(self.asked.stdout, self.asked.stderr, self.log, self.policy.limits.log)
            course.ended = ended = container.finish()
        finally:
            self.over.set()
            self.struck.set()
            watcher.join()
        course.seconds = time.monotonic() - course.gate
        course.status = ended.exit_status
        course.outcome = outcome_of(ended, course.stopped_for)
        if course.outcome is Outcome.INTERRUPTED and not container.interference():
            raise EngineError(
                "the container ended without a word of its init",
                hint="The engine or the machine ended it; nothing was judged. Run again.",
            )
        if ended.stopped_for == "outputs":
            self.listener.say(
                f"stopped: more than {self.policy.sandbox.outputs} bytes of new files "
                "([sandbox] outputs in the policy)",
                level=-1,
            )

    def _follow(self) -> None:
        """Notice the first mutation, or the guard's end, that aborts under this run's policy."""

        def mutated(mutation: Mutation) -> None:
            tree, gate = self.around.tree, self.course.gate
            found = found_by.from_mutation(mutation, tree, gate, self.around.owners())
            if aborts(self.policy, found):
                self.struck.set()

        def lost(error: SealrunError) -> None:
            if aborts(self.policy, Finding(Reason.GUARD_DIED, error.message)):
                self.struck.set()

        try:
            self.guard.on_mutation(self.run_id, mutated, lost)
        except GuardError as error:
            # It died before the gate opened. The report at the end says so; here only a policy
            # that aborts on it has to know.
            lost(error)

    def _watch(self) -> None:
        """End the experiment at its deadline, on a signal, or on a mutation that aborts."""
        limit = self.policy.limits.deadline
        deadline = None if limit is None else time.monotonic() + limit
        while not self.over.is_set():
            # Interruption comes from a signal's handler, which may not take this event's lock.
            self.struck.wait(WATCH_EVERY)
            if self.over.is_set():
                return
            if self.interrupted.is_set():
                self.listener.say("interrupted: the experiment is being stopped", level=-1)
                self._stop(Outcome.STOPPED)
                return
            if deadline is not None and time.monotonic() > deadline:
                self._stop(Outcome.TIMED_OUT)
                return
            acts = self.container.interference(settled=False)
            if self.struck.is_set() or aborts(self.policy, *found_by.from_interference(acts)):
                self._stop(Outcome.STOPPED)
                return

    def _stop(self, because: Outcome) -> None:
        self.course.stopped_for = because
        with contextlib.suppress(EngineError):
            # An engine that went away is noticed, and told, by whoever reads from it.
            self.container.stop(self.policy.limits.grace)
