"""Whose change it is: decided from recorded process lines, without any process."""

from __future__ import annotations

import time

import pytest

from sealrun.guard import Moment, Mutation, Writer
from sealrun.guard.processes import Process
from sealrun.ownership.sessions import Session
from sealrun.ownership.whose import Whose, classify, of_mutation, programs

BOOT = "boot"
TOOLS = ("black", "prettier", "pre-commit", "clang-format", "gofmt", "autopep8")
INIT = Process(1, "/sbin/init", ("init",), started=1)
SHELL = Process(50, "/bin/bash", ("bash",), started=100)
AGENT = Process(100, "/usr/bin/node", ("node", "/opt/agent/main.js"), started=500)
HOOK = Process(110, "/bin/sh", ("sh", "-c", "fmt"), started=600, forked=True)
SED = Process(120, "/bin/sed", ("sed", "-i", "s/a/b/", "train.py"), started=700, forked=True)
BLACK = Process(121, "/usr/bin/python3.11", ("python3", "-m", "black", "."), started=700)


def session(pid: int = 100, started: int = 500, **more: object) -> Session:
    """Return a session led by the agent."""
    fields = {
        "id": "01JD0000000000000000000000",
        "pid": pid,
        "started": started,
        "boot": BOOT,
        "uid": 0,
        "command": ("agent",),
        "attached": False,
        "begun": 1000.0,
        "above": (50, 1),
    }
    return Session(**(fields | more))  # type: ignore[arg-type]


def wrote(*line: Process, how: str = "live", why: str | None = None) -> Writer:
    """Return a writer with its parents."""
    return Writer(how=how, process=line[0], parents=line[1:], why=why)


def category(writer: Writer, *sessions: Session, at: float | None = None) -> str:
    """Return the category alone."""
    return classify(writer, sessions, TOOLS, BOOT, at=at).category


def test_the_leader_and_its_descendants_are_the_loop() -> None:
    """What the leader or anything below it writes is the loop's own, however it was found."""
    assert category(wrote(AGENT, SHELL, INIT), session()) == "loop"
    assert category(wrote(SED, HOOK, AGENT, SHELL, INIT), session()) == "loop"
    assert category(wrote(SED, HOOK, AGENT), session()) == "loop", "what is above does not matter"
    for how in ("cached", "partial"):
        assert category(wrote(SED, AGENT, how=how), session()) == "loop"


def test_an_orphan_of_the_session_is_still_the_loop() -> None:
    """A daemon whose recorded parents lead to the leader is the loop's, also after its end."""
    ended = session(ended=2000.0)
    assert category(wrote(SED, AGENT, SHELL, INIT), ended, at=3000.0) == "loop"


def test_a_named_tool_is_foreign_in_the_loops_own_tree() -> None:
    """A formatter that the agent's hook starts is foreign, with the name that says so."""
    found = classify(wrote(BLACK, HOOK, AGENT, SHELL, INIT), [session()], TOOLS, BOOT)
    assert found == Whose("foreign", "black is named as foreign in the policy")
    child = wrote(SED, BLACK, AGENT, SHELL, INIT)
    assert category(child, session()) == "foreign", "what a tool starts is the tool's"


def test_a_nested_session_excuses_no_tool() -> None:
    """A formatter that leads a session inside a session is foreign; at the top a human chose it."""
    inner = session(BLACK.pid, BLACK.started or 0)
    line = wrote(BLACK, HOOK, AGENT, SHELL, INIT)
    assert category(line, session(), inner) == "foreign"
    assert category(line, inner) == "loop"


def test_a_tool_above_the_leader_does_not_count() -> None:
    """An agent that a named tool started is the loop's."""
    assert category(wrote(SED, AGENT, BLACK, INIT), session()) == "loop"


def test_without_a_session_only_named_tools_are_foreign() -> None:
    """Nobody is taken for the loop, and nobody but a named tool for foreign."""
    assert category(wrote(SED, SHELL, INIT)) == "unknown"
    assert category(wrote(BLACK, SHELL, INIT)) == "foreign"
    assert category(wrote(SED, SHELL, INIT), session(ended=1500.0), at=1600.0) == "unknown"
    assert category(wrote(SED, SHELL, INIT), session(), at=900.0) == "unknown"


def test_who_descends_from_no_session_is_foreign() -> None:
    """With a session under way, a writer whose whole line avoids it is foreign."""
    assert category(wrote(SED, HOOK, SHELL, INIT), session()) == "foreign"
    assert category(wrote(SED, HOOK, SHELL, INIT), session(ended=1500.0), at=1400.0) == "foreign"


@pytest.mark.parametrize(
    "writer",
    [
        Writer(),
        Writer(how="gone", process=Process(7)),
        wrote(SED, HOOK, SHELL),
        wrote(SED, HOOK, SHELL, INIT, how="partial", why="another process wrote"),
    ],
)
def test_what_is_not_known_whole_is_never_foreign(writer: Writer) -> None:
    """Without a process, without its whole line, or with doubts about it, a writer is unknown."""
    assert category(writer, session()) == "unknown"


def test_an_orphan_that_nobody_followed_is_unknown() -> None:
    """Where /proc alone names init as the parent, the true one may have been the session's."""
    orphan = Process(130, "/usr/bin/python3", ("python3", "d.py"), started=800)
    assert category(wrote(orphan, INIT), session()) == "unknown"
    assert category(wrote(orphan, SHELL, INIT), session()) == "unknown", "a reaper may be above"
    other = Process(60, "/bin/bash", ("bash",), started=90)
    assert category(wrote(orphan, other, INIT), session()) == "foreign", "it adopts nobody of ours"
    followed = Process(130, "/usr/bin/python3", ("python3", "d.py"), started=800, forked=True)
    assert category(wrote(followed, INIT), session()) == "foreign"
    older = Process(130, "/usr/bin/python3", ("python3", "d.py"), started=400)
    assert category(wrote(older, INIT), session()) == "foreign", "older than the leader"


def test_a_pid_alone_proves_nothing() -> None:
    """A later process with the leader's pid, or one of another boot, is not the leader."""
    reused = Process(100, "/bin/sh", ("sh",), started=900, forked=True)
    assert category(wrote(reused, SHELL, INIT), session()) == "foreign"
    unread = Process(100, "/bin/sh", ("sh",), forked=True)
    assert category(wrote(SED, unread, SHELL, INIT), session()) == "unknown"
    assert category(wrote(AGENT, SHELL, INIT), session(boot="other")) == "unknown"


def mutation(writer: Writer, *candidates: Writer) -> Mutation:
    """Return a mutation by a writer."""
    moment = Moment(1.0, 1500.0, BOOT)
    return Mutation(
        *(1, b"train.py", "tracked", "modified", None, None, 0, (), moment, moment),
        writer=writer,
        candidates=candidates,
    )


def test_an_uncertain_writer_counts_with_its_candidates() -> None:
    """Where another may have written in the loop's place, the mutation is not called the loop's."""
    doubtful = wrote(SED, AGENT, how="partial", why="another process wrote at about that time")
    foreign = wrote(BLACK, SHELL, INIT)
    assert of_mutation(mutation(doubtful, foreign), [session()], TOOLS).category == "unknown"
    own = wrote(HOOK, AGENT)
    assert of_mutation(mutation(doubtful, own), [session()], TOOLS).category == "loop"
    certain = wrote(SED, AGENT)
    assert of_mutation(mutation(certain, foreign), [session()], TOOLS).category == "loop"
    nobody = Writer(why="several processes wrote at that time")
    assert of_mutation(mutation(nobody, own), [session()], TOOLS).category == "unknown"


@pytest.mark.parametrize(
    ("exe", "command", "name"),
    [
        ("/usr/bin/black", "black .", "black"),
        ("/usr/bin/clang-format-14", "clang-format -i x.c", "clang-format"),
        ("/usr/bin/python3.11", "/v/bin/python /v/bin/black .", "black"),
        ("/usr/bin/python3", "python3 -I -W ignore -m black .", "black"),
        ("/usr/bin/python3", "python3 -Imblack .", "black"),
        ("/usr/bin/python3", "python3 -mautopep8 -i x", "autopep8"),
        ("/usr/bin/python3", "python3 -m pre_commit run", "pre-commit"),
        ("/usr/bin/python3", "python3 /v/lib/site-packages/black/__main__.py", "black"),
        ("/usr/bin/pypy3.10", "pypy3 -X utf8 /v/bin/black3", "black"),
        ("/usr/bin/node", "node --max-old-space-size=9 /w/node_modules/.bin/prettier -w .", "prettier"),
        ("/usr/bin/node", "node -r ./hook.js /w/node_modules/prettier/bin/prettier.cjs", "prettier"),
        ("/usr/bin/node", "node /w/node_modules/prettier/index.js", "prettier"),
        ("/usr/bin/node", "node /w/node_modules/prettier/bin-old.js", "prettier"),
        ("/bin/bash", "bash -o errexit /usr/local/bin/prettier x", "prettier"),
        ("/usr/bin/perl", "perl -w /usr/bin/black.pl", "black"),
        ("/usr/bin/ruby3.1", "ruby -I lib /usr/bin/prettier.rb", "prettier"),
        ("/usr/bin/gofmt (deleted)", "gofmt -w .", "gofmt"),
        ("/bin/busybox", "prettier x", "prettier"),
    ],
)  # fmt: skip
def test_a_tool_is_known_by_what_runs(exe: str, command: str, name: str) -> None:
    """A tool is found by its executable, or by the script or module that an interpreter runs."""
    process = Process(9, exe, tuple(command.split()), started=5)
    assert classify(wrote(process), [], TOOLS, BOOT) == Whose(
        "foreign", f"{name} is named as foreign in the policy"
    )


@pytest.mark.parametrize(
    ("exe", "command"),
    [
        ("/usr/bin/python3", "python3 -c black black"),
        ("/usr/bin/python3", "python3 - black"),
        ("/usr/bin/python3", "python3 train.py black"),
        ("/usr/bin/python3", "python3 -m train black"),
        ("/usr/bin/node", "node -e prettier prettier"),
        ("/usr/bin/node", "node --eval prettier prettier"),
        ("/usr/bin/node", "node server.js /w/node_modules/prettier/x.js"),
        ("/usr/bin/perl", "perl -pi -e s/black/white/ black"),
        ("/bin/bash", "bash -c black black"),
        ("/usr/bin/cat", "black"),
        ("/usr/bin/python3", ""),
        (None, ""),
    ],
)
def test_an_argument_is_no_program(exe: str | None, command: str) -> None:
    """A file that is read, inline code, or a renamed argument does not make a tool."""
    process = Process(9, exe, tuple(command.split()) or None, started=5)
    assert classify(wrote(process), [], TOOLS, BOOT).category == "unknown"


def test_hostile_arguments_are_only_text() -> None:
    """Whatever stands in a command line, naming its program ends and raises nothing."""
    awkward = ("", "-", "--", "---", "-m", "-W", "//", "node_modules/", "node_modules/@x", "\udce9")
    began = time.monotonic()
    for exe in ("/python3", "/node", "/perl", "/sh", "/bun", ""):
        for one in awkward:
            for two in awkward:
                list(programs(Process(9, exe, ("x", one, two, *awkward))))
    assert time.monotonic() - began < 60
