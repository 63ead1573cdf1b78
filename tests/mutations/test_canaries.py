"""A detector that is taken away is missed: without it, the corpus does not pass.

Each canary runs techniques against a guard in this process, first whole and then with exactly one
part replaced by nothing. The first must pass and the second must fail for that very detector:
otherwise the corpus would not notice that the part had stopped working.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

import pytest

from mutations.corpus import TECHNIQUES
from mutations.detectors import EVIDENCE
from mutations.rehearsal import Rehearsals, rehearse, rehearse_watched
from mutations.scene import guard_thread
from mutations.technique import By, Phase
from sealrun import tree, workspace
from sealrun.guard import core, fanotify
from sealrun.guard.armed import ArmedRun
from sealrun.guard.gitstate import Snapshot, snapshot
from sealrun.guard.mutations import EvidenceStore
from sealrun.guard.observer import OVERFLOW, Observer
from sealrun.workspace import Comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mutations.technique import Technique
    from sealrun.git import Repository
    from sealrun.guard.coverage import Moment
    from sealrun.guard.mutations import GitChange
    from sealrun.guard.observer import Event, Raw
    from sealrun.tree import CommittedTree

Patch = pytest.MonkeyPatch
_BY_NAME = {one.name: one for one in TECHNIQUES}
#: Writers that live for a millisecond or less.
_SHORT = [
    replace(_BY_NAME[name], name=f"{name}, {turn}")
    for turn in range(2)
    for name in ("rm", "echo >> in a subshell", "mv away", "chmod +x", "truncate to half", "tee -a")
]


def _no_content(patch: Patch) -> None:
    patch.setattr(workspace, "compare", lambda *_: Comparison((), 0, 0))


def _no_events(patch: Patch) -> None:
    whole = Observer.events

    def events(observer: Observer, raw: Raw) -> Iterator[Event]:
        for event in whole(observer, raw):
            if event.mask & OVERFLOW or observer.is_cookie(event):
                yield event

    patch.setattr(Observer, "events", events)


def _no_sweep(patch: Patch) -> None:
    patch.setattr(ArmedRun, "sweep", lambda *_, **__: None)


def _no_mounts(patch: Patch) -> None:
    patch.setattr(core.Guard, "_check_mounts", lambda *_: None)


def _no_root(patch: Patch) -> None:
    patch.setattr(core.Guard, "_check_root", lambda *_: None)


def _no_flags(patch: Patch) -> None:
    whole = workspace.compare

    def compare(tree: CommittedTree, repository: Repository) -> Comparison:
        found = whole(tree, repository)
        shown = tuple(replace(difference, hidden=False) for difference in found.differences)
        return replace(found, differences=shown)

    patch.setattr(workspace, "compare", compare)


def _no_hashing(patch: Patch) -> None:
    def add(
        appender: tree._Appender, oid: str, kind: str, source: IO[bytes], size: int
    ) -> bytes | None:
        at, content = appender.file.tell(), source.read(size)
        appender.file.write(content)
        appender.rows.append((oid, kind, at, size))
        return None if kind == "blob" else content

    patch.setattr(tree._Appender, "add", add)


def _no_replaced(patch: Patch) -> None:
    patch.setattr(workspace, "replaced_objects", lambda *_: ())


def _no_head(patch: Patch) -> None:
    patch.setattr(
        core, "snapshot", lambda places: replace(snapshot(places), head=None, branch=None)
    )


def _no_area(area: str) -> Callable[[Patch], None]:
    def disable(patch: Patch) -> None:
        whole = Snapshot.changes

        def changes(before: Snapshot, later: Snapshot, at: Moment) -> tuple[GitChange, ...]:
            return tuple(one for one in whole(before, later, at) if one.area != area)

        patch.setattr(Snapshot, "changes", changes)

    return disable


def _no_evidence(patch: Patch) -> None:
    patch.setattr(EvidenceStore, "_write", lambda *_, **__: None)


def _no_standing_watch(patch: Patch) -> None:
    patch.setattr(core.Guard, "stand", lambda *_: None)


@dataclass(frozen=True)
class Canary:
    """One part of the product, how it is taken away, and what misses it.

    Attributes:
        misses: what the check of the technique must then report, among others.
        technique: name of one that needs this part.
    """

    misses: str
    technique: str
    disable: Callable[[Patch], None]
    phase: Phase = Phase.DURING


CANARIES = (
    Canary(By.CONTENT, "on the block device below the file system", _no_content),
    Canary(By.CONTENT, "a hard link from outside, made now", _no_content),
    Canary(By.EVENT, "sed -i", _no_events),
    Canary(By.EVENT, "sed -i", _no_standing_watch, Phase.BETWEEN),
    Canary(By.REWRITE, "there and back within 1 ms", _no_events),
    Canary(By.SWEEP, "a hard link from outside, made before", _no_sweep),
    Canary(By.SWEEP, "a mapping that stays open", _no_sweep),
    Canary(By.MOUNT, "a tmpfs over a directory", _no_mounts),
    Canary(By.ROOT, "the root renamed, a copy in its place", _no_root),
    Canary(By.FLAG, "assume-unchanged", _no_flags),
    Canary(By.OBJECT, "an overwritten loose object", _no_hashing),
    Canary(By.REPLACED, "a replace ref over a blob", _no_replaced),
    Canary(By.HEAD, "git symbolic-ref moves HEAD", _no_head),
    Canary(By.REFS, "the branch moved in packed-refs", _no_area("refs")),
    Canary(By.INDEX, "the index holds other bytes", _no_area("index")),
    Canary(By.CONFIGURATION, "core.hooksPath", _no_area("configuration")),
    Canary(By.HOOKS, "a planted hook", _no_area("hooks")),
    Canary(By.INFO, "info/exclude", _no_area("info")),
    Canary(By.REPLACE, "a graft", _no_area("replace")),
    Canary(EVIDENCE, "cp over", _no_evidence),
)


def _technique(canary: Canary) -> Technique:
    return replace(_BY_NAME[canary.technique], phase=canary.phase)


@pytest.mark.parametrize(
    "canary", CANARIES, ids=lambda canary: f"{canary.misses}: {canary.technique}"
)
def test_a_missing_detector_is_noticed(canary: Canary, monkeypatch: Patch) -> None:
    """A technique passes with the whole product and fails for the very part that is taken away."""
    technique = _technique(canary)
    assert rehearse(technique, guard_thread).missing == ()
    canary.disable(monkeypatch)
    assert canary.misses in rehearse(technique, guard_thread).missing


#: The command, with the rules of what could be imported replaced by nothing.
_UNRULED = (
    "import sys\nfrom sealrun.__main__ import main\nfrom sealrun.importable import Surroundings\n"
    "whole = Surroundings.__init__\n"
    "def unruled(self, *rest):\n whole(self, *rest)\n assert self.judge\n self.judge = lambda *_: None\n"
    "Surroundings.__init__ = unruled\nsys.exit(main())"
)


def test_missing_rules_of_what_is_importable_are_noticed() -> None:
    """A start-up hook passes the watch once nobody asks what an extra file could be."""
    hook = _BY_NAME["a start-up hook (sitecustomize)"]
    assert rehearse(hook).missing == ()
    assert By.IMPORTABLE in rehearse_watched(hook, (sys.executable, "-c", _UNRULED)).missing


def test_every_detector_has_a_canary() -> None:
    """No detector can stop working without a test that notices."""
    assert {canary.misses for canary in CANARIES} | {By.IMPORTABLE} >= set(By)


def test_missing_attribution_is_noticed(monkeypatch: Patch) -> None:
    """Without the kernel's events about writers nobody is named, and the share says so."""
    whole = Rehearsals(guard_thread).share(_SHORT)
    assert whole.enough, whole.words

    def refused() -> int:
        raise PermissionError(1, "not here")

    monkeypatch.setattr(fanotify, "open_group", refused)
    assert Rehearsals(guard_thread).share(_SHORT, again=0).named == 0


def test_a_witness_that_is_slow_to_start_names_the_first_writer(monkeypatch: Patch) -> None:
    """What is written while its interpreter starts waits in the kernel's queue for it."""
    whole = subprocess.Popen

    def late(command: list[str], **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - Popen's
        slowly = (
            ["sh", "-c", 'sleep 1.5; exec "$@"', "late"]
            if "sealrun.guard.witness" in command
            else []
        )
        return whole([*slowly, *command], **options)

    monkeypatch.setattr("sealrun.guard.attribution.subprocess.Popen", late)
    shell = _BY_NAME["echo >> in a subshell"]
    # Even so a name can be lost, to a machine that stands still just then.
    assert any(rehearse(shell, guard_thread).is_named for _ in range(3))


def test_missing_process_events_are_noticed(monkeypatch: Patch) -> None:
    """Without process events nobody knows who started a daemon, and its check says so.

    The process that sees writers is put into another network namespace, where there are none.
    """
    daemon = _BY_NAME["a daemon that was forked twice"]
    whole = subprocess.Popen

    def elsewhere(command: list[str], **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - Popen's
        return whole(["unshare", "--net", *command], **options)

    assert rehearse(daemon, guard_thread).misnamed is None
    monkeypatch.setattr("sealrun.guard.attribution.subprocess.Popen", elsewhere)
    assert rehearse(daemon, guard_thread).misnamed is not None
