"""``sealrun alerts``: listing, choosing, following, and whether the record itself holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from _cli import SEALRUN, Cli
from _ledger import HOSTILE, alert, ledger_at, opened, write_run
from sealrun.cli.alerts import Wanted, brief_writer, parse_anchor, prefixes
from sealrun.errors import LedgerError, UsageError
from sealrun.ledger import (
    AlertAccepted,
    Anchor,
    ForeignState,
    Ledger,
    Process,
    Recorded,
    WriterFacts,
    new_ulid,
)
from sealrun.state import repository_id

if TYPE_CHECKING:
    from pathlib import Path

    from _git import Repo

RUFF = WriterFacts(
    how="live",
    category="foreign",
    process=Process(pid=99, exe="/usr/bin/ruff", cmdline=("ruff", "format", "a b.py")),
)


class Place(Cli):
    """A repository with a ledger, and sealrun in it."""

    @property
    def identity(self) -> str:
        """The repository's id, made when first needed."""
        found = repository_id(self.directory / ".git")
        assert found is not None
        return found

    @property
    def file(self) -> Path:
        """The ledger's file."""
        return self.places.ledger(self.identity)

    def ledger(self) -> Ledger:
        """Open the ledger for writing."""
        return ledger_at(self.file, self.identity)

    def found(self, *arguments: str) -> list[str]:
        """Return the paths of the alerts that are listed."""
        listed: list[dict[str, Any]] = self.json("alerts", *arguments)["alerts"]
        return [one["path"] for one in listed]


@pytest.fixture
def place(repo: Repo, tmp_path: Path) -> Place:
    """Give a repository with one commit."""
    repo.commit({"train.py": "SCALAR_LR = 0.5\n"})
    return Place(repo.path, tmp_path / "home", {"TZ": "UTC"})


def two_runs(place: Place) -> tuple[str, str]:
    """Write two runs with alerts; return their ids."""
    with place.ledger() as ledger:
        first, second = opened(), opened()
        assert first.run is not None
        assert second.run is not None
        for opening in (first, second):
            ledger.append(opening)
        ledger.append(
            alert(
                first.run,
                path="train.py",
                phase="after-commit",
                last_at="2026-03-08T21:00:00.000000Z",
            )
        )
        many = alert(
            second.run, path="src/a.py", paths=("src/a.py", "src/b.py", "c.txt"), writer=RUFF
        )
        ledger.append(many)
        ledger.append(alert(second.run, path="data/shard.bin", reason="data-changed"))
    return first.run, second.run


# -- listing -------------------------------------------------------------------------------------


def test_nothing_on_record(place: Place) -> None:
    """Where nothing was recorded, each way of asking is no error and begins no ledger."""
    assert place("alerts").stdout == ""
    assert place.json("alerts")["alerts"] == []
    assert place("alerts", "--head").stdout == ""
    assert place.json("alerts", "--verify-chain")["chain"]["sound"]
    assert place("alerts", "01ABC", status=2).stdout == ""
    assert place("alerts", "--run", "01ABC", status=2).stdout == ""
    assert not (place.directory / ".git" / "sealrun").exists()


def test_the_table_has_what_a_reader_asks_first(place: Place) -> None:
    """One row an alert, the newest first: phase, path, change, writer, how often, and the run."""
    first, _ = two_runs(place)
    with place.ledger() as ledger:
        run = ledger.shortest(first)
    header, newest, many, oldest = place("alerts").stdout.splitlines()
    assert header.split() == [
        *("alert", "state", "when", "run", "phase", "path", "change"),
        *("writer", "count", "restored"),
    ]
    assert "data/shard.bin" in newest
    assert "src/a.py and 2 more" in many
    assert "foreign: ruff [99]" in many
    for words in (run, "03-08 21:00", "after-commit", "train.py", "modified", "unavailable"):
        assert words in oldest


def test_filters_choose(place: Place) -> None:
    """Alerts are found by run, path pattern, writer, phase and time; filters add up."""
    first, second = two_runs(place)
    assert place.found() == ["data/shard.bin", "src/a.py", "train.py"]
    assert place.found("--run", first) == ["train.py"]
    assert place.found("--path", "*.py") == ["src/a.py", "train.py"]
    assert place.found("--path", "c.*") == ["src/a.py"]
    assert place.found("--writer", "RUFF form") == ["src/a.py"]
    assert place.found("--writer", "foreign") == ["src/a.py"]
    assert place.found("--writer", "unavailable") == ["data/shard.bin", "train.py"]
    assert place.found("--phase", "after-commit") == ["train.py"]
    assert place.found("--phase", "after-commit", "--phase", "during-run", "-n", "1") == [
        "data/shard.bin"
    ]
    assert place.found("--since", "2026-03-08T21:00:01") == ["data/shard.bin", "src/a.py"]
    assert place.found("--run", second, "--path", "train.py") == []
    assert "no alert matches" in place("alerts", "--path", "nowhere").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--phase", "sometimes"),
        ("--since", "yesterday-ish"),
        ("--run", "7ZZZ"),
        ("--head", "--follow"),
        ("01", "--verify-chain"),
        ("--head", "--path", "x"),
        ("--anchor", "1:" + "0" * 64),
        ("--verify-chain", "--anchor", "0:" + "0" * 64),
        ("--verify-chain", "--anchor", "one"),
        ("-n", "0"),
    ],
)
def test_a_wrong_call_is_explained(place: Place, arguments: tuple[str, ...]) -> None:
    """Unknown words, modes that exclude each other and broken anchors are usage errors."""
    two_runs(place)
    assert "[sealrun] error: " in place("alerts", *arguments, status=2).stderr


def test_an_alert_seen_again_is_one_row_that_counts(place: Place) -> None:
    """The latest state of an alert is what is listed."""
    with place.ledger() as ledger:
        one = alert(None, restored=False)
        ledger.append(one)
        ledger.append(alert(None, id=one.id, count=9, restored=True))
    (row,) = place.json("alerts")["alerts"]
    assert (row["count"], row["restored"], row["run"]) == (9, True, None)
    assert place("alerts").stdout.splitlines()[1].split()[-2:] == ["9", "yes"]


def test_one_alert_whole(place: Place) -> None:
    """An alert's id, or its beginning, shows it with diff, writer and where its evidence is."""
    with place.ledger() as ledger:
        one = alert(
            None, diff="-SCALAR_LR = 0.5\n+SCALAR_LR = 0.3\n", writer=RUFF, evidence="/kept/ab12"
        )
        ledger.append(one)
        ledger.append(alert(None, id="0" + "Z" * 25))
    shown = place("alerts", one.id[:10].lower()).stdout
    for words in (one.id, "+SCALAR_LR = 0.3", "ruff format 'a b.py'", "/kept/ab12", "between runs"):
        assert words in shown
    assert place.json("alerts", one.id)["alert"]["evidence"] == "/kept/ab12"
    assert "ambiguous" in place("alerts", "0", status=2).stderr
    assert "no alert" in place("alerts", "not-an-id!", status=2).stderr


@pytest.mark.parametrize("text", list(HOSTILE.values()), ids=list(HOSTILE))
def test_hostile_text_reaches_no_terminal(place: Place, text: str) -> None:
    """What a file name or a process called itself is shown, never obeyed; JSON stays ASCII."""
    with place.ledger() as ledger:
        one = alert(
            None,
            path=text,
            detail=text,
            diff=text,
            writer=WriterFacts(category="foreign", process=Process(exe=text, cmdline=(text[:99],))),
        )
        ledger.append(one)
    for arguments in ((), (one.id,)):
        out = place("alerts", *arguments).stdout
        assert all(c == "\n" or c.isprintable() for c in out)
    place("alerts", "--json").stdout.encode("ascii")


def test_prefixes_tell_alerts_of_one_instant_apart() -> None:
    """Ids that share all but their last character are shown whole, others short."""
    ids = [new_ulid(1_700_000_000_000), new_ulid(1_700_000_000_000), "7" * 26]
    short = prefixes(ids)
    assert len(set(short.values())) == 3
    assert short["7" * 26] == "7" * 8
    assert all(one.startswith(prefix) for one, prefix in short.items())
    assert prefixes([]) == {}


def test_candidates_are_no_writers() -> None:
    """A filter by writer does not find a process that only might have been it."""
    named = alert(None, writer=WriterFacts(candidates=(Process(exe="/usr/bin/black"),)))
    recorded = Recorded(1, "2026-03-08T21:00:00.000000Z", 1, "", "", named, {})
    assert not Wanted(writer="black").holds(recorded)
    assert Wanted(writer="unknown").holds(recorded)
    assert brief_writer(named.writer) == "unavailable"


# -- over several runs ---------------------------------------------------------------------------


def test_an_alert_of_two_runs_is_found_by_either(place: Place) -> None:
    """A run shows what it saw of an alert, whichever run saw it first; filters take all its paths."""
    first, second = two_runs(place)
    with place.ledger() as ledger:
        one = alert(first, path="a.py", paths=("a.py", "b.py"), writer=RUFF)
        ledger.append(one)
        ledger.append(alert(second, id=one.id, path="b.py", count=2, writer=RUFF))
        assert [a.event.count for a in ledger.run(first).alerts if a.event.id == one.id] == [1]
        assert [a.event.count for a in ledger.run(second).alerts if a.event.id == one.id] == [2]
        assert [a.event.id for a in ledger.alerts(path="a.py")] == [one.id]
    assert "a.py: modified" in place("show", first).stdout
    assert "b.py: modified" in place("show", second).stdout
    for arguments, count in (((), 2), (("--run", first), 1), (("--run", second), 2)):
        (row,) = [a for a in place.json("alerts", *arguments)["alerts"] if a["id"] == one.id]
        assert row["count"] == count
    (row,) = place.json("alerts", "--path", "a.py")["alerts"]
    assert (row["path"], row["all_paths"], row["runs"]) == (
        "b.py",
        ["a.py", "b.py"],
        [first, second],
    )
    assert "seen in 2 runs" in place("alerts", one.id).stdout


def test_evidence_is_hashed_again_when_shown(place: Place, tmp_path: Path) -> None:
    """An alert shows whether its kept bytes are what they were, were changed, or are gone."""
    kept = tmp_path / "kept"
    kept.write_bytes(b"foreign")
    state = ForeignState(
        path="train.py",
        change="modified",
        evidence=str(kept),
        sha256=hashlib.sha256(b"foreign").hexdigest(),
    )
    with place.ledger() as ledger:
        one = alert(None, states=(state,), cure="Switch it off.")
        ledger.append(one)
    shown = place("alerts", one.id).stdout
    assert "kept train.py: its evidence is as it was taken" in shown
    assert re.search(r"cure +Switch it off\.", shown)
    kept.write_bytes(b"forged")
    assert "its evidence was changed after it was taken" in place("alerts", one.id).stdout
    kept.unlink()
    assert "its evidence is missing (No such file or directory)" in place("alerts", one.id).stdout


# -- accepting -----------------------------------------------------------------------------------


def accept(place: Place, *arguments: str, answer: str | None = None) -> tuple[int, str]:
    """Call ``alerts accept`` on a terminal of its own; answer None types the code shown."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child becomes the command
        os.chdir(place.directory)
        command = [str(SEALRUN), "alerts", "accept", *arguments]
        os.execve(SEALRUN, command, place.environment)  # noqa: S606 - no shell
    shown = ""
    with contextlib.suppress(OSError):
        while not (code := re.search(r"Type (\d{6}) to accept", shown)):
            shown += os.read(terminal, 4096).decode()
        os.write(terminal, f"{code[1] if answer is None else answer}\n".encode())
        while True:
            shown += os.read(terminal, 4096).decode()
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


def test_a_human_accepts_at_a_terminal(place: Place) -> None:
    """Who accepted, where and why is on record; the alert is closed, and opens on other bytes."""
    with place.ledger() as ledger:
        one = alert(None, diff="-a\n+\x1b[2Jb", writer=RUFF)
        ledger.append(one)
        ledger.append(alert(None, path="other.py"))
    assert len(place.found("--open")) == 2
    status, shown = accept(place, one.id[:20], "--reason", "our own formatter")
    assert status == 0, shown
    for words in ("train.py", "ruff format", "our own formatter", "will not be flagged"):
        assert words in shown
    assert "\x1b[2J" not in shown
    assert place.found("--open") == ["other.py"]
    (row,) = place.json("alerts", "--path", "train.py")["alerts"]
    assert row["state"] == "accepted"
    assert row["accepted"]["reason"] == "our own formatter"
    assert row["accepted"]["uid"] == os.getuid()
    assert row["accepted"]["terminal"].startswith("/dev/")
    assert "accepted by" in place("alerts", one.id).stdout
    assert accept(place, one.id, "--reason", "again", answer="x")[0] == 0
    with place.ledger() as ledger:
        assert len(ledger.events(AlertAccepted)) == 1
        other = ForeignState(path="train.py", change="modified", after="git-sha1:" + "1" * 40)
        ledger.append(alert(None, id=one.id, states=(other,), writer=RUFF, count=2))
    assert sorted(place.found("--open")) == ["other.py", "train.py"]
    assert "other bytes came later" in place("alerts", one.id).stdout
    assert breaks(place, status=0) == []


def test_nobody_else_accepts(place: Place) -> None:
    """Without a terminal, with a wrong code, or without a reason nothing is accepted."""
    with place.ledger() as ledger:
        one = alert(None)
        ledger.append(one)
    done = place("alerts", "accept", one.id, "--reason", "because", status=None)
    if done.returncode != 121:
        pytest.fail(done.stderr)
    assert "a person at a terminal" in done.stderr
    status, shown = accept(place, one.id, "--reason", "because", answer="000000x")
    assert status == 121, shown
    for arguments in (
        (one.id,),
        (one.id, "--reason", "  "),
        ("--reason", "x"),
        (one.id, one.id, "--reason", "x"),
        ("0ZZZ", "--reason", "x"),
        (one.id, "--reason", "x", "--open"),
    ):
        place("alerts", "accept", *arguments, status=2)
    place("alerts", one.id, "--reason", "x", status=2)
    assert place.found("--open") == ["train.py"]


def test_nothing_shown_asks_a_program_to_accept(place: Place) -> None:
    """Neither the list nor an alert tells its reader how to accept it."""
    two_runs(place)
    for one in place.json("alerts")["alerts"]:
        assert "accept" not in place("alerts", one["id"]).stdout
    done = place("alerts")
    assert "accept" not in done.stdout + done.stderr


def test_an_acceptance_belongs_to_an_event_of_its_alert(place: Place) -> None:
    """The ledger takes no acceptance of an alert that it does not hold."""
    with place.ledger() as ledger:
        ledger.append(alert(None))
        other = alert(None)
        ledger.append(other)
        for accepted in (
            AlertAccepted(alert=new_ulid(), upto=1, reason="x"),
            AlertAccepted(alert=other.id, upto=1, reason="x"),
        ):
            with pytest.raises(LedgerError, match="none of alert"):
                ledger.append(accepted)
        ledger.append(AlertAccepted(alert=other.id, upto=2, reason="x"))
        assert ledger.projections_hold()
        ledger.rebuild()
        assert ledger.verify_chain().sound


# -- following -----------------------------------------------------------------------------------


def follow(place: Place, *arguments: str) -> subprocess.Popen[bytes]:
    """Start following."""
    return place.start("alerts", "--follow", *arguments)


def test_follow_prints_new_alerts_as_they_are_recorded(place: Place) -> None:
    """What was there is not repeated; each new alert that matches is one JSON object on a line."""
    two_runs(place)
    with follow(place, "--json", "--path", "*.py", "-n", "2") as process, place.ledger() as ledger:
        assert process.stdout is not None
        number = 0
        # It begins at some moment after its start: alerts come until it has told of two.
        while process.poll() is None and number < 600:
            ledger.append(alert(None, path=f"new-{number}.py"))
            ledger.append(alert(None, path=f"new-{number}.txt"))
            number += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    documents = [json.loads(line) for line in lines]
    assert len(documents) == 2
    assert all(one["schema"] == 1 and one["path"].startswith("new-") for one in documents)
    first, second = (int(one["path"][4:-3]) for one in documents)
    assert second == first + 1


def test_follow_waits_for_a_ledger_and_ends_quietly(place: Place) -> None:
    """Before the first run it waits; it ends with 130 when interrupted."""
    with follow(place) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        with place.ledger() as ledger:
            # A slow one may begin only after the first: alerts come until it has told of one.
            told = False
            for _ in range(600):
                ledger.append(alert(None, path="first.py"))
                told = bool(select.select([process.stdout], [], [], 0.2)[0])
                if told:
                    break
            assert told
            line = process.stdout.readline()
        assert b"first.py: modified, unavailable" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert b"Traceback" not in process.stderr.read()


def test_follow_ends_when_nobody_reads(place: Place) -> None:
    """A reader that goes away ends it, whether or not anything happens."""
    two_runs(place)
    reading, writing = os.pipe()
    with subprocess.Popen(
        [SEALRUN, "alerts", "--follow"],
        cwd=place.directory,
        env=place.environment,
        stdout=writing,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writing)
        os.close(reading)
        assert process.wait(30) == 0


# -- the chain -----------------------------------------------------------------------------------


def tampered(place: Place, *statements: str) -> None:
    """Change the ledger's file as somebody with a database tool would."""
    with contextlib.closing(sqlite3.connect(place.file)) as connection:
        for trigger in ("events_only_grow", "events_stay", "events_keep_their_content"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def breaks(place: Place, *arguments: str, status: int = 121) -> list[str]:
    """Return what a check of the chain finds."""
    chain = place.json("alerts", "--verify-chain", *arguments, status=status)["chain"]
    assert chain["sound"] == (not chain["breaks"])
    return [one["what"] for one in chain["breaks"]]


def test_a_chain_that_holds(place: Place) -> None:
    """An untouched record holds, alone and against an anchor; without one, its limit is told."""
    two_runs(place)
    head = place("alerts", "--head").stdout.strip()
    assert parse_anchor(head) == Anchor(int(head.partition(":")[0]), head.partition(":")[2])
    assert "only --anchor could tell" in place("alerts", "--verify-chain").stderr
    with place.ledger() as ledger:
        write_run(ledger)
    assert "continues the anchor's" in place("alerts", "--verify-chain", "--anchor", head).stderr
    document = place.json("alerts", "--head")["head"]
    assert f"{document['seq']}:{document['hash']}" != head
    assert breaks(place, status=0) == []


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        (("UPDATE events SET payload = replace(payload, 'train.py', 'other.py')",), "edited"),
        (("UPDATE events SET run = NULL WHERE seq = 3",), "edited"),
        (("UPDATE events SET payload = 'no json' WHERE seq = 3",), "edited"),
        (("DELETE FROM events WHERE seq = 3", "DELETE FROM alerts WHERE seq = 3"), "removed"),
        (
            (
                "PRAGMA foreign_keys = OFF",
                "UPDATE events SET seq = 99 WHERE seq = 2",
                "UPDATE events SET seq = 2 WHERE seq = 3",
                "UPDATE events SET seq = 3 WHERE seq = 99",
            ),
            "moved",
        ),
    ],
    ids=["edited", "given to no run", "no JSON", "removed", "reordered"],
)
def test_tampering_is_found_without_an_anchor(
    place: Place, statements: tuple[str, ...], what: str
) -> None:
    """An event that was edited, removed or moved breaks the chain: 121, and where it broke."""
    two_runs(place)
    tampered(place, *statements)
    assert what in breaks(place)
    told = place("alerts", "--verify-chain", status=121)
    assert what in told.stdout
    assert "does NOT hold" in told.stderr


def test_a_chain_cut_at_its_end_is_found_against_an_anchor(place: Place) -> None:
    """Without its last events the chain holds by itself, and not against a head kept elsewhere."""
    two_runs(place)
    head = place("alerts", "--head").stdout.strip()
    tables = ("alerts", "alert_paths", "events")
    tampered(place, *(f"DELETE FROM {table} WHERE seq = 5" for table in tables))  # noqa: S608 - ours
    assert breaks(place, status=0) == []
    assert breaks(place, "--anchor", head) == ["truncated"]


def test_a_chain_written_anew_is_found_against_an_anchor(place: Place) -> None:
    """Another history of the same repository holds by itself, and not against the anchor."""
    two_runs(place)
    head = place("alerts", "--head").stdout.strip()
    for file in place.file.parent.glob(f"{place.file.name}*"):
        file.unlink()
    two_runs(place)
    assert breaks(place, status=0) == []
    assert breaks(place, "--anchor", head) == ["rewritten"]


def test_a_ledger_that_is_gone_is_found_against_an_anchor(place: Place) -> None:
    """No ledger at all does not continue an anchor."""
    two_runs(place)
    head = place("alerts", "--head").stdout.strip()
    for file in place.file.parent.glob(f"{place.file.name}*"):
        file.unlink()
    assert breaks(place, "--anchor", head) == ["truncated"]


def test_an_edited_index_is_found_and_hides_no_alert(place: Place) -> None:
    """Alerts are read from the events: one that is missing from the index is listed still."""
    two_runs(place)
    tampered(place, "DELETE FROM alerts")
    assert len(place.found()) == 3
    told = place("alerts", "--verify-chain", status=121)
    assert "index" in told.stdout
    assert place.json("alerts", "--verify-chain", status=121)["chain"]["index"] is False


def test_parse_anchor_takes_only_heads() -> None:
    """An anchor is a number, a colon and 64 hexadecimal digits; case and spaces do not matter."""
    assert parse_anchor(f" 7:{'AB' * 32}\n") == Anchor(7, "ab" * 32)
    for text in ("", "7", f"07:{'a' * 64}", f"7:{'g' * 64}", f"-7:{'a' * 64}", f"٣:{'a' * 64}"):
        with pytest.raises(UsageError):
            parse_anchor(text)
