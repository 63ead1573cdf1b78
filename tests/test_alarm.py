"""Somebody is told: what is said, when it pages, and that it arrives whatever dies on the way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from werkzeug import Response

from _cli import Cli
from sealrun.alarm import (
    Alarm,
    Ended,
    Kind,
    Notice,
    bodies,
    config,
    notices_of,
    of_error,
    of_finished,
    paging,
    schedule,
    spool,
)
from sealrun.alarm.notice import document, of_document
from sealrun.alarm.sender import send
from sealrun.alarm.spool import Spool, State
from sealrun.alarm.wording import Message, defanged, happening_of
from sealrun.course import Finished
from sealrun.doctor import Grade
from sealrun.doctor.alarm import told
from sealrun.errors import EngineUnavailable, Interrupted, LedgerMissing, UsageError
from sealrun.ledger import Alert, Because, Judgement, Process, WriterFacts, new_ulid
from sealrun.policy import load
from sealrun.reasons import Reason
from sealrun.state import Places
from sealrun.verdict import Finding, Outcome, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from werkzeug import Request

NOW = 1_800_000_000.0
RUFF = WriterFacts(
    how="live",
    category="foreign",
    process=Process(pid=4711, exe="/usr/bin/ruff", cmdline=("ruff", "--token=hunter2")),
)


def alert(*paths: str, writer: WriterFacts = RUFF, reason: str = "edit-foreign") -> Alert:
    """Return an alert of a formatter's run over these paths."""
    return Alert(
        id=new_ulid(),
        path=paths[0],
        paths=paths,
        phase="during-run",
        change="modified",
        reason=reason,
        writer=writer,
    )


def ended(kind: str | None = "flagged", **values: Any) -> Ended:  # noqa: ANN401 - any field
    """Return a run that ended so; None: trouble of ours."""
    code = {"refused": "workspace-differs", "aborted": "in-container"}.get(kind or "", "")
    reasons = (Because(code=code or "events-lost", paths=("train.py",)),)
    judged = None
    if kind is not None:
        judged = Judgement(kind=kind, reasons=() if kind == "clean" else reasons)
    fields: dict[str, Any] = {
        "workspace": "/home/me/nanogpt",
        "host": "gpu-3",
        "run": new_ulid(),
        "commit": "ab12cd34ef" * 4,
        "at": time.time(),
        "judgement": judged,
        "fault": None if kind else "no engine answers",
    }
    return Ended(**(fields | values))


def notice(number: int = 0, kind: Kind = Kind.FLAGGED, at: float | None = None) -> Notice:
    """Return a notice about some run."""
    return Notice(
        id=new_ulid(),
        kind=kind,
        at=time.time() if at is None else at,
        title=f"sealrun: notice {number}",
        text=f"run {number}\nfile: train.py",
        paths=("train.py",),
    )


# -- what is told ----------------------------------------------------------------------------------


def test_a_notice_says_all_that_one_needs_to_act() -> None:
    """Repository, machine, run, commit, what, who, which file and what to do stand in the text."""
    found = alert("train.py")
    run = ended(alerts=(found,))
    (one,) = notices_of(run, new_ulid())
    for words in (
        *("nanogpt", "gpu-3", run.run, "ab12cd34ef", "flagged", "events-lost"),
        *("train.py", "ruff, pid 4711", "foreign", f"sealrun alerts {found.id}"),
    ):
        assert words in one.text, words
    assert (one.kind, one.writer) == (Kind.FLAGGED, "ruff, pid 4711 (foreign)")
    assert len(one.text) < 800


@pytest.mark.parametrize(
    ("kind", "told_as"),
    [
        ("refused", Kind.REFUSED),
        ("aborted", Kind.ABORTED),
        ("flagged", Kind.FLAGGED),
        (None, Kind.FAULT),
    ],
)
def test_each_bad_ending_is_told(kind: str | None, told_as: Kind) -> None:
    """Refused, aborted, flagged and not judged are one notice each, with something to do."""
    (one,) = notices_of(ended(kind), new_ulid())
    assert one.kind is told_as
    assert re.search(r"^next: sealrun (show|doctor)", one.text, re.MULTILINE)


def test_nothing_is_told_where_all_is_well() -> None:
    """A clean run, and what the loop itself or the experiment wrote, wake nobody."""
    own = [alert("a", writer=WriterFacts(category=one)) for one in ("loop", "experiment")]
    assert notices_of(ended("clean", alerts=own), new_ulid()) == ()
    assert happening_of(ended("clean", alerts=own)).causes == ()


def test_a_clean_run_with_a_foreign_change_is_an_alert_without_harm() -> None:
    """Under a policy that only records, a foreign change is told as harmless."""
    (one,) = notices_of(ended("clean", alerts=[alert("train.py")]), new_ulid())
    assert (one.kind, one.harmless, one.quiet) == (Kind.ALERT, True, False)


def test_a_formatter_over_forty_files_is_one_short_notice() -> None:
    """Three files are named in the text, twenty in the record, the rest is counted."""
    paths = tuple(f"src/module_{number}.py" for number in range(40))
    (one,) = notices_of(ended(alerts=[alert(*paths)]), new_ulid())
    assert len(one.paths) + one.more == 41  # and train.py, of the verdict's reason
    assert "and 38 more" in one.text
    assert len(one.text) < 800


def test_no_notice_repeats_a_command_line_or_advises_to_accept() -> None:
    """Arguments may be secrets; and whoever reads it is told to look, never to approve."""
    for kind in ("refused", "aborted", "flagged", "clean", None):
        for found in ((), (alert("train.py"),), (alert("a", writer=WriterFacts()),)):
            for one in notices_of(ended(kind, alerts=found), new_ulid()):
                said = json.dumps(document(one))
                assert "hunter2" not in said
                assert not re.search(r"approve|accept|--policy|allow", said)


def test_hostile_names_are_escaped_and_bounded() -> None:
    """Controls, line ends, surrogates and overrides are visible; a huge name is cut."""
    evil = "a\x1b[2J\nrun: forged\r\u202eb\udcff" + "x" * 100_000
    writer = replace(RUFF, process=Process(pid=1, exe="/bin/\x07\nnext: rm -rf"))
    run = ended(alerts=[alert(evil, writer=writer)], workspace="/x/re\npo", host="h\x00")
    (one,) = notices_of(run, new_ulid())
    assert all(c.isprintable() or c == "\n" for c in one.text + one.title)
    assert one.text.count("\nnext: ") == 1
    assert len(json.dumps(document(one))) < 5000
    assert of_document(json.loads(json.dumps(document(one)))) == one


@given(st.text(max_size=200))
def test_any_text_becomes_a_sound_notice(text: str) -> None:
    """Whatever names hold, a notice is printable, bounded and the same after a journey as JSON."""
    one = replace(notice(), title=text, text=text, paths=(text,), writer=text, host=text)
    assert all(c.isprintable() or c == "\n" for c in one.title + one.text)
    assert of_document(json.loads(json.dumps(document(one)))) == one


@given(st.text(alphabet=st.sampled_from("aA.:/@#<>&`*|[]()!-_ 1。\n"), max_size=60))
def test_defanged_text_holds_neither_mention_nor_link(text: str) -> None:
    """No at sign, angle bracket, scheme, host name or Markdown link survives."""
    safe = defanged(text)
    assert not re.search(r"[@#<>&`*|]|[A-Za-z]:(?=\S)|://|\w[.。](?=[A-Za-z])|\]\(", safe)


def test_defanged_text_is_still_readable() -> None:
    """A path, a mention and an address are recognised by people."""
    assert defanged("src/train.py") == "src/train[.]py"
    assert defanged("@everyone <!channel> https://evil.example/x") == (
        "[at]everyone (!channel) https[:]//evil[.]example/x"
    )
    assert defanged("run 01 refused: 3.11") == "run 01 refused: 3.11"


@pytest.mark.parametrize("found", [None, 3, [], {}, {"id": "x"}, {"id": "x", "kind": "none"}])
def test_what_is_no_notice_is_none(found: object) -> None:
    """A document of another making is not taken for a notice."""
    assert of_document(found) is None


# -- what pages ------------------------------------------------------------------------------------


def paged(*happenings: paging.Happening) -> list[tuple[int, str | None]]:
    """Return what pages while these happen, in order."""
    tally, pages = paging.Tally(), []
    for one in happenings:
        tally, new = paging.decide(tally, one)
        # What is remembered survives its file.
        assert paging.of_document(json.loads(json.dumps(paging.document({"r": tally})))) == {
            "r": tally
        }
        pages += [(page.count, page.cause) for page in new]
    return pages


def refusal(at: float = NOW) -> paging.Happening:
    """Return a refused run."""
    return paging.Happening(at, refused=True)


def test_two_refusals_in_a_row_page() -> None:
    """One does not; a run in between begins anew; trouble of ours neither counts nor ends a row."""
    good = paging.Happening(NOW, refused=False)
    fault = paging.Happening(NOW, refused=None)
    assert paged(refusal()) == []
    assert paged(refusal(), refusal()) == [(2, None)]
    assert paged(refusal(), good, refusal()) == []
    assert paged(refusal(), fault, refusal()) == [(2, None)]


def test_a_night_of_refusals_pages_seldom_but_on() -> None:
    """Of a thousand refusals in a row nine page: at each doubling."""
    assert [count for count, _ in paged(*[refusal()] * 1000)] == [2 << n for n in range(9)]


def test_three_alerts_of_one_kind_within_a_day_page() -> None:
    """Two do not, three of different kinds do not, and yesterday's do not count."""

    def happening(cause: str, at: float = NOW) -> paging.Happening:
        return paging.Happening(at, refused=False, causes=(cause, cause))

    assert paged(happening("a"), happening("a")) == []
    assert paged(happening("a"), happening("b"), happening("c")) == []
    assert paged(*[happening("a")] * 3) == [(3, "a")]
    old = happening("a", NOW - paging.DAY - 1)
    assert paged(old, old, happening("a")) == []


def test_what_is_remembered_for_paging_is_bounded() -> None:
    """Ten thousand kinds of alerts are no ten thousand entries."""
    tally = paging.Tally()
    for number in range(10_000):
        tally, _ = paging.decide(tally, paging.Happening(NOW, refused=False, causes=(str(number),)))
    assert len(tally.causes) <= 100
    assert paging.of_document({"r": {"refusals": "x"}, "s": 3}) == {}


def test_one_formatter_is_one_kind_of_alert_and_an_unknown_edit_without_harm_is_none() -> None:
    """Forty files count once; the loop's own edits outside a session do not page."""
    many = [alert(f"{number}.py") for number in range(40)]
    causes = happening_of(ended("flagged", alerts=many, harmless=True)).causes
    assert causes == ("edit-foreign by ruff",)
    own = alert("a", writer=WriterFacts(category="unknown"), reason="edit-unattributed")
    edit = ended("flagged", alerts=[own], harmless=True)
    assert happening_of(edit).causes == ()
    assert [one.quiet for one in notices_of(edit, new_ulid())] == [True]


# -- when, and how much ----------------------------------------------------------------------------


def test_a_dead_channel_is_tried_more_and_more_seldom_but_within_minutes() -> None:
    """The pause doubles up to five minutes; a receiver's wish counts up to an hour."""
    pauses = [schedule.delay(number, 2.0) for number in range(1, 12)]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert schedule.delay(10_000, 2.0) == 300
    assert schedule.delay(1, 2.0, wish=60) == 60
    assert schedule.delay(1, 2.0, wish=1e9) == 3600


@given(
    st.lists(st.tuples(st.floats(0, 50), st.booleans()), max_size=80),
    st.integers(1, 5),
)
def test_people_are_told_so_much_and_all_of_it(
    arrivals: list[tuple[float, bool]], messages: int
) -> None:
    """In any interval at most so many messages, pages apart; each notice comes once; none is lost."""
    limit = schedule.Limit(messages, 10.0)
    waiting: list[Notice] = []
    sent: list[float] = []
    got: Counter[str] = Counter()
    expected: set[str] = set()
    todo = sorted(arrivals)
    now = 0.0
    while todo or waiting:
        while todo and todo[0][0] <= now:
            _, is_page = todo.pop(0)
            waiting.append(notice(kind=Kind.PAGE if is_page else Kind.FLAGGED))
            expected.add(waiting[-1].id)
        due = schedule.due(waiting, sent, limit, now)
        if due.notices:
            got.update(one.id for one in due.notices)
            waiting = [one for one in waiting if one not in due.notices]
            if due.notices[0].kind is not Kind.PAGE:
                sent.append(now)
        else:
            assert due.wake is None or due.wake > now
            later = [at for at in (due.wake, todo[0][0] if todo else None) if at is not None]
            assert later or not waiting
            now = min(later, default=now)
    assert set(got) == expected
    assert all(count == 1 for count in got.values())
    for at in sent:
        assert sum(1 for other in sent if other <= at < other + 10.0) <= messages


def test_a_page_goes_first_and_a_machine_is_told_each_alone() -> None:
    """Neither a limit nor an older notice holds a page up; a file has no limit."""
    waiting = [notice(1), notice(2), notice(3, Kind.PAGE)]
    full = schedule.Limit(1, 1000.0)
    assert schedule.due(waiting, [NOW], full, NOW).notices == (waiting[2],)
    assert schedule.due(waiting[:2], [NOW] * 9, None, NOW).notices == (waiting[0],)
    # A clock that was put back does not silence a channel.
    assert schedule.due(waiting[:1], [NOW + 9999], full, NOW).notices == (waiting[0],)


# -- how it is put ---------------------------------------------------------------------------------


def hostile() -> Message:
    """Return a message about a file whose name would mention everybody."""
    found = alert("@everyone <!channel> [x](https://evil.example) ```.py")
    return Message(notices_of(ended(alerts=[found]), new_ulid()))


def test_slack_shows_text_where_nothing_is_interpreted() -> None:
    """What others wrote stands in preformatted text alone; the rest holds nothing of it."""
    body = json.loads(bodies.post(hostile(), "slack").content)
    (pre,) = body["blocks"][1]["elements"]
    assert pre["type"] == "rich_text_preformatted"
    assert {one["type"] for one in pre["elements"]} == {"text"}
    del body["blocks"][1]
    assert "everyone" not in json.dumps(body)


def test_discord_resolves_no_mention_and_no_text_leaves_its_block() -> None:
    """Mentions are off, and a fence in a name does not end the block."""
    body = json.loads(bodies.post(hostile(), "discord").content)
    assert body["allowed_mentions"] == {"parse": []}
    assert body["content"].count("```") == 2
    assert body["content"].endswith("```")
    long = Message(tuple(replace(notice(), text="x" * 9999) for _ in range(30)))
    assert len(json.loads(bodies.post(long, "discord").content)["content"]) <= 2000


def test_ntfy_gets_plain_text_and_a_priority() -> None:
    """A page is urgent; headers are ASCII whatever the repository is called."""
    run = ended(workspace="/x/обучение\n")
    body = bodies.post(Message(notices_of(run, new_ulid())), "ntfy")
    assert body.headers["Priority"] == "default"
    assert all(value.isascii() and value.isprintable() for value in body.headers.values())
    assert bodies.post(Message((notice(kind=Kind.PAGE),)), "ntfy").headers["Priority"] == "urgent"
    assert "@" not in bodies.post(hostile(), "ntfy").content.decode()


def test_a_webhook_gets_every_field() -> None:
    """Machines get exact, escaped values beside the defanged text."""
    message = hostile()
    body = json.loads(bodies.post(message, "json").content)
    assert body["notices"][0] == {
        **document(message.notices[0]),
        "possible_duplicate": False,
    }
    assert "@" not in body["text"]
    assert body["notices"][0]["paths"][0].startswith("@everyone")


@pytest.mark.parametrize("form", ["rfc3164", "rfc5424"])
def test_a_syslog_message_is_one_bounded_line_with_its_priority(form: str) -> None:
    """Facility and severity are encoded; no control character gets in; 2048 bytes at most."""
    message = Message((replace(notice(kind=Kind.PAGE), text="ä\n" * 900, host="h o"),))
    datagram = bodies.syslog(message, "local3", form, 7)
    assert datagram.startswith(b"<%d>" % (19 * 8 + 2))
    text = datagram.decode()
    assert "\n" not in text
    assert len(datagram) <= 2048
    head = (
        r"<154>1 \S+Z h-o sealrun 7 page - \ufeff" if form == "rfc5424" else r"<154>\w{3} [ \d]\d "
    )
    assert re.match(head, text)


# -- the configuration -----------------------------------------------------------------------------


@dataclass
class Bench:
    """An alarm with a home of its own."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def alarm(self) -> Alarm:
        """The alarm as the command line would find it."""
        return Alarm(self.root / "state" / "alarm", self.file)

    @property
    def file(self) -> Path:
        """The configuration."""
        return self.root / "config" / "alarm.toml"

    @property
    def spool(self) -> Spool:
        """What is on its way."""
        return Spool(self.alarm.directory)

    def configure(self, *channels: str, **sending: str) -> Bench:
        """Write the configuration; each channel is the content of its section."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        options = {"retry": '"50ms"', "timeout": '"2s"', "messages": "1000"} | sending
        lines = ["[sending]", *(f"{key} = {value}" for key, value in options.items())]
        for number, channel in enumerate(channels):
            lines += [f"[channel.c{number}]", channel]
        draft = self.file.with_name("draft")
        draft.write_text("\n".join(lines) + "\n")
        draft.chmod(0o600)
        draft.replace(self.file)
        return self

    def send(self) -> list[dict[str, Any]]:
        """Be the sender, in a process of its own, until it ends by itself; return its log."""
        done = subprocess.run(
            self.sender,
            env=os.environ | self.environment,
            stderr=subprocess.PIPE,
            check=True,
            timeout=120,
        )
        return [json.loads(line) for line in done.stderr.splitlines()]

    @property
    def sender(self) -> list[str]:
        """The command line of a sender."""
        arguments = [str(self.alarm.directory), str(self.file)]
        return [sys.executable, "-I", "-m", "sealrun.alarm", *arguments]

    def senders(self) -> list[psutil.Process]:
        """Return the living senders of this home and their tries."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or []
            if str(self.alarm.directory) in line and process.info["status"] != "zombie":
                found.append(process)
        return found


@pytest.fixture
def bench(tmp_path: Path, httpserver: HTTPServer) -> Iterator[Bench]:
    """A home of this test alone; its senders are ended, before the server is used by another."""
    assert not httpserver.log
    bench = Bench(tmp_path)
    yield bench
    for process in bench.senders():
        with contextlib.suppress(psutil.Error):
            process.kill()


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def webhook(server: HTTPServer, path: str = "/hook", more: str = "") -> str:
    """Return the section of a channel that posts to a server."""
    return f'type = "webhook"\nurl = "{server.url_for(path)}"\n{more}'


def received(server: HTTPServer) -> list[dict[str, Any]]:
    """Return the bodies that a server got, in order."""
    return [json.loads(request.get_data()) for request, _ in server.log]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[channel.a]\ntype = 'webhook'\nurl = 'http://s3cret'\nurll = 1\n",
            "alarm.toml:4: unknown",
        ),
        ("[sending]\n\nretry = 's3cret'\n", "alarm.toml:3: sending.retry"),
        ("[channel.a]\ntype = 'pigeon'\nurl = 's3cret'\n", "alarm.toml:1: channel.a"),
        ("[channel.a]\ntype = 'webhook'\n", "exactly one of url, url_file, url_env"),
        ("[channel.a]\ntype = 'webhook'\nurl = 's3cret'\nurl_env = 'U'\n", "exactly one of"),
        ("[channel.a]\ntype = 'file'\npath = 'relative'\n", "alarm.toml:3: channel.a.path"),
        ("[channel.a]\ntype = 'syslog'\nfacility = 'kern'\n", "facility is one of"),
        ("[channel.a\n", "alarm.toml: "),
        ("sending = 3\n", "alarm.toml:1: sending"),
        ("[channel.'a b']\ntype = 'syslog'\n", "channel.a b"),
    ],
)
def test_a_wrong_configuration_is_named_with_its_line_and_without_its_values(
    bench: Bench, text: str, words: str
) -> None:
    """Unknown keys and impossible values name file, line and key; no value is repeated."""
    bench.configure().file.write_text(text)
    with pytest.raises(config.AlarmError) as caught:
        config.read(bench.file)
    assert words in caught.value.message
    assert "s3cret" not in caught.value.message + (caught.value.hint or "")


def test_a_configuration_that_others_may_write_or_read_is_refused(bench: Bench) -> None:
    """Others may never write it, and not read it when it holds a secret."""
    bench.configure('type = "webhook"\nurl = "http://localhost/s3cret"')
    for mode in (0o640, 0o604, 0o620, 0o602):
        bench.file.chmod(mode)
        with pytest.raises(config.AlarmError, match=r"by others .*0[67]") as caught:
            config.read(bench.file)
        assert "chmod 600" in (caught.value.hint or "")
    bench.configure('type = "syslog"').file.chmod(0o644)
    assert len(config.read(bench.file)) == 1


def test_a_secret_may_stand_in_a_private_file_or_a_variable(bench: Bench) -> None:
    """A file that others can read, an empty one, a missing one and an unset variable are named."""
    secret = bench.root / "url"
    bench.configure(f'type = "webhook"\nurl_file = "{secret}"', 'type = "webhook"\nurl_env = "U"')
    one, other = config.read(bench.file)
    assert "does not exist" in (config.trouble(one, {}) or "")
    for content, mode, words in (
        ("\n", 0o600, "is empty"),
        ("http://h/x", 0o644, "read by others"),
    ):
        secret.write_text(content)
        secret.chmod(mode)
        assert words in (config.trouble(one, {}) or "")
    secret.chmod(0o600)
    assert config.trouble(one, {}) is None
    assert "U is not set" in (config.trouble(other, {}) or "")
    assert config.trouble(other, {"U": "https://h/x"}) is None
    assert "URL is none" in (config.trouble(other, {"U": "file:///etc/passwd"}) or "")


# -- telling ---------------------------------------------------------------------------------------


def test_without_a_configuration_nothing_is_written_and_nothing_started(bench: Bench) -> None:
    """Whoever configured no channel pays nothing."""
    assert bench.alarm.ended(ended("refused")) is None
    assert not bench.alarm.directory.exists()
    assert bench.senders() == []


def test_a_refused_run_reaches_a_webhook_and_the_second_pages(
    bench: Bench, httpserver: HTTPServer
) -> None:
    """From a run's ending to the wire, by a process that ends when all is delivered."""
    httpserver.expect_request("/hook", method="POST").respond_with_data("ok")
    bench.configure(webhook(httpserver))
    for _ in range(2):
        assert bench.alarm.ended(ended("refused")) is None
    until(lambda: len(httpserver.log) == 3)
    bodies_ = received(httpserver)
    assert sorted(body["kind"] for body in bodies_) == ["page", "refused", "refused"]
    (page,) = [body for body in bodies_ if body["kind"] == "page"]
    assert "2 runs in a row were refused" in page["text"]
    until(lambda: not bench.senders())
    assert bench.spool.count() == 0
    assert bench.spool.states()["c0"].why is None


def test_a_clean_run_ends_a_row_of_refusals_and_is_not_told(bench: Bench) -> None:
    """Refused, clean, refused does not page; the clean one makes no notice."""
    log = bench.root / "log"
    bench.configure(f'type = "file"\npath = "{log}"')
    for kind in ("refused", "clean", "refused"):
        assert bench.alarm.ended(ended(kind)) is None
    until(lambda: log.exists() and not bench.spool.count())
    assert [json.loads(line)["kind"] for line in log.open()] == ["refused", "refused"]


def test_telling_waits_for_nobody_and_the_sender_holds_nothing_of_the_caller(
    bench: Bench,
) -> None:
    """A server that never answers holds up neither the caller nor who reads its output."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        bench.configure(f'type = "webhook"\nurl = "{url}"', timeout='"60s"')
        code = (
            "import os, sys; from pathlib import Path\n"
            "from sealrun.alarm import Alarm; from sealrun.alarm.tell import trial\n"
            "os.set_inheritable(os.dup(1), True)\n"
            "print(Alarm(Path(sys.argv[1]), Path(sys.argv[2])).tell(trial('h', 9e9)))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(bench.alarm.directory), str(bench.file)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == "None\n"
        # Whoever reads the caller's output saw its end, yet the sender is at it.
        until(lambda: len(bench.senders()) == 2)
        for process in bench.senders():
            fds = [Path(f"/proc/{process.pid}/fd/{n}").readlink() for n in (0, 1)]
            assert fds == [Path("/dev/null")] * 2
            assert os.getsid(process.pid) != os.getsid(0)
            assert process.cwd() == "/"


def test_a_notice_outlives_a_stuck_lock_and_a_full_spool_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that holds our lock costs at most a page; what has no room is named."""
    bench.configure(f'type = "file"\npath = "{bench.root}/no/such/place"')
    with bench.spool.counting(), contextlib.ExitStack():
        monkeypatch.setattr(spool, "PATIENCE", 0.05)
        assert bench.alarm.ended(ended("refused")) is None
    assert bench.spool.count() == 1
    monkeypatch.setattr(spool, "ROOM", 1)
    assert "1 more were dropped" in (bench.alarm.tell(notice()) or "")
    assert bench.alarm.tell(notice(kind=Kind.PAGE)) is None


def test_a_broken_configuration_is_said_by_whoever_tells_and_loses_nothing(bench: Bench) -> None:
    """The notice is kept, the caller gets a sentence, and once mended the next one delivers both."""
    log = bench.root / "log"
    bench.configure().file.write_text("[channel.a]\ntype = 'file'\npth = '/x'\n")
    assert "alarm.toml:3: unknown key" in (bench.alarm.tell(notice(1)) or "")
    bench.send()
    assert bench.spool.count() == 1
    bench.configure(f'type = "file"\npath = "{log}"')
    assert bench.alarm.tell(notice(2)) is None
    until(lambda: not bench.spool.count())
    assert [json.loads(line)["title"][-1] for line in log.open()] == ["1", "2"]


def test_telling_never_raises(bench: Bench) -> None:
    """A state directory that cannot be made is a sentence, not an exception."""
    bench.configure('type = "syslog"')
    (bench.root / "state").write_text("a file")
    assert "nobody could be told" in (bench.alarm.ended(ended("refused")) or "")
    assert "nobody could be told" in (bench.alarm.tell(notice()) or "")


# -- delivering ------------------------------------------------------------------------------------


def test_a_server_in_trouble_is_tried_again_until_it_takes_the_notice(
    bench: Bench, httpserver: HTTPServer
) -> None:
    """Status 500, 503 and 429 are tried again and logged, and the same id comes each time."""
    for status in (500, 503, 429):
        httpserver.expect_ordered_request("/hook").respond_with_data("no", status=status)
    httpserver.expect_ordered_request("/hook").respond_with_data("ok")
    bench.configure(webhook(httpserver))
    bench.spool.put(notice())
    log = bench.send()
    assert [(line["event"], line["channel"]) for line in log] == [("not delivered", "c0")] * 3
    assert [answer.status_code for _, answer in httpserver.log] == [500, 503, 429, 200]
    assert len({request.headers["Idempotency-Key"] for request, _ in httpserver.log}) == 1
    # Each try was answered: none may have arrived unknown to us.
    assert not any(body["possible_duplicate"] for body in received(httpserver))
    assert bench.spool.count() == 0


def test_a_refused_connection_is_tried_again_and_the_state_says_so(bench: Bench) -> None:
    """Nobody listens, then somebody does: the notice arrives, and until then the channel fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bench.configure(f'type = "webhook"\nurl = "http://127.0.0.1:{port}/s3cret"')
    assert bench.alarm.tell(notice()) is None
    until(lambda: bench.spool.states().get("c0", State()).failures >= 3)
    assert bench.spool.states()["c0"].why == "it refuses the connection"
    with listening(port) as (_, got):
        until(lambda: got)
        until(lambda: not bench.spool.count())
    assert b"POST /s3cret" in got[0]
    assert bench.spool.states()["c0"].failures == 0


def whole_request(link: socket.socket) -> bytes:
    """Read one request up to the end of its body."""
    request = b""
    while part := link.recv(65536):
        request += part
        head, found, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if found and length and len(body) >= int(length[1]):
            break
    return request


@contextlib.contextmanager
def listening(
    port: int = 0, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
) -> Iterator[tuple[int, list[bytes]]]:
    """Serve with a bare socket; give its port, and the requests as they come."""
    got: list[bytes] = []
    server = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = server.accept()
                with link, contextlib.suppress(OSError):
                    got.append(whole_request(link))
                    link.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], got
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def test_no_redirect_is_followed(bench: Bench, httpserver: HTTPServer) -> None:
    """Whatever a server points at gets nothing, on its own host or another's."""
    for status in (301, 302, 307, 308):
        elsewhere = httpserver.url_for("/elsewhere").replace("localhost", "127.0.0.1")
        httpserver.expect_request(f"/{status}").respond_with_response(
            Response("", status, {"Location": elsewhere})
        )
    httpserver.expect_request("/elsewhere").respond_with_data("gotcha")
    hooks = (webhook(httpserver, f"/{status}") for status in (301, 302, 307, 308))
    bench.configure(*hooks, retry='"5min"')
    bench.alarm.tell(notice())
    until(
        lambda: (
            len(bench.spool.states()) == 4
            and all(state.failures for state in bench.spool.states().values())
        )
    )
    assert all("redirects" in (s.why or "") for s in bench.spool.states().values())
    assert not any(request.path == "/elsewhere" for request, _ in httpserver.log)


def test_an_endless_answer_is_not_read(bench: Bench, httpserver: HTTPServer) -> None:
    """The status counts; a body without end neither fills memory nor holds up the sender."""
    rest = threading.Event()

    def endless(_: Request) -> Response:
        def parts() -> Iterator[bytes]:
            while not rest.is_set():
                yield b"x" * 65536

        return Response(parts(), 200)

    httpserver.expect_request("/hook").respond_with_handler(endless)
    bench.configure(webhook(httpserver))
    bench.spool.put(notice())
    bench.send()
    rest.set()
    assert bench.spool.count() == 0
    assert len(httpserver.log) == 1


def test_a_server_that_drips_for_ever_is_left(bench: Bench) -> None:
    """An answer that begins and never ends is cut off by the kernel; other channels are not late."""
    stop = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    links: list[socket.socket] = []

    def drip() -> None:
        with contextlib.suppress(OSError):
            link, _ = server.accept()
            links.append(link)
            link.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.is_set():
                link.sendall(b"x")
                time.sleep(0.1)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    log = bench.root / "log"
    url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    bench.configure(
        f'type = "webhook"\nurl = "{url}"', f'type = "file"\npath = "{log}"', timeout='"500ms"'
    )
    assert bench.alarm.tell(notice()) is None
    until(lambda: links and log.exists())
    assert bench.spool.states().get("c0", State()).failures == 0
    until(lambda: bench.spool.states().get("c0", State()).failures)
    stop.set()
    server.close()
    for link in links:
        link.close()
    assert "does not answer within" in (bench.spool.states()["c0"].why or "")


def test_a_sender_killed_while_sending_is_made_up_for_and_says_so(bench: Bench) -> None:
    """What was on the wire comes again with its id, marked; what was not comes once, unmarked."""
    bench.configure('type = "webhook"\nurl_env = "U"')
    first, second = notice(1), notice(2)
    server = socket.create_server(("127.0.0.1", 0))
    url = {"U": f"http://127.0.0.1:{server.getsockname()[1]}/"}
    bench.spool.put(first)
    bench.spool.put(second)
    killed = subprocess.Popen(bench.sender, env=os.environ | url)
    link, _ = server.accept()
    assert first.id.encode() in whole_request(link)
    for process in bench.senders():
        process.kill()
    assert killed.wait(60) == -signal.SIGKILL
    link.close()
    server.close()
    with listening() as (port, got):
        bench.environment = {"U": f"http://127.0.0.1:{port}/"}
        bench.send()
    documents = [json.loads(one.partition(b"\r\n\r\n")[2]) for one in got]
    marks = {one["id"]: one["possible_duplicate"] for body in documents for one in body["notices"]}
    assert marks == {first.id: True, second.id: False}
    assert len(documents) == 2
    assert [body["possible_duplicate"] for body in documents] == [True, False]
    assert "may have been sent before" in documents[0]["text"]


def test_a_storm_comes_as_few_messages_that_hold_all_of_it(
    bench: Bench, httpserver: HTTPServer
) -> None:
    """Forty notices and a page: two alone, one of many, and the page, first."""
    httpserver.expect_request("/hook").respond_with_data("ok")
    bench.configure(webhook(httpserver), messages="3", per='"1h"')
    storm = [*(notice(number) for number in range(40)), notice(99, Kind.PAGE)]
    for one in storm:
        assert bench.spool.put(one)
    bench.send()
    bodies_ = received(httpserver)
    assert [len(body["notices"]) for body in bodies_] == [1, 1, 1, 38]
    assert bodies_[0]["kind"] == "page"
    assert bodies_[3]["title"] == "sealrun: 38 notices"
    assert "and 28 more" in bodies_[3]["text"]
    ids = Counter(one["id"] for body in bodies_ for one in body["notices"])
    assert ids == Counter(one.id for one in storm)


def test_what_is_too_old_or_refused_for_good_is_given_up_and_said(
    bench: Bench, httpserver: HTTPServer
) -> None:
    """A notice two days old, and one that the receiver calls wrong three times, end on record."""
    httpserver.expect_request("/hook").respond_with_data("invalid", status=400)
    bench.configure(webhook(httpserver))
    bench.spool.put(notice(at=time.time() - 2 * 86400))
    bench.spool.put(notice())
    bench.send()
    assert len(httpserver.log) == 3
    assert bench.spool.count() == 0
    assert bench.spool.states()["c0"].given_up == 2


def test_a_mended_configuration_is_used_at_once(bench: Bench, httpserver: HTTPServer) -> None:
    """A sender that pauses for minutes reads the file anew and tries again."""
    httpserver.expect_request("/hook").respond_with_data("ok")
    bench.configure('type = "webhook"\nurl = "http://127.0.0.1:1/"', retry='"5min"')
    assert bench.alarm.tell(notice()) is None
    until(lambda: bench.spool.states().get("c0", State()).failures)
    bench.configure(webhook(httpserver), retry='"5min"')
    until(lambda: not bench.spool.count())
    assert len(httpserver.log) == 1


def test_a_channel_gets_only_what_it_asked_for(bench: Bench) -> None:
    """Kinds and quiet things are the channel's choice."""
    logs = [bench.root / str(number) for number in range(3)]
    options = ('kinds = ["page"]', "quiet = true", "")
    bench.configure(
        *(f'type = "file"\npath = "{log}"\n{more}' for log, more in zip(logs, options, strict=True))
    )
    bench.spool.put(notice(1, Kind.PAGE))
    bench.spool.put(notice(2, Kind.REFUSED))
    bench.spool.put(replace(notice(3), quiet=True))
    bench.send()
    got = ["".join(json.loads(line)["title"][-1] for line in log.open()) for log in logs]
    assert got == ["1", "123", "12"]


def test_a_channel_that_is_gone_keeps_nothing_waiting(bench: Bench) -> None:
    """Who takes a channel out of the file gets nothing more, and the spool empties."""
    bench.configure(f'type = "file"\npath = "{bench.root}/no/such/place"')
    assert bench.alarm.tell(notice()) is None
    until(lambda: bench.spool.states().get("c0", State()).failures)
    bench.configure()
    until(lambda: not bench.senders())
    assert bench.spool.count() == 0
    assert bench.spool.states() == {}


def test_an_unset_variable_keeps_the_notice_for_a_sender_that_has_it(
    bench: Bench, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender ends, the notice stays; whoever calls with the variable has it delivered."""
    httpserver.expect_request("/hook").respond_with_data("ok")
    bench.configure('type = "webhook"\nurl_env = "TEST_ALARM_URL"')
    assert "TEST_ALARM_URL is not set" in (bench.alarm.tell(notice()) or "")
    until(lambda: not bench.senders() and bench.spool.states())
    assert bench.spool.count() == 1
    monkeypatch.setenv("TEST_ALARM_URL", httpserver.url_for("/hook"))
    assert bench.alarm.tell() is None
    until(lambda: not bench.spool.count())
    assert len(httpserver.log) == 1


def test_a_second_sender_leaves_at_once(bench: Bench) -> None:
    """There is one sender at a time; what it does not hold up is the one that comes late."""
    bench.configure('type = "syslog"')
    lock = bench.spool.become_sender()
    assert lock is not None
    bench.spool.put(notice())
    send(bench.spool, bench.file, {})
    assert bench.spool.count() == 1
    os.close(lock)


def test_files_of_another_making_in_the_spool_harm_nobody(bench: Bench) -> None:
    """What is no notice is removed; a link or a FIFO is never opened; the rest is delivered."""
    log = bench.root / "log"
    bench.configure(f'type = "file"\npath = "{log}"')
    bench.spool.put(notice(7))
    place = bench.alarm.directory / "spool"
    (place / "AAAA.json").write_text("{" * 100_000)
    (place / "BBBB.json").write_text('{"notice": []}')
    (place / "CCCC.json").symlink_to("/etc/passwd")
    os.mkfifo(place / "DDDD.json")
    (bench.alarm.directory / "channels.json").write_text("[" * 100_000)
    (bench.alarm.directory / "tallies.json").write_text('{"x": null}')
    bench.send()
    assert [json.loads(line)["title"] for line in log.open()] == ["sealrun: notice 7"]
    assert bench.spool.count() == 0


# -- each kind of channel --------------------------------------------------------------------------


def test_a_file_gets_private_lines_and_survives_half_a_line(bench: Bench) -> None:
    """Lines are JSON, the file is private, and what a full disk cut short stays alone."""
    log = bench.root / "log"
    bench.configure(f'type = "file"\npath = "{log}"')
    bench.spool.put(notice(1))
    bench.send()
    assert log.stat().st_mode & 0o777 == 0o600
    with log.open("a") as file:
        file.write('{"half":')
    bench.spool.put(notice(2))
    bench.send()
    lines = log.read_text().split("\n")
    assert [json.loads(lines[number])["title"][-1] for number in (0, 2)] == ["1", "2"]
    assert lines[1] == '{"half":'


def test_a_fifo_in_the_place_of_a_file_holds_nobody_up(bench: Bench) -> None:
    """It is named as what it is."""
    fifo = bench.root / "fifo"
    os.mkfifo(fifo)
    bench.configure(f'type = "file"\npath = "{fifo}"')
    cli = Cli(bench.root, bench.root)
    done = cli("alarm", "test", status=125)
    assert "is no regular file" in done.stdout


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_the_log_daemon_gets_the_notice(bench: Bench, kind: socket.SocketKind) -> None:
    """By datagram, or by stream where the daemon listens for one."""
    path = bench.root / "log.socket"
    with socket.socket(socket.AF_UNIX, kind) as daemon:
        daemon.bind(str(path))
        if kind == socket.SOCK_STREAM:
            daemon.listen()
        bench.configure(f'type = "syslog"\nsocket = "{path}"\nfacility = "local0"')
        one = notice()
        bench.spool.put(one)
        bench.send()
        if kind == socket.SOCK_STREAM:
            link, _ = daemon.accept()
            with link:
                said = link.makefile("rb").read()
            assert said.endswith(b"\0")
        else:
            said = daemon.recv(1 << 16)
    assert said.startswith(b"<132>")
    assert b"sealrun: notice 0; run 0; file: train.py" in said


def test_apprise_carries_a_notice(bench: Bench, httpserver: HTTPServer) -> None:
    """One of apprise's own services gets title and text, with nothing to interpret."""
    httpserver.expect_request("/any").respond_with_data("ok")
    bench.configure(f'type = "apprise"\nurl = "json://localhost:{httpserver.port}/any"')
    bench.spool.put(hostile().notices[0])
    bench.send()
    (body,) = received(httpserver)
    assert body["title"] == "sealrun: run flagged in nanogpt"
    assert "[at]everyone" in body["message"]
    assert "@" not in body["message"]


def test_a_token_is_sent_as_a_header(bench: Bench, httpserver: HTTPServer) -> None:
    """A receiver that wants a token gets it, in no other place."""
    httpserver.expect_request("/hook").respond_with_data("ok")
    bench.configure(webhook(httpserver, more='token = "tk_s3cret"'))
    bench.spool.put(notice())
    bench.send()
    ((request, _),) = httpserver.log
    assert request.headers["Authorization"] == "Bearer tk_s3cret"
    assert b"s3cret" not in request.get_data()


# -- what the user sees ----------------------------------------------------------------------------


def test_no_secret_is_in_any_file_list_of_processes_or_output(bench: Bench) -> None:
    """URLs and tokens stand in the configuration alone, also when everything fails."""
    bench.configure(
        'type = "webhook"\nurl = "http://127.0.0.1:1/s3cret"\ntoken = "s3cret"',
        'type = "webhook"\nurl = "http://s3cret.invalid/s3cret"',
        'type = "webhook"\nurl = "s3cret"',
        'type = "apprise"\nurl = "json://127.0.0.1:1/s3cret"',
        'type = "apprise"\nurl = "nonsense-s3cret"',
        'type = "webhook"\nurl = "http://127.0.0.1:1/"\nproxy = "http://s3cret:s3cret@127.0.0.1:1"',
    )
    problem = bench.alarm.tell(notice())
    until(lambda: sum(bool(s.why) for s in bench.spool.states().values()) == 6, 120)
    lines = [" ".join(process.info["cmdline"]) for process in bench.senders()]
    cli = Cli(bench.root, bench.root)
    outputs = [cli("alarm", "show"), cli("alarm", "show", "--json"), cli("doctor", status=None)]
    outputs.append(cli("alarm", "test", status=125))
    files = [one.read_text() for one in bench.alarm.directory.rglob("*") if one.is_file()]
    said = [str(problem), *lines, *files, *(one.stdout + one.stderr for one in outputs)]
    assert not any("s3cret" in text for text in said)
    assert any("refuses the connection" in text for text in files)


def test_show_and_doctor_name_a_dead_channel(bench: Bench) -> None:
    """Untried, then failing with its reason and what waits; the doctor warns and nothing breaks."""
    places = Places(*(bench.root / name for name in ("state", "data", "cache", "runtime")))
    cli = Cli(bench.root, bench.root)
    assert "no channel in" in cli("alarm", "show").stderr
    log = bench.root / "log"
    bench.configure(
        f'type = "file"\npath = "{log}"', f'type = "file"\npath = "{bench.root}/no/such"'
    )
    assert [one["state"] for one in cli.json("alarm", "show")["channels"]] == ["untried"] * 2
    assert bench.alarm.tell(notice()) is None
    until(lambda: bench.spool.states().get("c1", State()).failures and log.exists())
    until(lambda: bench.spool.states().get("c0", State()).delivered)
    shown = cli.json("alarm", "show")
    assert [one["state"] for one in shown["channels"]] == ["works", "fails"]
    assert shown["waiting"] == shown["channels"][1]["waiting"] == 1
    assert "No such file" in cli("alarm", "show").stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEALRUN_HOME", str(bench.root))
        (check,) = told(places)
        assert check.grade is Grade.WARN
        assert "c1: " in check.detail
        bench.configure(f'type = "file"\npath = "{log}"')
        until(lambda: not bench.senders())
        (check,) = told(places)
        assert (check.grade, check.detail) == (Grade.OK, "c0 works")


def test_test_says_how_it_went_and_revives_a_channel(bench: Bench, httpserver: HTTPServer) -> None:
    """Each channel or one of them gets a test at once; the status says whether all took it."""
    httpserver.expect_request("/hook").respond_with_data("ok")
    bench.configure(webhook(httpserver), f'type = "file"\npath = "{bench.root}/no/such"')
    cli = Cli(bench.root, bench.root)
    done = cli("alarm", "test", status=125)
    assert "c0: taken" in done.stdout
    assert "c1: failed" in done.stdout
    assert cli.json("alarm", "test", "c0")["channels"] == [
        {"channel": "c0", "taken": True, "why": None}
    ]
    assert [body["kind"] for body in received(httpserver)] == ["test", "test"]
    assert "Channels are: c0, c1" in cli("alarm", "test", "c9", status=2).stderr
    bench.file.write_text("[channel.x]\ntype = 'fax'\n")
    assert "alarm.toml:1" in cli("alarm", "test", status=2).stderr
    assert "alarm.toml:1" in cli("alarm", "show", status=2).stderr


# -- from a run to the alarm -----------------------------------------------------------------------


def test_an_error_is_told_as_what_it_is(tmp_path: Path) -> None:
    """Trouble of ours is a fault, a run that may not start is refused, a mistyped call is nothing."""
    fault = of_error(EngineUnavailable("no engine answers"), "01R", tmp_path)
    refused = of_error(LedgerMissing("the ledger is gone"), "01R", tmp_path)
    assert fault is not None
    assert refused is not None
    (one,), (other,) = (notices_of(run, new_ulid()) for run in (fault, refused))
    assert (one.kind, other.kind) == (Kind.FAULT, Kind.REFUSED)
    assert "what: no engine answers" in one.text
    assert "what: the ledger is gone" in other.text
    assert happening_of(refused).refused is True
    assert of_error(UsageError("no such revision"), "01R", tmp_path) is None
    assert of_error(Interrupted("interrupted"), "01R", tmp_path) is None


def test_a_finished_run_is_told_by_its_own_verdict(tmp_path: Path) -> None:
    """Verdict, severity under the run's policy, harmlessness and alerts reach the notice."""
    policy = load(b"", source="none")
    findings = [
        Finding(Reason.WORKSPACE_DIFFERS_FOREIGN, "…", "train.py"),
        Finding(Reason.EXTRA_FILE, "…", "notes.txt"),
    ]
    verdict = judge(findings, policy.policy, started=True)
    finished = Finished("01R", "c" * 40, policy, verdict, Outcome.SUCCEEDED)
    run = of_finished(finished, tmp_path / "nanogpt", [alert("train.py")])
    (one,) = notices_of(run, new_ulid())
    assert (one.kind, one.repository) == (Kind.FLAGGED, "nanogpt")
    # Its number counts, but a foreign writer is at work: that is told.
    assert (one.harmless, one.quiet) == (True, False)
    assert "workspace-differs-foreign" in one.text
    # A note is no reason to wake anybody.
    assert "extra-file" not in one.text
    assert "notes.txt" not in one.paths
    assert set(happening_of(run).causes) == {"workspace-differs-foreign", "edit-foreign by ruff"}


def test_a_certificate_that_nobody_vouches_for_is_refused(bench: Bench) -> None:
    """TLS is verified against the system's certificates, or those of ca_file alone."""
    key, certificate = bench.root / "key", bench.root / "certificate"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(ssl_context=context) as server:
        server.expect_request("/hook").respond_with_data("ok")
        bench.configure(
            webhook(server), webhook(server, more=f'ca_file = "{certificate}"'), timeout='"20s"'
        )
        done = Cli(bench.root, bench.root)("alarm", "test", status=125)
        assert "c0: failed: its certificate or its TLS is not accepted" in done.stdout
        assert "c1: taken" in done.stdout


def test_a_proxy_is_the_configured_one_and_never_the_environments(bench: Bench) -> None:
    """Variables of the caller lead no notice elsewhere."""
    with listening() as (port, got), listening() as (other, stolen):
        bench.configure(
            f'type = "webhook"\nurl = "http://hooks.invalid/x"\nproxy = "http://127.0.0.1:{port}"',
            'type = "webhook"\nurl = "http://hooks.invalid/x"',
            'type = "apprise"\nurl = "json://hooks.invalid/x"',
        )
        proxies = dict.fromkeys(
            ("http_proxy", "HTTP_PROXY", "ALL_PROXY"), f"http://127.0.0.1:{other}"
        )
        done = Cli(bench.root, bench.root, proxies)("alarm", "test", status=125)
        assert "c0: taken" in done.stdout
        assert got[0].startswith(b"POST http://hooks.invalid/x HTTP")
        assert stolen == []


def test_looking_writes_nothing(bench: Bench) -> None:
    """Neither show nor doctor makes a directory of the alarm's."""
    bench.configure('type = "syslog"')
    cli = Cli(bench.root, bench.root)
    assert cli.json("alarm", "show")["channels"][0]["state"] == "untried"
    cli("doctor", status=None)
    assert not bench.alarm.directory.exists()


@pytest.mark.parametrize("deaths", [6, pytest.param(30, marks=pytest.mark.soak)])
def test_a_sender_killed_again_and_again_loses_nothing(bench: Bench, deaths: int) -> None:
    """However often it dies, each notice arrives; what comes twice is marked."""
    with listening() as (port, got):
        bench.configure(f'type = "webhook"\nurl = "http://127.0.0.1:{port}/"')
        storm = [notice(number) for number in range(60)]
        for one in storm:
            bench.spool.put(one)
        for number in range(deaths):
            sender = subprocess.Popen(bench.sender)
            with contextlib.suppress(subprocess.TimeoutExpired):
                sender.wait(0.3 + 0.6 * number / deaths)
            for process in bench.senders():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            sender.wait(60)
        bench.send()
    unmarked: Counter[str] = Counter()
    for request in got:
        body = request.partition(b"\r\n\r\n")[2]
        if not body:
            continue  # killed before it had said anything
        for one in json.loads(body)["notices"]:
            # Whichever try was taken first: one that was killed may be read after its successor.
            unmarked[one["id"]] += not one["possible_duplicate"]
    assert set(unmarked) == {one.id for one in storm}
    assert max(unmarked.values()) <= 1


def test_each_example_of_the_manual_is_a_sound_configuration(bench: Bench) -> None:
    """What the how-to shows can be pasted."""
    page = Path(__file__).parents[1] / "docs" / "howto" / "alarm.md"
    examples = re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    bench.configure().file.write_text("\n".join(examples))
    assert [one.name for one in config.read(bench.file)] == [
        *("team", "phone", "mail", "file", "log", "mine"),
    ]
