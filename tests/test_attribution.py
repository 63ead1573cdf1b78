"""Who wrote: real second processes, named from the kernel's events, and what is said without them.

These tests need root in the first pid namespace, as fanotify and process events do.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import _sandbox
from _guard import Site, eventually, site
from sealrun.guard import Mutation, Writer, fanotify, procevents
from sealrun.guard.attribution import Attribution, Seen, judge
from sealrun.guard.processes import (
    ARGUMENTS,
    CUT,
    ENDED,
    PARENTS,
    Process,
    Recent,
    born,
    look,
    merged,
)
from sealrun.guard.witness import Haste, Witness
from sealrun.ledger import Process as Recorded
from sealrun.ledger import WriterFacts
from sealrun.reasons import Reason
from sealrun.writers import HIDDEN, describe, facts, shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["site"]

#: How often each technique writes, the share of times that its writer must be named, and how often
#: it goes on below that: a machine that stands still for a moment costs several in a row.
TIMES, SHARE, AGAIN = 60, 0.95, 3

#: Files made at once, each of two events; the guard's own queue holds 16,384 (inotify(7)).
PIECE = 4000

# Each is what another process does, the program that must be named, and the kind of mutation.
# ``{n}`` makes each time's bytes its own.
TECHNIQUES: dict[str, tuple[str, str, str]] = {
    "sed in place": ("sed -i 's/= .*/= 0.{n}/' train.py", "sed", "modified"),
    "append": ("echo '# {n}' >> train.py", "bash", "modified"),
    "append in a subshell": ("(echo '# {n}' >> train.py); :", "bash", "modified"),
    "output of a program": ("seq {n} 99 > train.py", "seq", "modified"),
    "python": ("python3 -Ic \"open('train.py', 'a').write('# {n}')\"", "python3", "modified"),
    "move over": ("echo {n} > ../t{n}; mv ../t{n} train.py", "mv", "modified"),
    "copy over": ("echo {n} > ../t; cp ../t train.py", "cp", "modified"),
    "editor": (
        "cp train.py train.py~; sed 's/= .*/= 0.{n}/' train.py~ > .n; mv -f .n train.py; rm train.py~",
        "mv", "modified"),
    "remove": ("rm train.py # {n}", "rm", "deleted"),
    "move away": ("mv train.py ../gone{n}", "mv", "deleted"),
    "mode": ("chmod +x train.py # {n}", "chmod", "mode-changed"),
    "link": ("ln -sf prepare.py train.py # {n}", "ln", "type-changed"),
}  # fmt: skip


def _strike(site: Site, script: str) -> Mutation:
    """Let a shell write, and return the mutation that was found last."""
    subprocess.run(["bash", "-c", script + "\n:"], cwd=site.root, check=True)
    return max(site.drain().mutations, key=lambda mutation: mutation.last.monotonic)


def _strike_known(site: Site, script: str) -> Mutation:
    """The same with a shell that is there for a while before and after, so that its name is no race."""
    return _strike(site, f"sleep 0.1; {script}; sleep 0.1")


def _restore(site: Site) -> None:
    site.git("checkout", "-qf", ".")
    site.drain()


def _process(mutation: Mutation) -> Process:
    assert mutation.writer.process is not None, mutation.writer
    return mutation.writer.process


def _witness(site: Site) -> int:
    """Return the pid of the process that sees who writes."""
    pid = site.guard.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_short_lived_writers_are_named(
    site: Site, technique: str, record_property: Callable[[str, object], None]
) -> None:
    """A process that is gone in a millisecond is named, with its program, almost every time."""
    script, program, kind = TECHNIQUES[technique]
    site.arm()
    hows: list[str] = []

    def named() -> float:
        return sum(how in {"live", "cached"} for how in hows) / len(hows)

    for number in range(10, 10 + TIMES * (1 + AGAIN)):
        mutation = _strike(site, script.replace("{n}", str(number)))
        assert mutation.kind == kind
        writer = mutation.writer
        if writer.how in {"live", "cached"}:
            process = _process(mutation)
            assert process.exe is not None
            assert Path(process.exe).name.startswith(program)
            assert (process.uid, process.cwd) == (0, str(site.root))
            assert mutation.candidates == ()
            assert writer.parents, "somebody started it"
            assert writer.why is None
        hows.append(writer.how)
        _restore(site)
        if len(hows) % TIMES == 0 and named() >= SHARE:
            break
    told = {how: hows.count(how) for how in dict.fromkeys(hows)}
    record_property("named", f"{named():.0%} {told}")
    print(f"{technique}: {named():.0%} {told}")  # noqa: T201 - pytest -rP shows the share
    assert named() >= SHARE, told


def test_a_writer_is_known_whole(site: Site) -> None:
    """Of a living writer everything is on record: program, arguments, place, user, start, parents."""
    site.arm()
    script = "import os, sys; f = open('train.py', 'a'); f.write('#'); f.flush(); print(flush=True); input()"
    argv = [sys.executable, "-Ic", script, "caf\udce9"]
    with subprocess.Popen(
        argv, cwd=site.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        mutation = site.only()
        expected, _ = look(process.pid)
        process.kill()
    assert mutation.writer.how == "live"
    assert _process(mutation) == replace(expected, forked=True)
    assert expected.cmdline == tuple(argv)
    assert mutation.writer.kind == "unknown", "nobody is called foreign without being certain"
    assert mutation.writer.parents[0].pid == os.getpid()
    assert mutation.writer.parents[-1].pid == 1 or len(mutation.writer.parents) == PARENTS


def test_a_daemon_is_named_with_those_that_started_it(site: Site) -> None:
    """A process that was forked twice and belongs to init now is named, and so is its ancestor."""
    site.arm()
    site.sh(
        'python3 -Ic "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\n'
        "if os.fork(): os._exit(0)\ntime.sleep(0.1)\nf = open('train.py', 'a')\nf.write('#')\nf.close()\ntime.sleep(0.3)\"\n:"
    )
    eventually(lambda: bool(site.drain().mutations))
    mutation = site.only()
    assert mutation.writer.how in {"live", "cached"}
    line = [Path(parent.exe or "?").name for parent in mutation.writer.parents[:3]]
    assert [name.rstrip("0123456789.") for name in line] == ["python", "python", "bash"]


def test_another_user_is_named_by_number(site: Site) -> None:
    """A writer of another uid is on record with that uid; still nobody is called foreign."""
    for directory in (site.root, *site.root.parents):
        with suppress(PermissionError):
            if directory.stat().st_uid == os.getuid() and directory.is_relative_to("/tmp/"):  # noqa: S108 - where pytest works
                directory.chmod(0o755)
    (site.root / "train.py").chmod(0o666)
    site.arm()
    script = "sleep 0.1; echo 1 >> train.py; sleep 0.1; :"
    mutation = _strike(
        site, f"setpriv --reuid 65534 --regid 65534 --clear-groups bash -c '{script}'"
    )
    assert (_process(mutation).uid, mutation.writer.kind) == (65534, "unknown")
    recorded = facts(mutation.writer, (), 0)
    assert recorded.process is not None
    assert recorded.process.user == pwd.getpwuid(65534).pw_name


@pytest.mark.engine
def test_a_writer_in_a_container_is_named_with_it(site: Site) -> None:
    """A process of a container that mounts the workspace is named with the container's id."""
    api = _sandbox.client()
    made = api.create_container(
        _sandbox.image(api),
        ["/bin/sh", "-c", "sleep 0.1; echo 'from inside' >> /w/train.py; sleep 0.1; :"],
        host_config=api.create_host_config(binds=[f"{site.root}:/w"], network_mode="none"),
    )
    site.arm()
    try:
        api.start(made["Id"])
        api.wait(made["Id"])
        mutation = site.only()
    finally:
        api.remove_container(made["Id"], force=True)
    assert mutation.writer.how in {"live", "cached"}
    assert _process(mutation).container == made["Id"]
    assert _process(mutation).exe == "/bin/sh"
    told = describe(facts(mutation.writer, (), 0))
    assert f"in container {made['Id'][:12]}" in (told or "")


def test_there_and_back_again_keeps_the_first_writer(site: Site) -> None:
    """Who brought the foreign bytes stays on record when somebody else restores the file."""
    site.arm()
    _strike_known(site, "echo 'SCALAR_LR = 0.3' > train.py")
    site.git("checkout", "-q", "train.py")
    mutation = site.only()
    assert mutation.restored
    assert Path(_process(mutation).exe or "").name == "bash"


def test_the_last_to_bring_a_state_is_named(site: Site) -> None:
    """The same foreign bytes from two programs, one after the other: the later one is named."""
    site.arm()
    first = _strike(site, "sed -i s/0.5/0.3/ train.py")
    _restore(site)
    second = _strike_known(site, "echo 'SCALAR_LR = 0.3' > train.py")
    assert (first.number, second.count) == (second.number, 2)
    assert Path(_process(second).exe or "").name == "bash"


def test_identical_rewrites_name_nobody(site: Site) -> None:
    """Where nothing was mutated there is no writer to name."""
    site.arm()
    site.sh("cp train.py ../t; cp ../t train.py; touch train.py")
    report = site.drain()
    assert (report.mutations, len(report.rewrites)) == ((), 1)


def test_data_files_have_writers_too(site: Site, tmp_path: Path) -> None:
    """A change of a mounted data file names its writer like one of the workspace."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "0.bin").write_bytes(b"0" * 100)
    site.arm(extra=(data,))
    mutation = _strike_known(site, f"echo 1 > {data}/0.bin")
    assert mutation.area == "data"
    assert Path(_process(mutation).exe or "").name == "bash"


def test_a_storm_hides_nobody(site: Site) -> None:
    """While others write 20,000 times into the workspace, a short-lived writer is named.

    A machine that stands still meanwhile may cost events; then the record says just that. It may cost
    a name too, of who lived for a millisecond just then; it never makes it another's.
    """
    site.arm()
    storm = "import os\nfor n in range(20000):\n f = os.open('run%d.log' % (n % 50), 65); os.write(f, b'x'); os.close(f)"
    named: list[str] = []
    for number in range(5):
        with subprocess.Popen(["python3", "-Ic", storm], cwd=site.root) as process:
            time.sleep(0.05)
            mutation = _strike(site, f"sed -i 's/= .*/= 0.{number}1/' train.py")
            process.wait()
        assert mutation.number == number + 1
        writer = mutation.writer.process
        named.append(Path((writer and writer.exe) or "").name)
    assert sorted(named) in (["sed"] * 5, ["", *["sed"] * 4])
    assert set(site.drain().coverage.reasons) <= {Reason.EVENTS_LOST}


def test_a_formatter_over_many_files_is_named_each_time(site: Site) -> None:
    """One program that rewrites 300 files is one process, 300 times."""
    for number in range(300):
        site.put(b"lib/m%d.py" % number, b"x=%d\n" % number)
    site.commit()
    site.arm()
    site.sh("sed -i 's/=/ = /' lib/*.py")
    mutations = site.drain().mutations
    assert len(mutations) == 300
    assert len({_process(mutation).pid for mutation in mutations}) == 1


# -- without the privilege, and without the witness ----------------------------------------------

_SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from sealrun.guard import ensure
from sealrun.state import Places
p = [Path(a) for a in sys.argv[1:]]
client = ensure(p[0], Places(*p[1:5]))
client.arm("run", p[5], p[6])
writer = subprocess.Popen([sys.executable, "-Ic", "f = open('train.py', 'a'); f.write('#'); f.close(); "
                           "print(flush=True); input()"],
                          cwd=p[0], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
writer.stdout.readline()
report = client.disarm("run")
writer.communicate(b"\\n")
client.stop("test")
(mutation,) = report.mutations
print(json.dumps([report.coverage.complete, mutation.writer.how, mutation.writer.why,
                  mutation.writer.process and mutation.writer.process.cmdline[:2]]))
"""


def _confined(site: Site, *command: str) -> list[object]:
    places = site.places
    where = (site.root, places.state, places.data, places.cache, places.runtime)
    done = subprocess.run(
        [
            *(*command, sys.executable, "-c", _SCRIPT),
            *map(str, (*where, site.manifest, site.evidence)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer


def test_without_privilege_everything_else_works(site: Site) -> None:
    """A guard that may not name writers finds and covers as ever, and says what it lacks."""
    complete, how, why, process = _confined(site, "setpriv", "--bounding-set=-sys_admin")
    assert (complete, how, process) == (True, "unavailable", None)
    assert "CAP_SYS_ADMIN" in str(why)


def test_without_process_events_the_living_are_named(site: Site) -> None:
    """Where only process events are lacking, a writer that lives on is named."""
    complete, how, why, process = _confined(site, "unshare", "--net")
    assert (complete, how, why, process) == (True, "live", None, [sys.executable, "-Ic"])


def test_a_killed_witness_is_on_record(site: Site) -> None:
    """When the process that sees writers is killed, its run is told so; the next one has another."""
    site.arm()
    os.kill(_witness(site), signal.SIGKILL)
    site.sh("sed -i s/0.5/0.3/ train.py")
    report = site.drain()
    (mutation,) = report.mutations
    assert report.coverage.reasons == (Reason.WRITERS_LOST,)
    assert (mutation.writer.how, mutation.writer.process) == ("unavailable", None)
    assert mutation.writer.why == "the process that names writers ended"
    site.guard.disarm("run")
    site.git("checkout", "-qf", ".")
    assert site.arm().complete
    mutation = _strike_known(site, "echo 'SCALAR_LR = 0.1' > train.py")
    assert Path(_process(mutation).exe or "").name == "bash"


def test_a_stopped_witness_is_on_record_and_hinders_nobody(site: Site) -> None:
    """When it is stopped, writers and the guard go on; what it slept through is not guessed."""
    site.arm()
    witness = _witness(site)
    os.kill(witness, signal.SIGSTOP)
    try:
        mutation = _strike(site, "sed -i s/0.5/0.3/ train.py")
        assert mutation.writer.how == "unavailable"
        assert "does not answer" in (mutation.writer.why or "")
        later = _strike(site, "sed -i s/0.3/0.2/ train.py")
        assert "does not answer" in (later.writer.why or ""), "nor is it asked again"
        assert site.drain().coverage.reasons == (Reason.WRITERS_LOST,)
    finally:
        os.kill(witness, signal.SIGCONT)
    _restore(site)
    eventually(
        lambda: (
            _strike(site, f"echo {time.monotonic()} > train.py").writer.how in {"live", "cached"}
        )
    )


def test_it_looks_while_the_guard_does_not_listen(site: Site) -> None:
    """A guard that stands still keeps nobody from looking: who wrote and is gone is named afterwards.

    What happened until then is more than any socket holds for a reader.
    """
    site.arm()
    os.kill(site.guard.pid, signal.SIGSTOP)
    try:
        site.python(
            "import os\nfor n in range(2500):\n f = os.open('f%d' % n, 65); os.write(f, b'x'); os.close(f)"
        )
        site.sh("sleep 0.5; echo 'SCALAR_LR = 0.3' > train.py; sleep 0.1; :")
    finally:
        os.kill(site.guard.pid, signal.SIGCONT)
    mutation = site.only()
    assert Path(_process(mutation).exe or "").name == "bash"
    assert mutation.writer.how in {"live", "cached"}


def test_an_overflow_of_its_queue_costs_names_only(site: Site) -> None:
    """More events than the kernel keeps for it: no event of ours is lost, no name called certain."""
    site.arm()
    witness = _witness(site)
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    os.kill(witness, signal.SIGSTOP)
    try:
        for start in range(0, limit + 100, PIECE):
            site.python(
                f"import os\nfor n in range({start}, {start + PIECE}):\n"
                " os.close(os.open('f%d' % n, 65))"
            )
            site.guard.status()  # the guard's own queue is to hold all that it is told
        site.sh("sed -i s/0.5/0.3/ train.py")
    finally:
        os.kill(witness, signal.SIGCONT)
    report = site.drain()
    (mutation,) = report.mutations
    assert set(report.coverage.reasons) <= {Reason.WRITERS_LOST}
    assert mutation.writer.how in {"unavailable", "partial"}
    assert mutation.writer.why


def test_the_witness_takes_no_core_away(site: Site) -> None:
    """Computing without a pause costs the witness its priority, and a second later it has it again."""
    site.arm()
    witness = _witness(site)
    assert os.sched_getscheduler(witness) == os.SCHED_FIFO
    os.kill(witness, signal.SIGXCPU)  # as the kernel does at RLIMIT_RTTIME
    eventually(lambda: os.sched_getscheduler(witness) == os.SCHED_OTHER)
    time.sleep(1.1)
    _strike(site, "sed -i s/0.5/0.3/ train.py")
    eventually(lambda: os.sched_getscheduler(witness) == os.SCHED_FIFO)


def test_the_witness_keeps_two_capabilities(site: Site) -> None:
    """The process that looks at others holds CAP_SYS_PTRACE and CAP_SYS_NICE and nothing else."""
    site.arm()
    status = Path(f"/proc/{_witness(site)}/status").read_text()
    held = {
        line.split()[1] for line in status.splitlines() if line.startswith(("CapPrm", "CapEff"))
    }
    assert {int(mask, 16) for mask in held} == {1 << 19 | 1 << 23}


def test_the_witness_ends_with_its_guard(site: Site) -> None:
    """A guard that is killed leaves no process behind."""
    site.arm()
    witness = _witness(site)
    os.kill(site.guard.pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{witness}").exists())


# -- pure parts ----------------------------------------------------------------------------------


def _seen(position: int, serial: int, mask: int, batch: int = 0) -> Seen:
    writer = Writer(how="live", process=Process(serial))
    return Seen(position, batch or position, mask, serial, writer)


def _judged(kind: str, *own: Seen, above: tuple[Seen, ...] = (), steady: bool = True) -> object:
    writer, candidates = judge(kind, own, above, steady=steady)
    if writer is None:
        return None
    pid = None if writer.process is None else writer.process.pid
    return pid, writer.how, [other.process.pid for other in candidates if other.process]


def test_only_an_event_that_can_have_led_to_it_names_a_writer() -> None:
    """Each kind of mutation has the events that make it; others name nobody."""
    chmod, remove = _seen(1, 7, fanotify.ATTRIBUTE), _seen(1, 7, fanotify.DELETE)
    assert _judged("modified", chmod) is None
    assert _judged("mode-changed", chmod) == (7, "live", [])
    assert _judged("modified", remove) is None
    assert _judged("deleted", remove) == (7, "live", [])
    moved = _seen(1, 8, fanotify.MOVED_FROM | fanotify.DIRECTORY)
    assert _judged("deleted", above=(moved,)) == (8, "live", [])
    emptied = _seen(2, 9, fanotify.DELETE | fanotify.DIRECTORY)
    assert _judged("deleted", remove, above=(emptied,)) == (7, "live", []), "it was empty by then"
    assert _judged("deleted", above=(emptied,)) == (9, "partial", [])
    later = _seen(3, 7, fanotify.DELETE)
    assert _judged("deleted", later, above=(moved,)) == (8, "live", [7]), "it was elsewhere by then"
    back = _seen(2, 9, fanotify.MOVED_TO | fanotify.DIRECTORY)
    assert _judged("deleted", later, above=(moved, back)) == (7, "live", [])
    again = _seen(2, 9, fanotify.CREATE)
    assert _judged("deleted", remove, again, later) == (7, "live", [])
    assert _judged("deleted", remove, again, steady=False) == (7, "live", []), "and restored since"
    made = _seen(1, 8, fanotify.CREATE | fanotify.DIRECTORY)
    assert _judged("modified", above=(made,)) is None, "who made a directory did not fill it"


def test_after_a_lost_event_somebody_else_may_have_been_the_last() -> None:
    """Lost file events leave room for an unknown writer; lost process events only cost certainty."""
    attribution, key = Attribution(), b"key"
    attribution._directories.cover(b"/w", key, 0, 0.0)
    loop = [7, *[None] * (len(fields(Process)) - 1)]
    touched = [[key.hex(), "train.py", fanotify.MODIFY, 0, "live", None]]
    attribution._take({"who": [[1, loop]], "touched": touched})

    def named() -> tuple[str, tuple[Writer, ...]]:
        writer, candidates = attribution.name(b"/w/train.py", "modified", 0)
        assert writer.process is not None
        return writer.how, candidates

    assert named() == ("live", ())
    attribution._take({"lost": [procevents.LOST]})
    assert named() == ("partial", ())
    overflow = "the queue of file events ran over"
    attribution._take({"lost": [overflow]})
    assert named() == ("partial", (Writer(why=overflow),))
    attribution._take({"lost": [procevents.LOST]})
    assert named() == ("partial", (Writer(why=overflow),))


def _heard_of(witness: Witness, pid: int) -> bool:
    """Look, and say whether it is known which program a process began."""
    witness._see()
    known = witness._recent.get(pid)
    exe = known.process.exe if known is not None and known.executed else None
    return exe is not None and Path(exe).name == "bash"


def test_what_is_certain_of_a_program_says_nothing_of_the_next(tmp_path: Path) -> None:
    """A process that writes, becomes another program and ends unread is told of as both."""
    group = fanotify.open_group()
    key = fanotify.mark(group, bytes(tmp_path))
    ours, theirs = socket.socketpair()
    witness = Witness(group, theirs, Haste.__new__(Haste))
    script = "read; echo a >> f; read; exec sh -c 'echo b >> f'"
    with subprocess.Popen(["bash", "-c", script], cwd=tmp_path, stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        eventually(lambda: _heard_of(witness, writer.pid))
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        eventually(lambda: (tmp_path / "f").exists() and (tmp_path / "f").stat().st_size > 0)
        time.sleep(0.1)  # it closes the file, too
        witness._see()
        writer.stdin.close()
    witness._see()
    witness._report(b"1")
    attribution, path = Attribution(), bytes(tmp_path)
    attribution._group = group
    attribution.cover(path)
    for line in ours.recv(1 << 20).splitlines():
        attribution._take(json.loads(line))
    bash, *_, unread = attribution._touched[key, b"f"]
    assert bash.serial == unread.serial
    assert bash.writer.how == "live"
    assert bash.writer.process is not None
    assert bash.writer.process.exe is not None
    assert Path(bash.writer.process.exe).name == "bash"
    named, others = attribution.name(path + b"/f", "modified", 0)
    assert (named.how, others) == ("partial", ())
    assert named.process is not None
    assert (named.process.pid, named.process.exe) == (writer.pid, None)
    for one in (ours, theirs):
        one.close()
    os.close(group)


def test_of_several_the_last_is_named_if_the_order_is_certain() -> None:
    """Events of one read may have been merged: then the name is partial and the others are told."""
    first, second = _seen(1, 7, fanotify.MODIFY), _seen(2, 8, fanotify.MOVED_TO)
    assert _judged("modified", first, second) == (8, "live", [7])
    merged_ones = _seen(1, 7, fanotify.MODIFY, 5), _seen(2, 8, fanotify.MOVED_TO, 5)
    assert _judged("modified", *merged_ones) == (8, "partial", [7])
    assert _judged("modified", first, second, steady=False) == (None, "unavailable", [8, 7])


def test_a_process_is_named_by_the_program_that_it_ran_last() -> None:
    """A shell that opened the file and became another program is that program; gaps do not undo it."""
    shell = Writer(how="live", process=Process(7, exe="/bin/sh", cmdline=("sh",)))
    program = Writer(how="cached", process=Process(7, exe="/bin/seq", cmdline=("seq",)))
    gone = Writer(how="gone", process=Process(7))
    # What it became was read late, or not at all: then it is not known for certain which one wrote.
    late = Writer(how="partial", process=Process(7, exe="/bin/seq", cmdline=("seq",)))
    unread = Writer(how="partial", process=Process(7))
    pairs = ((program, program), (gone, shell), (late, late), (unread, unread))
    for last, expected in pairs:
        events = [
            Seen(n, n, fanotify.MODIFY, 1, writer) for n, writer in enumerate((shell, last), 1)
        ]
        assert judge("modified", events, ()) == (expected, ())


def test_a_close_alone_does_not_outrank_a_write() -> None:
    """Who merely had the file open for writing is a candidate beside the one that wrote."""
    wrote, closed = _seen(1, 7, fanotify.MODIFY), _seen(2, 8, fanotify.CLOSE_WRITE)
    assert _judged("modified", wrote, closed) == (7, "partial", [8])
    assert _judged("modified", wrote, closed, steady=False) == (7, "partial", [8])
    assert _judged("modified", closed) == (8, "live", []), "a mapped write makes no other event"


def test_a_pid_is_not_mixed_up_with_its_successor() -> None:
    """What was known of a pid is dropped when another process has it."""
    old = Process(7, exe="/bin/old", cmdline=("old",), uid=1, started=100)
    assert merged(Process(7, started=100), old) == old
    assert merged(Process(7, started=200), old) == Process(7, started=200)


def test_a_parents_start_is_learned_also_by_children_that_came_before() -> None:
    """A child that was forked before its parent could be read has the parent's start all the same."""
    recent = Recent()
    with (
        subprocess.Popen(["sleep", "1000"]) as parent,
        subprocess.Popen(["sleep", "1000"]) as child,
    ):
        recent.forked(os.getpid(), parent.pid)
        recent.forked(parent.pid, child.pid)
        known = recent.get(child.pid)
        assert known is not None
        assert known.parents[0].started is None
        recent.complete()
        assert known.parents[0].started == born(parent.pid)
        assert known.process.started == born(child.pid)
        assert [process.forked for process in (known.process, known.parents[0])] == [True, True]
        parent.kill()
        child.kill()
    assert born(child.pid) is None


def test_the_ended_are_forgotten_before_the_living() -> None:
    """However many processes come and go, who lives stays known, and memory stays bounded."""
    recent = Recent()
    recent.forked(os.getpid(), 1 << 30)
    for pid in range(1 << 23, (1 << 23) + 2 * ENDED):
        recent.forked(1 << 30, pid)
        recent.ended(pid)
    assert recent.get(1 << 30) is not None
    assert recent.get(1 << 23) is None
    assert recent.get((1 << 23) + 2 * ENDED - 1) is not None


def test_long_arguments_are_cut_and_said_to_be() -> None:
    """A command line beyond the bound ends in a mark."""
    argv = [sys.executable, "-Ic", "input()", *(["x" * 1000] * 20)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        eventually(lambda: (look(process.pid)[0].cmdline or ())[1:2] == ("-Ic",))
        seen, _ = look(process.pid)
        process.kill()
    assert seen.cmdline is not None
    assert seen.cmdline[-1] == CUT
    assert sum(map(len, seen.cmdline)) <= ARGUMENTS


def test_malformed_events_are_survived(tmp_path: Path) -> None:
    """A buffer that was cut short yields what is whole in it and ends."""
    group = fanotify.open_group()
    try:
        fanotify.mark(group, os.fsencode(tmp_path))
        (tmp_path / "file").write_text("x")
        buffer = os.read(group, 65536)
    finally:
        os.close(group)
    whole = list(fanotify.parse(buffer))
    assert whole
    for length in range(len(buffer)):
        assert len(list(fanotify.parse(buffer[:length]))) <= len(whole)


def test_other_users_arguments_are_roots_to_see() -> None:
    """A command line of another user is shown to root; others see its program and that it is cut."""
    theirs = Recorded(pid=7, exe="/bin/tool", cmdline=("tool", "--token", "s3cret"), uid=1000)
    assert shown(theirs, 0) == shown(theirs, 1000) == theirs
    assert shown(theirs, 1001).cmdline == ("tool", HIDDEN)


def test_a_writer_in_a_sentence() -> None:
    """Messages name pid, command, parent and how sure that is; an unknown writer makes none."""
    writer = WriterFacts(
        how="live",
        process=Recorded(pid=4711, exe="/usr/bin/sed", cmdline=("sed", "-i", "s/0.5/0.3/", "a b")),
        parents=(Recorded(pid=4700, exe="/usr/bin/bash"),),
    )
    sentence = "written by pid 4711 /usr/bin/sed -i s/0.5/0.3/ 'a b', child of bash (4700)"
    assert describe(writer) == sentence
    assert describe(WriterFacts(why="needs CAP_SYS_ADMIN")) is None
    gone = WriterFacts(how="gone", why="it had ended", process=Recorded(pid=9))
    assert describe(gone) == "written by pid 9 of an unknown program (gone: it had ended)"
