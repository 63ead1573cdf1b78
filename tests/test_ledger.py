"""The ledger: its chain, its projections, and what becomes of it when things go wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from _ledger import (
    COMMIT,
    HOSTILE,
    REPOSITORY,
    alert,
    any_record,
    any_text,
    ended,
    hostile_run,
    ledger_at,
    opened,
    python,
    ready,
    write_run,
)
from sealrun.errors import LedgerError, LedgerMissing, StorageFault, UsageError
from sealrun.ledger import (
    Anchor,
    Approval,
    Because,
    EngineFacts,
    Filter,
    Judgement,
    Ledger,
    MetricFacts,
    Note,
    Pin,
    RunOpened,
    RunProgress,
    document,
    events,
    faults,
    is_alive,
    new_ulid,
    open_ledger,
    projections,
    schema,
    ulid,
    utc,
)
from sealrun.ledger.chain import Link, genesis, link_hash, verify
from sealrun.ledger.codec import (
    LIST_BOUND,
    TEXT_BOUND,
    canonical,
    fit,
    from_document,
    load,
    to_document,
    unfit,
)
from sealrun.ledger.events import KINDS
from sealrun.ledger.ulid import canonical_prefix, encode, is_ulid
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FEW = settings(max_examples=25, deadline=None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a ledger may stand."""
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(file: Path) -> Iterator[Ledger]:
    """Give a ledger without events, open for writing."""
    with ledger_at(file) as one:
        yield one


# -- ids -----------------------------------------------------------------------------------------


def test_ids_rise() -> None:
    """Each id of a process is greater than the one before, also when the clock steps back."""
    ids = [new_ulid(milliseconds) for milliseconds in (5, 5, 5, 9, 3, 9, 10)]
    assert ids == sorted(set(ids))
    assert all(is_ulid(one) for one in ids)


def test_id_of_the_specification() -> None:
    """A number is written as the ULID specification writes it."""
    assert encode(2**128 - 1) == "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
    assert encode(1469918176385 << 80) == "01ARYZ6S41" + "0" * 16


def test_ids_of_a_fork_differ() -> None:
    """A child draws its own random bits within the same millisecond."""
    new_ulid(2**47)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, new_ulid(2**47).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 26).decode() != new_ulid(2**47)
    ulid._clockwork.forget()


def test_prefix_spelling() -> None:
    """A prefix is read in either case, and with the letters that people mistake."""
    assert canonical_prefix(" o1iL") == "0111"
    assert canonical_prefix("uu") is None
    assert canonical_prefix("") is None


def test_resolve(ledger: Ledger) -> None:
    """Any unique prefix names a run; an ambiguous one lists the candidates."""
    ulid._clockwork.forget()
    first, second = new_ulid(10**12), new_ulid(10**12 + 5)
    ulid._clockwork.forget()
    ledger.append(opened(first))
    ledger.append(opened(second))
    assert ledger.resolve(first.lower()) == first
    assert ledger.resolve(ledger.shortest(second)) == second
    assert len(ledger.shortest(first)) == 10
    with pytest.raises(UsageError, match=f"{first}, {second}"):
        ledger.resolve(first[:4])
    for nothing in ("7", "not an id", ""):
        with pytest.raises(UsageError, match="no run"):
            ledger.resolve(nothing)


# -- records as JSON -----------------------------------------------------------------------------


@given(any_text(100))
@example("\ufffdDCFF")
def test_text_survives(text: str) -> None:
    """Any text is read back exactly, from JSON that a strict reader takes."""
    fitted = fit(text)
    assert unfit(fitted) == text
    fitted.encode("utf-8")


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@given(data=st.data())
@_FEW
def test_records_survive(kind: type[Any], data: st.DataObject) -> None:
    """Every event is read back exactly, and writing it again gives the same bytes."""
    record = data.draw(any_record(kind))
    written, cut = to_document(record)
    text = canonical(written)
    assert not cut
    assert text.isascii()
    again = from_document(kind, load(text))
    assert again == record
    assert canonical(to_document(again)[0]) == text


def test_numbers_that_are_none() -> None:
    """NaN and the infinities are kept as text, so that the JSON stays valid."""
    for value in (math.nan, math.inf, -math.inf):
        facts = MetricFacts(name="m", value=value)
        text = canonical(to_document(facts)[0])
        json.loads(text, parse_constant=pytest.fail)
        again = from_document(MetricFacts, load(text)).value
        assert again is not None
        assert repr(again) == repr(value)


@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=8), st.integers(-9, 9))
@_FEW
def test_long_text_is_cut_and_marked(unit: str, around: int) -> None:
    """A text keeps at most 64 KiB, is cut between characters, and the record says how long it was."""
    size = len(unit.encode("utf-8", "surrogatepass"))
    text = unit * ((TEXT_BOUND + around) // size + 1)
    whole = len(text.encode("utf-8", "surrogatepass"))
    written, cut = to_document(Note(code="n", text=text))
    kept = from_document(Note, written).text
    assert text.startswith(kept)
    assert len(kept.encode("utf-8", "surrogatepass")) <= TEXT_BOUND
    assert cut == ({"text": whole} if whole > TEXT_BOUND else {})


def test_long_lists_are_cut_and_marked() -> None:
    """A list stops where its bytes are used up; the record says how many elements there were."""
    paths = tuple(f"{number:064}" for number in range(50_000))
    written, cut = to_document(alert(None, paths=paths))
    kept = written["paths"]
    assert isinstance(kept, list)
    assert 0 < len(kept) < len(paths)
    assert len(canonical(kept)) < 2 * LIST_BOUND
    assert cut == {"paths": len(paths)}


def test_a_command_is_never_cut() -> None:
    """An argument list of any length that the kernel takes is kept whole."""
    record = opened(command=("python3", "-c", "#" * ((128 << 10) - 1)))
    written, cut = to_document(record)
    assert not cut
    assert from_document(RunOpened, written).command == record.command


# -- the chain -----------------------------------------------------------------------------------


def chained(payloads: list[str]) -> list[Link]:
    """Return a sound chain."""
    links: list[Link] = []
    previous = genesis(REPOSITORY)
    for number, payload in enumerate(payloads, 1):
        link = Link(number, utc(), number, "boot", "note", None, payload, previous, b"")
        link = dataclasses.replace(link, hash=link_hash(link))
        links.append(link)
        previous = link.hash
    return links


def checked(links: list[Link], anchor: Anchor | None = None) -> list[tuple[int, str]]:
    """Return number and kind of each break."""
    report = verify(genesis(REPOSITORY), links, anchor)
    return [(found.seq, found.what) for found in report.breaks]


chains = st.lists(st.text(max_size=5), min_size=3, max_size=12).map(chained)


@given(chains)
def test_a_sound_chain_is_sound(links: list[Link]) -> None:
    """A chain that nobody touched holds, also against each head that it ever had."""
    assert not checked(links)
    for link in links:
        assert not checked(links, Anchor(link.seq, link.hash.hex()))


@given(chains, st.data())
def test_an_edit_is_named(links: list[Link], data: st.DataObject) -> None:
    """A change of any column of any event is found at its number."""
    at = data.draw(st.integers(0, len(links) - 1))
    name = data.draw(st.sampled_from(["at", "monotonic_ns", "boot_id", "kind", "run", "payload"]))
    value = links[at].monotonic_ns + 1 if name == "monotonic_ns" else f"{links[at].payload}?"
    fields: dict[str, Any] = {name: value}
    changed = dataclasses.replace(links[at], **fields)
    assert checked([*links[:at], changed, *links[at + 1 :]]) == [(at + 1, "edited")]


@given(chains, st.data())
def test_an_edit_with_a_new_hash_is_named(links: list[Link], data: st.DataObject) -> None:
    """An event that was changed together with its hash breaks the chain after it."""
    at = data.draw(st.integers(0, len(links) - 2))
    changed = dataclasses.replace(links[at], payload=links[at].payload + "?")
    changed = dataclasses.replace(changed, hash=link_hash(changed))
    assert checked([*links[:at], changed, *links[at + 1 :]]) == [(at + 2, "moved")]


@given(chains, st.data())
def test_a_removal_is_named(links: list[Link], data: st.DataObject) -> None:
    """An event that is gone is named, also when the later ones were numbered anew."""
    at = data.draw(st.integers(0, len(links) - 2))
    rest = [*links[:at], *links[at + 1 :]]
    assert checked(rest) == [(at + 1, "removed")]
    renumbered = [dataclasses.replace(link, seq=number) for number, link in enumerate(rest, 1)]
    assert checked(renumbered)[0] in {(at + 1, "edited"), (at + 1, "moved")}


@given(chains, st.data())
def test_a_swap_is_named(links: list[Link], data: st.DataObject) -> None:
    """Two events that changed places are found, at the first of the two."""
    first, second = sorted(
        data.draw(st.lists(st.integers(0, len(links) - 1), min_size=2, max_size=2, unique=True))
    )
    swapped = list(links)
    swapped[first] = dataclasses.replace(links[second], seq=first + 1)
    swapped[second] = dataclasses.replace(links[first], seq=second + 1)
    found = checked(swapped)
    assert found[0][0] == first + 1
    assert (first + 1, "moved") in found


@given(chains, st.data())
def test_truncation_and_rewriting_show_against_an_anchor(
    links: list[Link], data: st.DataObject
) -> None:
    """A shorter or another chain is sound in itself and broken against an anchor."""
    head = Anchor(len(links), links[-1].hash.hex())
    at = data.draw(st.integers(0, len(links) - 1))
    assert not checked(links[:at])
    assert checked(links[:at], head) == [(at + 1, "truncated")]
    payloads = [link.payload for link in links]
    payloads[at] += "?"
    other = chained(payloads)
    assert not checked(other)
    assert checked(other, head) == [(len(links), "rewritten")]


@given(st.data())
def test_no_two_events_share_an_encoding(data: st.DataObject) -> None:
    """Text that moves from one field to the next changes the hash; no run is not an empty run."""
    one, two = data.draw(st.text(min_size=1)), data.draw(st.text())
    link = Link(1, "t", 1, one, "k", one, two, b"", b"")
    assert link_hash(link) != link_hash(dataclasses.replace(link, run="", payload=one + two))
    assert link_hash(link) != link_hash(dataclasses.replace(link, boot_id=one + one, run=""))
    empty = dataclasses.replace(link, run="")
    assert link_hash(empty) != link_hash(dataclasses.replace(link, run=None))


def test_the_chain_covers_the_file(ledger: Ledger, file: Path) -> None:
    """A changed event in the file is found at its number, and the record refuses to lie about it."""
    run = write_run(ledger)
    head = Anchor(*ledger.head())
    assert ledger.verify_chain(head).sound
    ledger.close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TRIGGER events_keep_their_content")
        connection.execute(
            "UPDATE events SET payload = replace(payload, 'succeeded', 'failed') WHERE seq = 2"
        )
        connection.commit()
    with ledger_at(file) as again:
        report = again.verify_chain(head)
        assert [(found.seq, found.what) for found in report.breaks] == [(2, "edited")]
        assert again.run(run).outcome == "failed"
        assert not again.projections_hold()


def test_events_cannot_be_changed_by_accident(ledger: Ledger, file: Path) -> None:
    """Plain SQL does not change, remove or insert events out of turn."""
    write_run(ledger)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        for statement in (
            "UPDATE events SET kind = 'note'",
            "DELETE FROM events",
            "INSERT OR REPLACE INTO events SELECT * FROM events WHERE seq = 1",
            "INSERT INTO events SELECT seq + 7, '', 0, '', '', run, '', '', '' FROM events",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(statement)


def test_the_chain_hangs_on_the_repository(ledger: Ledger, file: Path) -> None:
    """A ledger that was copied to another repository is refused."""
    write_run(ledger)
    with pytest.raises(LedgerError, match="another repository"):
        ledger_at(file, "f" * 32)


# -- runs ----------------------------------------------------------------------------------------


def test_a_run_from_its_events(ledger: Ledger) -> None:
    """A run's record holds what each of its events said, the later over the earlier."""
    run = new_ulid()
    with ledger.transaction() as tx:
        tx.append(opened(run, idea="lower the rate"))
        tx.append(Pin(run=run, ref=f"refs/sealrun/runs/{run}", commit=COMMIT))
    assert ledger.run(run).outcome == "not-started"
    assert [one.run for one in ledger.open_runs()] == [run]
    ledger.append(RunProgress(run=run, step="sealed", image_id="sha256:1", timings={"seal": 0.5}))
    ledger.append(RunProgress(run=run, engine=EngineFacts(name="docker")))
    ledger.append(RunProgress(run=run, step="gate-opened", timings={"gate": 0.1}))
    mutation = alert(run)
    ledger.append(mutation)
    ledger.append(dataclasses.replace(mutation, count=2))
    ledger.append(ended(run, kind="flagged", timings={"end": 1.0}))
    record = ledger.run(run)
    assert (record.progress.step, record.progress.image_id) == ("gate-opened", "sha256:1")
    assert (record.verdict, record.outcome) == ("flagged", "succeeded")
    assert [one.event.count for one in record.alerts] == [2]
    assert record.engine == EngineFacts(name="docker")
    assert record.pin == f"refs/sealrun/runs/{run}"
    assert document(record)["timings"] == {"seal": 0.5, "gate": 0.1, "end": 1.0}
    assert ledger.open_runs() == []


def test_a_run_ends_once(ledger: Ledger) -> None:
    """A second opening, a second end, and news of a run that never was are refused and not kept."""
    run = write_run(ledger)
    before = ledger.head()
    for event in (opened(run), ended(run), RunProgress(run=run), ended(new_ulid())):
        with pytest.raises(LedgerError):
            ledger.append(event)
    with pytest.raises(LedgerError, match="no run id"):
        ledger.append(Note(run="run", code="n"))
    assert ledger.head() == before


def test_filters(ledger: Ledger) -> None:
    """Runs are found by verdict, outcome, commit, time and number, the newest first."""
    clean = write_run(ledger)
    flagged = write_run(ledger, kind="flagged", outcome="failed")
    fault = write_run(ledger, kind=None, outcome="not-started")

    def found(wanted: Filter) -> list[str]:
        return [record.run for record in ledger.runs(wanted)]

    assert found(Filter()) == [fault, flagged, clean]
    assert found(Filter(limit=1)) == [fault]
    assert found(Filter(verdicts=("clean", "flagged"))) == [flagged, clean]
    assert found(Filter(outcomes=("failed",))) == [flagged]
    assert found(Filter(commit=COMMIT[:6].upper())) == [fault, flagged, clean]
    assert found(Filter(commit="beef")) == []
    assert found(Filter(since=ledger.run(flagged).opened_at)) == [fault, flagged]
    assert found(Filter(since="9999")) == []


def test_the_best_run(ledger: Ledger) -> None:
    """The best number is that of a run that succeeded and whose number belongs to its commit."""

    def wrote(
        value: float | None,
        reason: str | None = None,
        outcome: str = "succeeded",
        severity: str | None = None,
    ) -> str:
        reasons = (Because(code=reason, severity=severity),) if reason else ()
        verdict = Judgement(kind="flagged" if reason else "clean", reasons=reasons)
        metric = MetricFacts(name="loss", value=value, direction="minimize")
        return write_run(ledger, metric=metric, verdict=verdict, outcome=outcome)

    wrote(0.5)
    harmless = wrote(0.3, "edit-foreign")
    wrote(0.3)
    wrote(0.1, "contains-foreign")
    wrote(0.1, "contains-foreign", severity="note")
    wrote(0.1, "no-such-code")
    wrote(0.1, outcome="failed")
    wrote(math.nan)
    wrote(None)
    assert ledger.best("loss", "minimize") == harmless
    assert ledger.best("loss", "maximize") is None


def test_alerts_and_approvals(ledger: Ledger) -> None:
    """Alerts are found in their latest state; the approval in force is the latest."""
    assert ledger.approved() is None
    run = write_run(ledger)
    between = alert(None, path="caf\udce9")
    ledger.append(between)
    during = alert(run, phase="in-container", reason="in-container")
    ledger.append(during)
    ledger.append(dataclasses.replace(between, count=9))
    assert [(one.event.id, one.event.count) for one in ledger.alerts()] == [
        (between.id, 9),
        (during.id, 1),
    ]
    assert [one.event.id for one in ledger.alerts(run=run)] == [during.id]
    assert [one.event.id for one in ledger.alerts(path="caf\udce9")] == [between.id]
    assert [one.event.id for one in ledger.alerts(phase="in-container", limit=1)] == [during.id]
    ledger.append(Approval(policy="1", first=True))
    ledger.append(Approval(policy="2", protected={"prepare.py": "2"}))
    with pytest.raises(LedgerError, match="meanwhile"):
        ledger.append(Approval(policy="3", first=True))
    approved = ledger.approved()
    assert approved is not None
    assert approved.event.protected == {"prepare.py": "2"}


@st.composite
def stories(draw: st.DrawFn) -> list[Any]:
    """Return events of several runs as they may come, mixed with those between runs."""
    story: list[Any] = []
    for _ in range(draw(st.integers(0, 3))):
        run = new_ulid()
        story.append(draw(any_record(RunOpened, run=st.just(run))))
        kinds = draw(st.lists(st.sampled_from(["alert", "run-progress", "pin"]), max_size=3))
        kinds += draw(st.sampled_from([[], ["run-ended"], ["run-ended", "alert"]]))
        story += [draw(any_record(KINDS[kind], run=st.just(run))) for kind in kinds]
        others = ["alert", "approval", "note", "base-made", "environment-made", "pin"]
        between = draw(st.lists(st.sampled_from(others), max_size=2))
        story += [draw(any_record(KINDS[kind], first=st.just(value=False))) for kind in between]
    return story


@given(stories())
@settings(max_examples=20, deadline=None)
def test_projections_are_what_events_make(story: list[Any]) -> None:
    """Whatever was written, dropping the projections and making them again changes nothing."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ledger_at(Path(directory) / "ledger.sqlite") as ledger,
    ):
        for event in story:
            ledger.append(event)
        before = projections.content(ledger._connection)
        assert ledger.projections_hold()
        ledger.rebuild()
        assert projections.content(ledger._connection) == before
        assert ledger.verify_chain().sound
        assert [one.event for one in ledger.events()] == story


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_kept(ledger: Ledger, name: str) -> None:
    """Any text is kept as it came, up to the bound, and the ledger stays sound."""
    text = HOSTILE[name]
    record = ledger.run(hostile_run(ledger, text))
    idea = record.opened.idea
    assert idea is not None
    if len(text) > TEXT_BOUND:
        assert idea == text[:TEXT_BOUND]
        assert record.truncated["idea"] == len(text)
    else:
        assert idea == text
        assert record.alerts[0].event.path == text
    json.dumps(document(record)).encode("ascii")
    assert ledger.verify_chain().sound
    assert ledger.projections_hold()


# -- transactions and other processes ------------------------------------------------------------


def test_a_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    """When anything goes wrong in a transaction, no event of it is kept."""
    write_run(ledger)
    before = ledger.head()

    def fails_itself() -> None:
        with ledger.transaction() as tx:
            tx.append(opened())
            raise ZeroDivisionError

    def swallows_a_refusal() -> None:
        with ledger.transaction() as tx:
            tx.append(opened())
            with contextlib.suppress(LedgerError):
                tx.append(ended(new_ulid()))

    def comes_late() -> None:
        with ledger.transaction() as tx:
            pass
        tx.append(Note(code="late"))

    with pytest.raises(ZeroDivisionError):
        fails_itself()
    with pytest.raises(LedgerError, match="could not be appended"):
        swallows_a_refusal()
    with pytest.raises(LedgerError, match="after the end"):
        comes_late()
    assert ledger.head() == before
    assert ledger.projections_hold()


def test_threads_take_turns(ledger: Ledger) -> None:
    """Threads of one process may append to one ledger at once."""
    threads = [
        threading.Thread(target=lambda: [ledger.append(Note(code="n")) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.head()[0] == 80
    assert ledger.verify_chain().sound


_WRITER = """
import sys
from _ledger import ledger_at, write_run
from pathlib import Path
with ledger_at(Path(sys.argv[1])) as ledger:
    for _ in range(15):
        write_run(ledger)
"""
_READER = """
import sys
from _ledger import REPOSITORY
from pathlib import Path
from sealrun.ledger import open_ledger
while True:
    with open_ledger(Path(sys.argv[1]), REPOSITORY, pinned_refs_exist=True) as ledger:
        report = ledger.verify_chain()
        assert report.sound, report
        for record in ledger.runs():
            assert record.ended is not None
    if len(ledger_runs := report.head) and report.events >= 90:
        break
"""


def test_processes_write_and_read_at_once(ledger: Ledger, file: Path) -> None:
    """Three processes write, two read all the while: nothing is lost and no half run is seen."""
    ledger.append(Note(code="first"))
    here = {"cwd": Path(__file__).parent}
    others = [python(_WRITER, str(file), **here) for _ in range(3)]
    others += [python(_READER, str(file), **here) for _ in range(2)]
    for process in others:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert ledger.head()[0] == 1 + 3 * 15 * 2
    assert ledger.verify_chain().sound
    assert ledger.projections_hold()


def test_processes_begin_one_ledger(file: Path) -> None:
    """Of several first commands at once one begins the ledger, and all write to it."""
    others = [python(_WRITER, str(file), cwd=Path(__file__).parent) for _ in range(3)]
    for process in others:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    with ledger_at(file) as ledger:
        assert ledger.head()[0] == 90
        assert ledger.verify_chain().sound
    assert [one.name for one in file.parent.iterdir()] == [file.name]


_HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from _ledger import ledger_at, opened
from pathlib import Path
ledger = ledger_at(Path(sys.argv[1]))
with ledger.transaction() as transaction:
    for _ in range(3):
        transaction.append(opened())
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_nothing_half(ledger: Ledger, file: Path) -> None:
    """A writer that is killed in mid-transaction leaves the ledger as it was before it."""
    write_run(ledger)
    before = ledger.head()
    with ready(_HOLDER, str(file), str(Path(__file__).parent)) as writer:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert ledger.head() == before
    write_run(ledger)
    assert ledger.verify_chain().sound
    assert ledger.projections_hold()


def test_a_lock_is_reported_with_its_holder(
    ledger: Ledger, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that another process keeps locked is an error that names the process."""
    monkeypatch.setattr(schema, "PATIENCE", 0.2)
    run = write_run(ledger)
    with (
        ready(_HOLDER, str(file), str(Path(__file__).parent)) as holder,
        ledger_at(file) as other,
    ):
        with pytest.raises(LedgerError, match=f"locked by process {holder.pid} ") as caught:
            other.append(Note(code="n"))
        assert caught.value.hint
        assert other.run(run).outcome == "succeeded"


# -- the file ------------------------------------------------------------------------------------


def test_the_file_is_private(ledger: Ledger, file: Path) -> None:
    """The ledger's files are readable by their owner alone, whatever the umask or an accident."""
    write_run(ledger)
    file.chmod(0o644)
    with ledger_at(file):
        for one in file.parent.iterdir():
            assert stat.S_IMODE(one.stat().st_mode) == 0o600, one
    assert ledger.journal == "wal"


def test_nothing_is_begun_by_reading(file: Path) -> None:
    """Reading where there is no ledger gives none, and makes none."""
    assert open_ledger(file, REPOSITORY, pinned_refs_exist=False) is None
    assert not file.exists()


@pytest.mark.parametrize("create", [True, False])
def test_a_missing_ledger_beside_pinned_runs(file: Path, *, create: bool) -> None:
    """Pinned runs without their ledger are refused, never a fresh start."""
    with pytest.raises(LedgerMissing) as caught:
        open_ledger(file, REPOSITORY, pinned_refs_exist=True, create=create)
    assert caught.value.status == 121
    assert not file.exists()


def test_remains_are_not_adopted(ledger: Ledger, file: Path) -> None:
    """A ledger that is gone but for its write-ahead log is damage, and no new one is begun."""
    write_run(ledger)
    file.unlink()
    with pytest.raises(LedgerError, match="-wal is still there"):
        ledger_at(file)
    assert not file.exists()


def test_a_reader_cannot_write(ledger: Ledger, file: Path) -> None:
    """A ledger that was opened for reading refuses events, in SQLite too."""
    write_run(ledger)
    reader = open_ledger(file, REPOSITORY, pinned_refs_exist=True)
    assert reader is not None
    with reader:
        with pytest.raises(LedgerError, match="reading only"):
            reader.append(Note(code="n"))
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._connection.execute("DELETE FROM runs")


def test_a_newer_ledger_is_left_alone(ledger: Ledger, file: Path) -> None:
    """A ledger of a newer version is refused, also by a process that has it open already."""
    write_run(ledger)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.newest() + 1}")
    with pytest.raises(LedgerError, match="version"):
        ledger.append(Note(code="n"))
    ledger.close()
    content = file.read_bytes()
    with pytest.raises(LedgerError, match="version"):
        ledger_at(file)
    assert file.read_bytes() == content


def test_migrations_are_numbered_without_gaps() -> None:
    """Migrations bring a ledger from nothing to the newest version, one number at a time."""
    numbers = [number for number, _ in schema.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_migration_that_fails_changes_nothing(
    ledger: Ledger, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All due migrations are one transaction: when one fails, the ledger stays at its version."""
    run = write_run(ledger)
    ledger.close()
    known = schema.migrations()
    first = (known[-1][0] + 1, "CREATE TABLE more (one) STRICT;")
    good = (known[-1][0] + 1, "CREATE TABLE more (one TEXT) STRICT;")
    monkeypatch.setattr(schema, "migrations", lambda: [*known, first])
    with pytest.raises(LedgerError):
        ledger_at(file)
    monkeypatch.setattr(schema, "migrations", lambda: [*known, good])
    with ledger_at(file) as migrated:
        assert migrated.run(run).outcome == "succeeded"
        assert migrated.projections_hold()
        (version,) = migrated._connection.execute("PRAGMA user_version").fetchone()
    assert version == good[0]


def _overwritten(offset: int, content: bytes) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with file.open("r+b") as stream:
            stream.seek(offset)
            stream.write(content)

    return damage


def _foreign_database(directory: Path) -> Path:
    other = directory / "other.sqlite"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE theirs (one)")
    return other


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("not a database, sorry\n" * 500),
    "header": _overwritten(0, b"X" * 64),
    "schema page": _overwritten(100, b"\xff" * 1000),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "other program's": lambda file: shutil.copy(_foreign_database(file.parent), file),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_reported_and_left(ledger: Ledger, file: Path, name: str) -> None:
    """A damaged file is an error that says what to do; it is neither changed nor replaced."""
    for _ in range(50):
        write_run(ledger)
    ledger.close()
    DAMAGES[name](file)
    content = file.read_bytes()
    with pytest.raises(LedgerError, match="damaged") as caught, ledger_at(file) as again:
        again.verify_chain()
    assert "backup" in (caught.value.hint or "")
    assert file.read_bytes() == content


def _trouble(file: Path, head: Anchor) -> str:
    try:
        with ledger_at(file) as ledger:
            return ", ".join(found.what for found in ledger.verify_chain(head).breaks)
    except LedgerError as error:
        return error.message if "damaged" in error.message else ""


def test_every_damaged_page_is_found(ledger: Ledger, file: Path) -> None:
    """Whatever page of the file is overwritten, a check of the chain finds damage or a break."""
    for _ in range(30):
        hostile_run(ledger, "x")
    head = Anchor(*ledger.head())
    ledger.close()
    whole = file.read_bytes()
    for page in range(len(whole) // 4096):
        copy = file.with_name(f"page{page}.sqlite")
        copy.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        assert _trouble(copy, head), page


def test_a_damaged_event_is_named(ledger: Ledger, file: Path) -> None:
    """One flipped byte in the text of one event is found at its number, and reading says so."""
    ledger.append(Note(code="first"))
    ledger.append(Note(code="second", text="unmistakable"))
    ledger.append(Note(code="third"))
    ledger.close()
    file.write_bytes(file.read_bytes().replace(b'"unmistakable"', b'"unmistak\xffble"'))
    with ledger_at(file) as again:
        assert [one.seq for one in again.verify_chain().breaks] == [2]
    file.write_bytes(file.read_bytes().replace(b'"unmistak\xffble"', b'"unmistak"ble"'))
    with (
        ledger_at(file) as again,
        pytest.raises(LedgerError, match="event 2 cannot be read"),
    ):
        again.events(Note)


def test_network_file_systems_get_no_shared_memory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system the ledger keeps a rollback journal and says so on record."""
    from sealrun.ledger import ledger as module

    for one in (schema, module):
        monkeypatch.setattr(one, "network_file_system", lambda _: "nfs")
    with ledger_at(file) as ledger:
        write_run(ledger)
        assert ledger.journal == "delete"
        (note,) = ledger.events(Note)
        assert "nfs" in note.event.text
        assert not Path(f"{file}-wal").exists()
    monkeypatch.undo()
    with ledger_at(file) as ledger:
        assert ledger.journal == "wal"


def test_the_file_system_is_asked() -> None:
    """The magic number of a file system is the kernel's, and local ones are local."""
    assert faults.file_system_magic(Path("/proc")) == 0x9FA0
    assert faults.network_file_system(Path("/proc")) is None
    assert faults.file_system_magic(Path("/no/such/file")) is None


_FULL = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", sys.argv[1]], check=True)
from _ledger import ledger_at, write_run
from pathlib import Path
from sealrun.errors import StorageFault
from sealrun.ledger import Note
ledger = ledger_at(Path(sys.argv[1]) / "ledger.sqlite")
run = write_run(ledger)
try:
    while True:
        before = ledger.head()
        ledger.append(Note(code="n", text="x" * 50_000))
except StorageFault as error:
    assert "Free space" in error.hint, error.hint
    assert error.status == 125
assert ledger.head() == before
assert ledger.run(run).outcome == "succeeded"
assert ledger.verify_chain().sound
subprocess.run(["mount", "-o", "remount,size=4m", sys.argv[1]], check=True)
ledger.append(Note(code="n", text="x" * 50_000))
assert ledger.verify_chain().sound and ledger.head()[0] == before[0] + 1
print("held")
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """On a full file system an event is refused as trouble of ours; what was written stays."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    command = [*unshare, sys.executable, "-c", _FULL, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "held\n", done.stderr


def test_no_space_to_begin(tmp_path: Path) -> None:
    """A ledger that cannot be begun leaves no half one behind."""
    with pytest.raises(StorageFault, match="cannot be made"):
        ledger_at(tmp_path / "missing" / "ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_no_way_to_the_file(tmp_path: Path) -> None:
    """A place that cannot be looked at is trouble of ours, not a missing ledger."""
    with pytest.raises(StorageFault, match="cannot be reached"):
        ledger_at(tmp_path / ("x" * 300) / "ledger.sqlite")


def test_strange_places(tmp_path: Path) -> None:
    """A path with spaces, question marks, percent signs and bytes that are not UTF-8 works."""
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a ?#%41\xff"))
    directory.mkdir()
    with ledger_at(directory / "ledger.sqlite") as ledger:
        run = write_run(ledger)
        assert ledger.run(run).run == run
    assert (directory / "ledger.sqlite").exists()


def test_a_copy_on_a_read_only_file_system(ledger: Ledger, file: Path) -> None:
    """An error never shows SQLite's bare words, and a closed ledger's copy reads like the first."""
    run = write_run(ledger)
    head = ledger.head()
    ledger.close()
    copy = file.with_name("copy.sqlite")
    shutil.copy(file, copy)
    again = open_ledger(copy, REPOSITORY, pinned_refs_exist=True)
    assert again is not None
    with again:
        assert again.head() == head
        assert again.run(run).run == run


# -- whether a controller lives ------------------------------------------------------------------

_CONTROLLER = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(60)
"""


def test_alive_means_the_lock_is_held(tmp_path: Path) -> None:
    """A run is alive as long as a process holds its lock, and dead however that ended."""
    places = Places(*(tmp_path / name for name in ("state", "data", "cache", "runtime")))
    run = new_ulid()
    assert not is_alive(places, REPOSITORY, run)
    with ready(_CONTROLLER, str(places.run(REPOSITORY, run) / "lock")) as controller:
        assert is_alive(places, REPOSITORY, run)
        controller.kill()
        controller.wait()
        assert not is_alive(places, REPOSITORY, run)


RECORDS = [one for one in vars(events).values() if dataclasses.is_dataclass(one)]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_field_is_documented(kind: type[Any]) -> None:
    """Each field of each record is explained in the docstring that the reference is made from."""
    for field in dataclasses.fields(kind):
        if kind is events.Event or not field.metadata.get("column"):
            assert re.search(rf"^ +{field.name}: ", kind.__doc__ or "", re.MULTILINE), field.name
