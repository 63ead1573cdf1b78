"""``sealrun session`` with real agents: what passes through, what is recorded, whose writes are whose.

Naming writers needs root in the first pid namespace, as in ``test_attribution``.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _cli import Cli
from _guard import Site, eventually, site
from sealrun.ownership.sessions import Session, Sessions
from sealrun.ownership.whose import Whose, of_mutation
from sealrun.state import repository_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealrun.guard import Mutation

__all__ = ["site"]

TOOLS = ("black", "ruff")


@pytest.fixture
def cli(site: Site) -> Cli:
    """The command line in the guarded workspace."""
    return Cli(site.root, site.places.state.parent)


def sessions(site: Site) -> Sessions:
    """Return the sessions of the workspace's repository."""
    return Sessions.of(site.places, repository_id(site.root / ".git"))


def only(site: Site) -> Session:
    """Return the one session that there must be."""
    (session,) = sessions(site).all()
    return session


def recorder(session: Session) -> int:
    """Return the pid of the process that waits for a session's end, once there is one."""
    found: list[int] = []

    def waits() -> bool:
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                text = (place / "fdinfo/3").read_text()
                if f"Pid:\t{session.pid}\n" in text:
                    found.append(int(place.name))
        return bool(found)

    eventually(waits)
    return found[0]


# -- what passes through -----------------------------------------------------------------------------


def test_output_and_status_are_the_agents(cli: Cli) -> None:
    """Both streams carry the agent's bytes alone, and its exit status is ours."""
    done = cli("session", "--", "sh", "-c", "printf out; printf err >&2; exit 41", status=41)
    assert (done.stdout, done.stderr) == ("out", "err")


def test_a_later_separator_is_the_agents(cli: Cli) -> None:
    """Only the first ``--`` is ours; options after it are the agent's."""
    done = cli("session", "--", "printf", "%s|", "--", "-h", "--json", "--")
    assert done.stdout == "--|-h|--json|--|"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_signal_reaches_the_agent_itself(cli: Cli, number: signal.Signals) -> None:
    """The process that was started is the agent: no wrapper is between it and a signal."""
    agent = cli.start("session", "--", "sh", "-c", "echo $$; exec sleep 1000")
    assert agent.stdout is not None
    assert int(agent.stdout.readline()) == agent.pid
    agent.send_signal(number)
    assert agent.wait(30) == -number


def test_a_wrapper_that_is_killed_before_leaves_no_session(cli: Cli, site: Site) -> None:
    """Whenever it is killed, a session that is on record ends with its process."""
    for delay in (0.05, 0.2, 0.4, 0.8):
        agent = cli.start("session", "--", "sleep", "1000")
        time.sleep(delay)
        agent.kill()
        agent.wait(30)
        agent.communicate()
    assert all(session.ended is not None for session in sessions(site).all())


def test_environment_signals_and_files_are_as_given(cli: Cli, site: Site) -> None:
    """The agent sees the same variables, dispositions, mask, limits and descriptors as without us."""
    script = (
        "import json, os, sys\n"
        "status = open('/proc/self/status').read()\n"
        "fds = sorted(f for f in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + f))\n"
        "print(json.dumps({'env': dict(os.environ), 'fds': fds, 'cwd': os.getcwd(),\n"
        " 'umask': os.umask(0), 'nice': os.nice(0), 'pgrp': os.getpgrp(), 'sid': os.getsid(0),\n"
        " 'signals': [l for l in status.splitlines() if l.startswith(('SigBlk', 'SigIgn', 'SigCgt'))]}))"
    )
    agent = [sys.executable, "-ISc", script]
    bare = f"trap '' HUP; umask 027; exec 7</ 0<&-; exec {{}} {agent[0]} {agent[1]} \"$SCRIPT\""
    environment = {"SEALRUN_HOME": str(cli.home), "PATH": os.environ["PATH"], "SCRIPT": script}

    def seen(prefix: str) -> dict[str, Any]:
        done = subprocess.run(
            ["sh", "-c", bare.format(prefix)],
            cwd=site.root, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert not done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    seen(f"{cli.program} session --")  # the guard starts
    assert seen(f"{cli.program} session --") == seen("env") | {"signals": seen("env")["signals"]}


def test_the_terminal_is_the_agents(cli: Cli) -> None:
    """On a terminal the agent is the foreground, and Ctrl-C interrupts it."""
    ours, theirs = pty.openpty()
    script = (
        "import fcntl, os, time\n"
        "print(os.isatty(0), os.tcgetpgrp(0) == os.getpgrp() == os.getpid(), flush=True)\n"
        "time.sleep(1000)"
    )
    agent = subprocess.Popen(
        ["setsid", "--ctty", cli.program, "session", "--", sys.executable, "-c", script],
        cwd=cli.directory, env=cli.environment, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    line = b""
    while b"\n" not in line:
        line += os.read(ours, 4096)
    assert line.strip() == b"True True"
    os.write(ours, b"\x03")
    assert agent.wait(30) == -signal.SIGINT
    os.close(ours)


def test_a_program_that_cannot_start(cli: Cli, site: Site) -> None:
    """Statuses are a shell's, the message names the program, and no session is left open."""
    assert "'no-such-agent'" in cli("session", "--", "no-such-agent", status=127).stderr
    (site.root / "plain").write_text("not a program")
    assert "'./plain'" in cli("session", "--", "./plain", status=126).stderr
    assert all(session.ended is not None for session in sessions(site).all())


# -- what is recorded --------------------------------------------------------------------------------


def test_the_session_is_on_record_before_the_agent(cli: Cli, site: Site) -> None:
    """The first thing that an agent can do finds its session there, and the guard watching."""
    script = f"{cli.program} session list --json; {cli.program} guard --json"
    done = cli("session", "--", "sh", "-c", script)
    decoder = json.JSONDecoder()
    listed, end = decoder.raw_decode(done.stdout)
    guard, _ = decoder.raw_decode(done.stdout[end:].lstrip())
    (session,) = listed["sessions"]
    assert session["ended"] is None
    assert session["command"] == ["sh", "-c", script]
    assert guard["guard"]["standing"]["files"] == len(site.entries)
    eventually(lambda: only(site).ended is not None)


def test_an_end_is_recorded_when_it_happens(cli: Cli, site: Site) -> None:
    """Who waits for the end records it at once, and is gone itself."""
    agent = cli.start("session", "--", "sh", "-c", "echo; exec sleep 1000")
    assert agent.stdout is not None
    agent.stdout.readline()
    session = only(site)
    waiting = recorder(session)
    before = time.time()
    agent.kill()
    agent.wait(30)
    file = site.places.sessions(repository_id(site.root / ".git")) / f"{session.id}.json"
    eventually(lambda: json.loads(file.read_text())["ended"] is not None)
    ended = only(site).ended
    assert ended is not None
    assert before <= ended <= time.time()
    eventually(lambda: not Path(f"/proc/{waiting}").exists())


def test_who_waits_for_the_end_holds_nothing_open(cli: Cli, site: Site) -> None:
    """A caller that waits for the end of the agent's output does not wait for us."""
    agent = cli.start("session", "--", "sh", "-c", "exec >&- 2>&-; exec sleep 1000")
    assert agent.stdout is not None
    assert agent.stdout.read() == b""
    waiting = recorder(only(site))
    links: dict[str, str] = {}

    def has_closed_the_rest() -> bool:
        with suppress(OSError):  # it closes them as we look
            found = {fd.name: str(fd.readlink()) for fd in Path(f"/proc/{waiting}/fd").iterdir()}
            links.clear()
            links.update(found)
        return sorted(links) == ["0", "1", "2", "3"]

    eventually(has_closed_the_rest)
    assert {links[fd] for fd in "012"} == {"/dev/null"}
    assert Path(f"/proc/{waiting}/cwd").readlink() == Path("/")
    assert os.getsid(waiting) != os.getsid(agent.pid)
    agent.kill()
    agent.wait(30)


def test_a_killed_recorder_loses_no_end(cli: Cli, site: Site) -> None:
    """Where who waits for the end is killed too, the next reader notices the end."""
    agent = cli.start("session", "--", "sh", "-c", "echo; exec sleep 1000")
    assert agent.stdout is not None
    agent.stdout.readline()
    os.kill(recorder(only(site)), signal.SIGKILL)
    assert only(site).ended is None
    agent.kill()
    agent.wait(30)
    assert only(site).ended is not None


def test_outside_of_a_repository(cli: Cli, tmp_path: Path, site: Site) -> None:
    """An agent that starts elsewhere leads a session that counts in every repository."""
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    outside = Cli(nowhere, cli.home)
    done = outside("session", "--", "sh", "-c", "echo started")
    assert (done.stdout, done.stderr) == ("started\n", "")
    assert only(site).command == ("sh", "-c", "echo started")
    assert len(outside.json("session", "list")["sessions"]) == 1


def test_a_stopped_guard_does_not_keep_an_agent_from_starting(cli: Cli, site: Site) -> None:
    """Trouble with the guard is said, with what to do, and the agent starts."""
    pid = site.guard.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        done = cli("session", "--", "echo", "started")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.stdout == "started\n"
    assert f"process {pid}) is stopped" in done.stderr
    assert f"hint: kill -CONT {pid}" in done.stderr


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    """An agent may make the first commit; until then it is said that nothing is watched."""
    root = tmp_path / "fresh"
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    cli = Cli(root, tmp_path / "home")
    done = cli("session", "--", "echo", "started")
    assert done.stdout == "started\n"
    assert "has no commit yet" in done.stderr
    cli.stop_guard()


# -- attaching ---------------------------------------------------------------------------------------


@pytest.fixture
def running(site: Site) -> Iterator[subprocess.Popen[str]]:
    """An agent that was started without us: a shell that does what it is told."""
    with subprocess.Popen(
        ["bash"], cwd=site.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def tell(agent: subprocess.Popen[str], script: str) -> None:
    """Let a shell do something, and wait until it has."""
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(f"{script}\necho\n")
    agent.stdin.flush()
    agent.stdout.readline()


def test_a_running_agent_can_be_attached(
    cli: Cli, site: Site, running: subprocess.Popen[str]
) -> None:
    """From then on it leads a session, which ends with it; a second time changes nothing."""
    assert f"process {running.pid}" in cli("session", "attach", str(running.pid)).stderr
    session = only(site)
    assert (session.pid, session.attached, session.command) == (running.pid, True, ("bash",))
    assert "already" in cli("session", "attach", str(running.pid)).stderr
    assert only(site) == session
    tell(running, "sed -i s/0.5/0.3/ train.py")
    assert whose(site)[0] == "loop"
    running.kill()
    running.wait()
    eventually(lambda: only(site).ended is not None)


def test_who_cannot_be_attached(cli: Cli, site: Site) -> None:
    """No process, the first process, and another user's are refused with a reason."""
    for pid in ("1", "999999999"):
        assert "error:" in cli("session", "attach", pid, status=2).stderr
    assert sessions(site).all() == ()


def test_a_loop_attaches_nobody(cli: Cli, site: Site, running: subprocess.Popen[str]) -> None:
    """An agent cannot say of another process that it is the loop's own too."""
    done = cli("session", "--", cli.program, "session", "attach", str(running.pid), status=121)
    assert "a loop does not say what else is its own" in done.stderr
    assert [session.attached for session in sessions(site).all()] == [False]


# -- whose writes ------------------------------------------------------------------------------------


@pytest.fixture
def agent(cli: Cli, site: Site) -> Iterator[subprocess.Popen[str]]:
    """A shell that leads a session and does what it is told."""
    with subprocess.Popen(
        [cli.program, "session", "--", "bash"],
        cwd=site.root, env=cli.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        tell(process, ":")
        yield process
        process.kill()


def newest(site: Site) -> Mutation:
    """Return what was found last between runs, once there is something."""

    def found() -> tuple[Mutation, ...]:
        report = site.guard.between()
        assert report is not None
        return tuple(m for m in report.mutations if m.kind == "modified")

    eventually(lambda: bool(found()))
    return max(found(), key=lambda mutation: mutation.last.monotonic)


def whose(site: Site) -> tuple[str, str]:
    """Return whose the newest mutation is, and why."""
    mutation = newest(site)
    # In part where the machine is so loaded that a program has written before its start was told.
    assert mutation.writer.how in ("live", "cached", "partial"), mutation.writer
    found: Whose = of_mutation(mutation, sessions(site).all(), TOOLS)
    return found.category, found.why


DOUBLE_FORK = (
    "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
    "time.sleep(0.3)\nopen('train.py', 'a').write('#')"
)
DEEP = "f() { if [ $1 = 0 ]; then echo x >> train.py; else ( f $(($1 - 1)); : ); fi; }; f 20"
# What an agent does, and what its shell is told for it.
OWN: dict[str, str] = {
    "the agent itself": "echo x >> train.py",
    "a child": "sed -i s/0.5/0.3/ train.py",
    "an interpreter": "python3 -Ic \"open('train.py', 'a').write('#')\"",
    "a daemon that forked twice": f'python3 -Ic "{DOUBLE_FORK}"',
    "in the background": "(sleep 0.2; echo x >> train.py) & disown",
    "nohup and setsid": ("(setsid nohup sh -c 'sleep 0.3; echo x >> train.py' > /dev/null 2>&1 &)"),
    "twenty shells deep": DEEP,
    "a nested session": "SEALRUN session -- sh -c 'echo x >> train.py'",
    "git": "git -c user.name=a -c user.email=b stash -q 2> /dev/null; sed -i s/0.5/0.2/ train.py",
}


@pytest.mark.parametrize("way", OWN)
def test_what_descends_from_the_agent_is_the_loops(
    site: Site, cli: Cli, agent: subprocess.Popen[str], way: str
) -> None:
    """However an agent's descendants were started, and whether they still belong to it: the loop."""
    tell(agent, OWN[way].replace("SEALRUN", cli.program))
    assert whose(site) == ("loop", f"it descends from session {sessions(site).all()[0].id}")


@pytest.mark.soak(sample=True)
def test_a_daemon_is_the_loops_after_thousands_of_processes(
    site: Site, agent: subprocess.Popen[str]
) -> None:
    """A daemon whose parents are long gone stays the loop's, whatever ran in between."""
    script = DOUBLE_FORK.replace(
        "time.sleep(0.3)", "\nwhile not os.path.exists('../go'): time.sleep(0.05)"
    )
    tell(agent, f'python3 -Ic "{script}"')
    tell(agent, "for ((i = 0; i < 5000; i++)); do ( : ); done")
    site.sh("touch ../go")
    assert whose(site)[0] == "loop"


def test_it_stays_the_loops_after_the_agents_end(site: Site, agent: subprocess.Popen[str]) -> None:
    """What an agent left behind writes for the loop also when the session has ended."""
    script = DOUBLE_FORK.replace(
        "time.sleep(0.3)", "\nwhile not os.path.exists('../go'): time.sleep(0.05)"
    )
    tell(agent, f'python3 -Ic "{script}"')
    agent.kill()
    agent.wait()
    eventually(lambda: only(site).ended is not None)
    site.sh("touch ../go")
    assert whose(site)[0] == "loop"


def test_a_named_tool_is_foreign_below_the_agent(
    site: Site, cli: Cli, agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    """A formatter that the agent's hook starts is foreign, also wrapped into a session of its own."""
    tool = tmp_path / "bin/black"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\nopen('train.py', 'a').write('# formatted\\n')\n")
    tool.chmod(0o755)
    tell(agent, f"sh -c '{tool}; :'")
    assert whose(site) == ("foreign", "black is named as foreign in the policy")
    site.git("checkout", "-q", "train.py")
    tell(agent, f"{cli.program} session -- {tool}")
    assert whose(site) == ("foreign", "black is named as foreign in the policy")


def test_who_is_not_of_the_session_is_foreign(site: Site, agent: subprocess.Popen[str]) -> None:
    """A process beside the agent is foreign while it works, and unknown when it has ended."""
    site.sh("sleep 0.1; echo 'SCALAR_LR = 0.3' 1<> train.py; sleep 0.1; :")
    assert whose(site) == ("foreign", "it descends from no session that was under way")
    agent.kill()
    agent.wait()
    eventually(lambda: only(site).ended is not None)
    site.sh("sleep 0.1; echo 'SCALAR_LR = 0.1' 1<> train.py; sleep 0.1; :")
    assert whose(site) == ("unknown", "no session was under way")


def test_without_process_events_an_orphan_is_unknown(
    site: Site, agent: subprocess.Popen[str]
) -> None:
    """A daemon that the guard knows from /proc alone is neither the loop's nor foreign."""
    script = DOUBLE_FORK.replace(
        "time.sleep(0.3)",
        "\nwhile os.getppid() == os.getsid(0): time.sleep(0.05)\n"
        "open('../up', 'w')\nwhile not os.path.exists('../go'): time.sleep(0.05)",
    )
    script += "\nwhile os.path.exists('../go'): time.sleep(0.05)"
    tell(agent, f'python3 -Ic "{script}"')
    eventually((site.root.parent / "up").exists)
    site.guard.stop("test")
    again = replace(site, _client=None)
    assert again.guard.status().standing is not None
    go = site.root.parent / "go"
    go.touch()
    try:
        category, why = whose(again)
    finally:
        go.unlink()
    assert category == "unknown"
    assert "orphan" in why
