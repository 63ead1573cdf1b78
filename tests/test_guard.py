"""The guard against real writers: what it finds, what it keeps, and what it admits to have missed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import sealrun
from _guard import COMMITTED, Listed, Site, end, eventually, site
from sealrun.errors import GuardError
from sealrun.guard import GuardClient, GuardLost, ensure, find, write_manifest
from sealrun.guard.client import LOCK, environment
from sealrun.guard.messages import PROTOCOL
from sealrun.reasons import Reason
from sealrun.state import Places

__all__ = ["site"]

FOREIGN = b"SCALAR_LR = 0.3\n"


def _at_once(source: str) -> str:
    # Between two programs a file may be gone for so long that its absence is a state of its own.
    return f"python3 -Ic {shlex.quote(source)}"


# Each is what another process does, and what must be on record: path, kind, restored.
WRITERS: dict[str, tuple[str, bytes, str]] = {
    "sed in place": ("sed -i s/0.5/0.3/ train.py", b"train.py", "modified"),
    "append": ("echo '# x' >> train.py", b"train.py", "modified"),
    "truncate and write": ("echo 'SCALAR_LR = 0.3' > train.py", b"train.py", "modified"),
    "truncate to nothing": (": > train.py", b"train.py", "modified"),
    "move over": ("echo 'SCALAR_LR = 0.3' > .t; mv .t train.py", b"train.py", "modified"),
    "copy over": ("printf 'SCALAR_LR = 0.3\\n' > /dev/shm/t.$$; cp /dev/shm/t.$$ train.py; rm /dev/shm/t.$$",
                  b"train.py", "modified"),
    "same size, mtime put back": (
        "touch -r train.py .r; sed -i s/0.5/0.3/ train.py; touch -r .r train.py; rm .r",
        b"train.py", "modified"),
    "editor with backup": (
        _at_once(
            "import os; os.rename('train.py', 'train.py~')\n"
            "old = open('train.py~').read(); open('train.py', 'w').write(old.replace('0.5', '0.3'))\n"
            "os.unlink('train.py~')"
        ),
        b"train.py", "modified"),
    "editor with swap file": (
        "echo s > .train.py.swp; sed s/0.5/0.3/ train.py > .n; mv -f .n train.py; rm .train.py.swp",
        b"train.py", "modified"),
    "remove": ("rm train.py", b"train.py", "deleted"),
    "move away": ("mv train.py /dev/shm/gone.$$; rm /dev/shm/gone.$$", b"train.py", "deleted"),
    "executable": ("chmod +x train.py", b"train.py", "mode-changed"),
    "not executable": ("chmod -x tool.sh", b"tool.sh", "mode-changed"),
    "file becomes link": ("ln -sf prepare.py train.py", b"train.py", "type-changed"),
    "file becomes directory": (
        _at_once("import os; os.unlink('train.py'); os.mkdir('train.py')"), b"train.py", "type-changed"),
    "file becomes fifo": (
        _at_once("import os; os.unlink('train.py'); os.mkfifo('train.py')"), b"train.py", "type-changed"),
    "link leads elsewhere": ("ln -sfn prepare.py link", b"link", "modified"),
    "parent becomes link": (
        _at_once("import os; os.rename('pkg/deep', 'pkg/other'); os.symlink('other', 'pkg/deep')"),
        b"pkg/deep/model.py", "detoured"),
    "parent renamed": ("mv pkg/deep pkg/elsewhere", b"pkg/deep/model.py", "deleted"),
    "parent replaced": (
        _at_once(
            "import os, shutil; shutil.rmtree('pkg/deep'); os.mkdir('pkg/deep')\n"
            "open('pkg/deep/model.py', 'w').write('WIDTH = 32\\n')"
        ),
        b"pkg/deep/model.py", "modified"),
    "below a renamed and returned parent": (
        _at_once("import os; os.rename('pkg/deep', 'pkg/x'); os.rename('pkg/x', 'pkg/deep')")
        + "; echo 'WIDTH = 32' > pkg/deep/model.py",
        b"pkg/deep/model.py", "modified"),
    "name that is not UTF-8": ("echo y > pkg/caf$'\\xe9'.py", b"pkg/caf\xe9.py", "modified"),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_every_way_of_writing_is_found(site: Site, writer: str) -> None:
    """Whatever way another process changes a guarded path, one mutation of the right kind shows."""
    script, path, kind = WRITERS[writer]
    assert site.arm().complete
    site.sh(script)
    report = site.drain()
    found = [m for m in report.mutations if not m.restored]
    assert [(m.path, m.area, m.kind) for m in found] == [(path, "tracked", kind)], found
    assert found[0].events, "an event, not only the last comparison, told of it"
    assert report.coverage.complete


def test_directories_of_any_depth_leave_the_guard_alive(site: Site) -> None:
    """A thousand nested directories, more than Python nests calls, end neither look nor guard."""
    deep = "/".join(["d"] * 1200)
    site.sh(f"mkdir -p {deep}")
    try:
        assert site.arm().complete
        site.sh(f"mkdir -p e/{deep}; echo 'SCALAR_LR = 0.3' > train.py")
        report = site.drain()
        assert [m.path for m in report.mutations] == [b"train.py"]
        assert report.coverage.complete
    finally:
        site.sh("rm -rf d e")


def test_evidence_is_the_foreign_bytes(site: Site) -> None:
    """The foreign bytes survive a reset, under their sha256, with the ids that git would give."""
    site.arm()
    site.sh("sed -i s/0.5/0.3/ train.py")
    site.drain()
    site.git("reset", "-q", "--hard")
    mutation = site.only()
    assert mutation.restored
    assert mutation.evidence is not None
    assert mutation.evidence.sha256 == hashlib.sha256(FOREIGN).hexdigest()
    assert mutation.evidence.file is not None
    assert Path(mutation.evidence.file).read_bytes() == FOREIGN
    blob = site.git("rev-parse", "HEAD:train.py").decode().strip()
    assert mutation.before == f"git-sha1:{blob}"
    foreign = hashlib.sha1(b"blob 16\0" + FOREIGN).hexdigest()  # noqa: S324 - git's
    assert mutation.after == f"git-sha1:{foreign}"


def test_evidence_is_bounded_and_binary_safe(site: Site) -> None:
    """Of three megabytes of noise one is kept and the record says so; the digest is of all."""
    site.arm()
    site.sh("head -c 3000000 /dev/urandom > train.py")
    mutation = site.only()
    whole = (site.root / "train.py").read_bytes()
    kept = mutation.evidence
    assert kept is not None
    assert kept.file is not None
    assert (kept.sha256, kept.size) == (hashlib.sha256(whole).hexdigest(), 3_000_000)
    assert (kept.kept, Path(kept.file).read_bytes()) == (1 << 20, whole[: 1 << 20])
    assert kept.file.endswith(".head")


def test_write_through_a_mapping(site: Site) -> None:
    """A write through shared memory makes no event of its own and is found all the same."""
    site.arm()
    site.python(
        "import mmap; f = open('train.py', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[12:15] = b'0.3';"
        "m.close(); f.close()"
    )
    assert site.only().kind == "modified"


def test_write_through_a_hard_link_outside(site: Site, tmp_path: Path) -> None:
    """A write through another name outside makes no event; the drain compares and finds it."""
    os.link(site.root / "train.py", tmp_path / "other-name")
    coverage = site.arm()
    assert coverage.hard_linked == 1
    site.sh("printf 'SCALAR_LR = 0.3\\n' | dd of=../other-name conv=notrunc status=none")
    mutation = site.only()
    assert (mutation.kind, mutation.final, mutation.events) == ("modified", True, ())


def test_hard_link_made_after_arming(site: Site) -> None:
    """A name outside that is made during the run and put back in time is found by its identity."""
    site.arm()
    site.sh(
        "touch -r train.py ../ref; ln train.py ../n; printf 0.3 | dd of=../n bs=1 seek=12 "
        "conv=notrunc status=none; touch -r ../ref ../n; rm ../n"
    )
    assert site.only().kind == "modified"


def test_identical_rewrites_are_no_mutations(site: Site) -> None:
    """The same bytes written again, in place, by rename, by git or by touch: noted, no mutation."""
    site.arm()
    site.sh(
        "cat train.py > /dev/shm/c.$$; cp /dev/shm/c.$$ train.py; mv /dev/shm/c.$$ train.py;"
        "touch prepare.py"
    )
    # Git removes it and makes it anew, in one process: it is not gone for long.
    site.python("import os; os.utime('pkg/deep/model.py', (1, 1))")
    site.git("checkout-index", "-f", "pkg/deep/model.py")
    report = site.drain()
    assert report.mutations == ()
    assert {(r.path, r.content) for r in report.rewrites} == {
        (b"train.py", True),
        (b"prepare.py", True),  # touch opens for writing
        (b"pkg/deep/model.py", True),
    }


def test_metadata_alone_is_told_apart(site: Site) -> None:
    """A change of times or of permissions that git does not keep is a rewrite without content."""
    site.arm()
    site.sh("chmod o-r train.py; touch -d '2001-01-01' -c train.py; chmod o+r train.py")
    site.python("import os; os.utime('prepare.py', (1, 1))")
    report = site.drain()
    assert report.mutations == ()
    assert (b"prepare.py", False) in {(r.path, r.content) for r in report.rewrites}


def test_a_slow_write_is_one_mutation(site: Site) -> None:
    """A file that grows piece by piece, unclosed, is one record whose bytes are the last ones."""
    site.arm()
    site.python(
        "import time; f = open('train.py', 'w')\n"
        "for n in range(6): f.write('line %d is longer than the file was\\n' % n); f.flush();"
        " time.sleep(0.04)"
    )
    mutation = site.only()
    assert mutation.evidence is not None
    assert Path(mutation.evidence.file or "").read_bytes() == (site.root / "train.py").read_bytes()
    assert len(list(site.evidence.glob("*/*"))) == 1, "half-way states leave no evidence behind"


def test_a_writer_that_never_closes(site: Site) -> None:
    """Foreign bytes count while their writer still holds the file open, each state by itself."""
    site.arm()
    script = (
        "import os; f = os.open('train.py', os.O_WRONLY)\n"
        "for rate in (b'0.3', b'0.7'):\n"
        "    os.pwrite(f, rate, 12); input()"
    )
    heard: list[str] = []
    site.guard.on_mutation("run", lambda mutation: heard.append(mutation.kind))
    with subprocess.Popen(
        ["python3", "-Ic", script], cwd=site.root, stdin=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        eventually(lambda: heard == ["modified"])
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        eventually(lambda: heard == ["modified"] * 2)
        report = site.drain()
        writer.kill()
    assert [(m.kind, m.events) for m in report.mutations] == [("modified", ("modify",))] * 2


def test_there_and_back_again(site: Site) -> None:
    """A foreign state that was put back stays a mutation, and its bytes stay evidence."""
    site.arm()
    heard: list[bytes] = []
    site.guard.on_mutation("run", lambda mutation: heard.append(mutation.path))
    site.sh("sed -i s/0.5/0.3/ train.py")
    eventually(lambda: heard == [b"train.py"])
    site.sh("sed -i s/0.3/0.5/ train.py")
    mutation = site.only()
    assert (mutation.kind, mutation.restored, mutation.count) == ("modified", True, 1)
    assert mutation.evidence is not None
    assert Path(mutation.evidence.file or "").read_bytes() == FOREIGN


def test_the_same_state_again_counts(site: Site) -> None:
    """The same foreign bytes nine times are one record that says nine."""
    site.arm()
    for _ in range(9):
        site.sh("sed -i s/0.5/0.3/ train.py")
        site.drain()
        site.git("checkout", "-q", "train.py")
        site.drain()
    (mutation,) = (m for m in site.drain().mutations if m.kind == "modified")
    assert mutation.count == 9


def test_every_version_is_kept(site: Site) -> None:
    """Several foreign versions of one file are several records with several pieces of evidence."""
    site.arm()
    for rate in ("0.1", "0.2", "0.3"):
        site.sh(f"sed -i 's/= .*/= {rate}/' train.py")
        site.drain()
    mutations = site.drain().mutations
    assert [m.number for m in mutations] == [1, 2, 3]
    assert len({m.evidence.sha256 for m in mutations if m.evidence}) == 3


def test_formatter_over_many_files(site: Site) -> None:
    """One program that rewrites 300 files is 300 mutations, each with its evidence."""
    for number in range(300):
        site.put(b"lib/part%d/m.py" % (number % 20) + b"%d.py" % number, b"x=%d\n" % number)
    site.commit()
    site.arm()
    site.sh("find lib -name '*.py' -exec sed -i 's/=/ = /' {} +")
    report = site.drain()
    assert len(report.mutations) == 300
    assert {m.kind for m in report.mutations} == {"modified"}
    assert all(m.evidence and m.evidence.kept for m in report.mutations)
    assert report.coverage.complete


def test_new_directories_cost_nothing_and_hide_nothing(site: Site) -> None:
    """Scratch directories raise nothing; a guarded directory that comes back is watched again."""
    site.arm()
    site.sh("mkdir -p out/a/b; echo x > out/a/b/c; echo y > run.log; cp -a pkg ../copy")
    site.python("import shutil; shutil.rmtree('pkg'); shutil.copytree('../copy', 'pkg')")
    assert site.drain().mutations == ()
    site.sh("echo 'WIDTH = 1' > pkg/deep/model.py")
    mutation = site.only()
    assert (mutation.path, "close-write" in mutation.events) == (b"pkg/deep/model.py", True)


def test_a_storm_of_readers_is_silent(site: Site) -> None:
    """Reading every file, as editors do, makes no event at all."""
    site.arm()
    before = site.guard.history()
    site.sh(
        "for i in 1 2 3; do cat train.py prepare.py pkg/deep/*.py >/dev/null; done; ls -R >/dev/null"
    )
    assert site.drain().rewrites == ()
    assert site.guard.history() == before


def test_root_renamed_away(site: Site) -> None:
    """A workspace that moves is a mutation of its root, and nothing was watched from then on."""
    site.arm()
    site.root.rename(site.root.with_name("moved"))
    report = site.drain()
    assert [(m.area, m.kind) for m in report.mutations] == [("root", "moved")]
    assert Reason.NOT_WATCHED in report.coverage.reasons
    site.root.with_name("moved").rename(site.root)


def test_parent_of_root_renamed(site: Site, tmp_path: Path) -> None:
    """A directory above the workspace that moves is noticed as well, without a drain."""
    upper = tmp_path / "upper"
    upper.mkdir()
    inner = Site(upper / "work", site.places, site.manifest, site.evidence)
    site.root.rename(inner.root)
    inner.arm()
    found: list[str] = []
    inner.guard.on_mutation("run", lambda m: found.append(m.area))
    upper.rename(tmp_path / "lower")
    eventually(lambda: found == ["root"])
    assert Reason.NOT_WATCHED in inner.drain().coverage.reasons
    (tmp_path / "lower").rename(upper)
    end(inner.root, inner.places)


def test_root_replaced_by_a_copy(site: Site) -> None:
    """The same files under the same path are not the same workspace."""
    site.arm()
    site.sh("cp -a . ../copy; mv ../work ../old; mv ../copy ../work")
    report = site.drain()
    assert ("root", "moved") in {(m.area, m.kind) for m in report.mutations}
    assert not report.coverage.complete
    site.guard.disarm("run")
    assert site.arm("next").complete, "the next run watches what stands there now"


def test_mount_over_a_directory(site: Site) -> None:
    """A file system mounted over a guarded directory is found by the drain."""
    site.arm()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "none", str(site.root / "pkg")], check=False, capture_output=True
    )
    assert mounted.returncode == 0, "this test needs CAP_SYS_ADMIN in its mount namespace"
    try:
        report = site.drain()
    finally:
        subprocess.run(["umount", str(site.root / "pkg")], check=True)
    kinds = {(m.area, m.kind) for m in report.mutations}
    assert ("mount", "mounted") in kinds
    assert ("tracked", "deleted") in kinds
    assert Reason.NOT_WATCHED in report.coverage.reasons


def test_data_roots_are_guarded(site: Site, tmp_path: Path) -> None:
    """Files and directories outside the workspace are guarded when a run names them."""
    data = tmp_path / "data"
    (data / "shards").mkdir(parents=True)
    (data / "shards" / "0.bin").write_bytes(b"0" * 1000)
    (data / "shards" / "1.bin").write_bytes(b"1" * 1000)
    single = tmp_path / "vocab.txt"
    single.write_text("a b c\n")
    assert site.arm(extra=(data, single)).complete
    site.sh(
        f"printf X | dd of={data}/shards/0.bin conv=notrunc status=none; rm {data}/shards/1.bin;"
        f"mkdir {data}/new; echo n > {data}/new/2.bin; echo d >> {single}"
    )
    report = site.drain()
    root = os.fsencode(data)
    assert {(m.path, m.area, m.kind) for m in report.mutations} == {
        (root + b"/shards/0.bin", "data", "modified"),
        (root + b"/shards/1.bin", "data", "deleted"),
        (root + b"/new/2.bin", "data", "created"),
        (os.fsencode(single), "data", "modified"),
    }
    assert report.coverage.complete


def test_git_state_is_told_apart(site: Site) -> None:
    """A moved HEAD, a hook, a replace ref and configuration are git's state, not mutations."""
    site.arm()
    before = site.git("rev-parse", "HEAD").decode().strip()
    site.sh(
        "git -c user.name=a -c user.email=b commit -q --allow-empty -m next;"
        "printf '#!/bin/sh\\n' > .git/hooks/pre-commit; git config core.autocrlf input;"
        "rm -r .git/info; mkdir .git/info; echo '*.tmp' > .git/info/exclude; git replace HEAD HEAD~1; git branch side"
    )
    report = site.drain()
    assert report.mutations == ()
    assert report.git is not None
    assert report.git.head_moved
    assert (report.git.head, report.git.branch_now) == (before, "refs/heads/main")
    assert report.git.head_now == site.git("rev-parse", "refs/heads/main").decode().strip()
    areas = {change.area for change in report.git.changes}
    assert areas >= {"head", "hooks", "configuration", "info", "replace"}


def test_a_replaced_git_directory_is_followed(site: Site) -> None:
    """After the git directory was swapped for a copy, the copy's hooks are watched."""
    site.arm()
    site.sh("cp -a .git ../copy; mv .git ../old; mv ../copy .git")
    assert site.drain().coverage.complete
    site.sh("echo '#!/bin/sh' > .git/hooks/post-commit")
    report = site.drain()
    assert report.git is not None
    assert "hooks/post-commit" in {change.name for change in report.git.changes}


def test_work_tree_with_a_git_file(site: Site, tmp_path: Path) -> None:
    """In a linked work tree HEAD is its own, hooks and configuration are the common ones."""
    linked = tmp_path / "linked"
    site.git("worktree", "add", "-q", "-b", "side", str(linked))
    other = Site(linked, site.places, site.manifest, tmp_path / "evidence2")
    try:
        assert other.arm().complete
        site.git("config", "core.autocrlf", "input")
        other.git("commit", "-q", "--allow-empty", "-m", "x")
        report = other.drain()
    finally:
        end(linked, site.places)
    assert report.git is not None
    assert (report.git.branch, report.git.head_moved) == ("refs/heads/side", True)
    assert "configuration" in {change.area for change in report.git.changes}


def test_what_happened_before_the_run_is_remembered(site: Site) -> None:
    """Between runs the guard remembers which tracked files were touched, in order."""
    assert site.guard.history() == ()
    since = time.monotonic()
    site.sh("sed -i s/0.5/0.3/ train.py; echo x > untracked; git checkout -q train.py")
    happened = site.guard.history(since)
    assert {h.path for h in happened if h.area == "tracked"} == {b"train.py"}
    assert any(h.area == "git-state" for h in happened)
    assert site.guard.history(time.monotonic()) == ()


def test_a_file_added_to_the_index_is_remembered(site: Site) -> None:
    """A directory that becomes tracked between two runs is watched from then on."""
    site.guard.status()
    site.sh("mkdir -p fresh/er; echo 1 > fresh/er/a.py; git add fresh")
    eventually(lambda: any(h.path.endswith(b"index") for h in site.guard.history()))
    since = time.monotonic()

    def remembered() -> bool:
        # The index is read again a moment after it was heard of.
        site.sh("echo 2 > fresh/er/a.py")
        found = {(h.path, h.area) for h in site.guard.history(since)}
        return (b"fresh/er/a.py", "tracked") in found

    eventually(remembered)


def test_mutations_are_pushed_as_they_are_found(site: Site) -> None:
    """A follower hears of a mutation without asking, of its end, and of the end of the run."""
    site.arm()
    heard: list[tuple[str, bool]] = []
    follower = site.guard.on_mutation("run", lambda m: heard.append((m.kind, m.restored)))
    site.sh("sed -i s/0.5/0.3/ train.py")
    eventually(lambda: heard == [("modified", False)])
    site.git("checkout", "-q", "train.py")
    eventually(lambda: heard == [("modified", False), ("modified", True)])
    site.guard.disarm("run")
    follower.join(10)
    assert not follower.is_alive()


def test_two_runs_at_once(site: Site) -> None:
    """Two armed runs each have their own record; a vanished client's run is disarmed."""
    site.arm()
    other = ensure(site.root, site.places)
    other.arm("other", site.manifest, site.evidence.with_name("evidence2"))
    site.sh("sed -i s/0.5/0.3/ train.py")
    assert len(site.drain().mutations) == len(other.drain("other").mutations) == 1
    assert {armed.run_id for armed in site.guard.status().armed} == {"run", "other"}
    other.close()
    eventually(lambda: [armed.run_id for armed in site.guard.status().armed] == ["run"])


def test_a_killed_client_disarms_its_run(site: Site) -> None:
    """A controller that is killed leaves no armed run behind."""
    script = (
        "import sys, time; from pathlib import Path; from sealrun.state import Places;"
        "from sealrun.guard import find; p = [Path(a) for a in sys.argv[1:]];"
        "c = find(p[0], Places(*p[1:5])); c.arm('doomed', p[5], p[6]); print(flush=True);"
        "time.sleep(60)"
    )
    site.guard.status()
    p = site.places
    where = (site.root, p.state, p.data, p.cache, p.runtime, site.manifest, site.evidence)
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, where)], stdout=subprocess.PIPE
    ) as controller:
        assert controller.stdout is not None
        controller.stdout.readline()
        assert [armed.run_id for armed in site.guard.status().armed] == ["doomed"]
        controller.kill()
    eventually(lambda: site.guard.status().armed == ())


def test_an_overflow_is_admitted_and_made_good(site: Site) -> None:
    """More events than the kernel's queue holds: coverage says so, a rescan finds the change."""
    site.arm()
    pid = site.guard.pid
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        site.python(
            "import os\n"
            f"for n in range({limit} // 2 + 2000):\n"
            "    os.close(os.open('a%d' % (n % 2), os.O_CREAT | os.O_WRONLY))\n"
            "    os.unlink('a%d' % (n % 2))\n"
        )
        site.sh("sed -i s/0.5/0.3/ train.py")
    finally:
        os.kill(pid, signal.SIGCONT)
    report = site.drain()
    assert report.coverage.reasons == (Reason.EVENTS_LOST,)
    (mutation,) = report.mutations
    assert (mutation.path, mutation.final) == (b"train.py", True)
    site.guard.disarm("run")
    assert site.arm("later").complete, "a loss belongs to the interval in which it happened"


def test_too_few_watches_are_never_complete(site: Site) -> None:
    """With a limit of watches that the tree exceeds, coverage is incomplete and has the numbers."""
    for number in range(20):
        site.put(b"many/d%d/x.py" % number, b"1\n")
    site.commit()
    script = (
        "import sys, json; from pathlib import Path; from sealrun.state import Places;"
        "from sealrun.guard import ensure; p = [Path(a) for a in sys.argv[1:]];"
        "c = ensure(p[0], Places(*p[1:5])); a = c.arm('run', p[5], p[6]);"
        "(p[0] / 'many/d19/x.py').write_text('2\\n'); r = c.disarm('run'); c.stop('test');"
        "print(json.dumps([a.reasons, a.gaps[0].numbers, r.coverage.reasons,"
        "[[m.path.decode(), m.final] for m in r.mutations]]))"
    )
    p = site.places
    where = (site.root, p.state, p.data, p.cache, p.runtime, site.manifest, site.evidence)
    done = subprocess.run(
        [
            *("unshare", "-Ur", "sh", "-ec"),
            'echo 5 > /proc/sys/user/max_inotify_watches; exec "$@"',
            *("sh", sys.executable, "-c", script, *map(str, where)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    armed, numbers, reasons, mutations = json.loads(done.stdout)
    assert armed == reasons == [Reason.WATCHES_MISSING]
    assert 0 < numbers["missing"] < numbers["directories"]
    assert mutations == [["many/d19/x.py", True]], "without a watch the last comparison finds it"


def test_a_killed_guard_is_on_record(site: Site) -> None:
    """A guard that is killed makes the report say so, with what it had found; the next one starts."""
    site.arm()
    site.sh("sed -i s/0.5/0.3/ train.py")
    site.drain()
    lost: list[GuardError] = []
    follower = site.guard.on_mutation("run", lambda _: None, lost.append)
    first = site.guard
    os.kill(first.pid, signal.SIGKILL)
    report = site.drain()
    assert report.coverage.reasons == (Reason.GUARD_DIED,)
    assert [m.path for m in report.mutations] == [b"train.py"]
    follower.join(10)
    assert len(lost) == 1
    assert site.guard.disarm("run").coverage.reasons == (Reason.GUARD_DIED,)
    second = ensure(site.root, site.places)
    assert (second.pid != first.pid, second.instance != first.instance) == (True, True)
    second.close()


def test_a_guard_that_came_back_is_another_guard(site: Site) -> None:
    """A new guard knows nothing of an old one's run and says so."""
    site.arm()
    os.kill(site.guard.pid, signal.SIGKILL)
    with ensure(site.root, site.places) as second, pytest.raises(GuardError, match="not armed"):
        second.drain("run")


def test_two_starts_at_once_make_one_guard(site: Site) -> None:
    """Four commands that start at once share one guard."""
    clients: list[GuardClient] = []
    threads = [
        threading.Thread(target=lambda: clients.append(ensure(site.root, site.places)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 4
    assert len({client.instance for client in clients}) == 1


def test_what_a_dead_guard_left_is_cleaned(site: Site) -> None:
    """A socket that nobody listens on, and a lock that nobody holds, do not hinder a start."""
    directory = site.places.guard(site.root)
    with socket.socket(socket.AF_UNIX) as dead:
        here = Path.cwd()
        os.chdir(directory)
        try:
            dead.bind("socket")
        finally:
            os.chdir(here)
    (directory / LOCK).write_text("")
    assert find(site.root, site.places) is None
    assert site.guard.status().coverage.complete


def test_another_version_is_replaced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard of another version is replaced, but never under a run that it guards."""
    first = site.guard
    site.arm()
    monkeypatch.setattr(sealrun, "__version__", "99.0")
    with pytest.raises(GuardError, match="guarding run run"):
        ensure(site.root, site.places)
    monkeypatch.undo()
    site.guard.disarm("run")
    monkeypatch.setattr("sealrun.guard.client.PROTOCOL", PROTOCOL + 1)
    second = ensure(site.root, site.places)
    assert second.instance != first.instance
    with pytest.raises(GuardLost):
        first.status()
    second.close()


def test_an_idle_guard_ends(site: Site) -> None:
    """Without runs and calls the guard ends by itself and leaves no socket."""
    client = ensure(site.root, site.places, idle_after=2)
    directory = site.places.guard(site.root)
    eventually(lambda: not (directory / "socket").exists())
    with pytest.raises(GuardLost):
        client.status()


def test_the_guard_runs_no_code_of_the_workspace(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules in the workspace, PYTHONPATH, PATH and preloads of the caller do not reach the guard."""
    trap = "import pathlib; pathlib.Path({!r}).write_text('ran')\n".format(str(site.root / "ran"))
    for name in ("sitecustomize.py", "usercustomize.py", "watchdog.py", "logging.py", "sealrun.py"):
        (site.root / name).write_text(trap)
    (site.root / "git").write_text("#!/bin/sh\ntouch ran\n")
    (site.root / "git").chmod(0o755)
    monkeypatch.chdir(site.root)
    monkeypatch.setenv("PYTHONPATH", str(site.root))
    monkeypatch.setenv("PYTHONSTARTUP", str(site.root / "sitecustomize.py"))
    monkeypatch.setenv("PATH", f"{site.root}:{os.environ['PATH']}")
    status = site.guard.status()
    assert not (site.root / "ran").exists()
    assert Path(f"/proc/{status.pid}/cwd").readlink() == Path("/")
    assert os.getsid(status.pid) == status.pid
    variables = environment(site.root)
    assert not {name for name in variables if name.startswith(("PYTHON", "LD_", "GIT_"))}
    assert str(site.root) not in variables["PATH"].split(":")


def test_the_socket_is_private(site: Site) -> None:
    """Only the owner can reach the socket; another user who does is refused by the kernel's word."""
    site.guard.status()
    directory = site.places.guard(site.root)
    assert (directory / "socket").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_malformed_manifest_is_refused(site: Site) -> None:
    """A manifest that was cut short, leaves the workspace or repeats a path guards nothing."""
    whole = site.manifest.read_bytes()
    record = b"100644 1 " + b"0" * 40 + b"\t%s\0"
    for bad in (
        whole[:-1],
        b"",
        whole + b"junk\0",
        whole[: whole.index(b"\0") + 1] + record % b"../x",
        whole[: whole.index(b"\0") + 1] + record % b"a" + record % b"a",
    ):
        site.manifest.write_bytes(bad)
        with pytest.raises(GuardError):
            site.arm()
    site.manifest.write_bytes(whole)
    assert site.arm().complete


def test_nonsense_on_the_socket_hurts_nobody(site: Site) -> None:
    """A client that sends nonsense is cut off or answered with an error; the guard lives on."""
    site.arm()
    address = str(site.places.guard(site.root) / "socket")
    for nonsense in (b"\xff\n", b"[]\n", b'{"call":"arm"}\n', b'{"call":7}\n', b"x" * 2_000_000):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(address)
            try:
                rude.sendall(nonsense)
                rude.shutdown(socket.SHUT_WR)
                answer = rude.recv(65536)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
        assert b'"ok"' not in answer
    assert site.drain().coverage.complete


def test_differences_from_before_the_run_are_marked(site: Site) -> None:
    """What differed before the run is the comparison's finding; after lost events it is marked."""
    site.sh("sed -i s/0.5/0.3/ train.py; touch -d '1 hour ago' train.py")
    time.sleep(0.1)
    site.arm()
    assert site.drain().mutations == ()
    site.sh("sed -i s/0.3/0.1/ train.py")
    assert not site.only().earlier


def test_other_digests(site: Site) -> None:
    """Manifests may carry plain sha256 and the blob ids of SHA-256 repositories."""
    for algorithm, prefix in (("raw-sha256", b""), ("git-sha256", b"blob %d\0")):
        listed = [
            Listed(
                path,
                0o100644,
                hashlib.sha256((prefix % len(data) if prefix else b"") + data).hexdigest(),
                len(data),
            )
            for path, data in COMMITTED.items()
        ]
        write_manifest(site.manifest, algorithm, listed)
        site.arm(algorithm)
        site.sh("touch train.py; sed -i s/64/32/ pkg/deep/model.py")
        report = site.guard.disarm(algorithm)
        assert [m.path for m in report.mutations] == [b"pkg/deep/model.py"]
        site.git("checkout", "-q", ".")


def test_the_command_line(site: Site) -> None:
    """``guard`` shows, starts and stops, as text and as JSON; it stops none that guards a run."""
    run = [sys.executable, "-c", "from sealrun.cli import main; main()", "guard"]
    home = site.root.parent / "cli"
    env = {**os.environ, "SEALRUN_HOME": str(home)}

    def sealrun_guard(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*run, *arguments], cwd=site.root, env=env, capture_output=True, text=True, check=False
        )

    nobody = sealrun_guard("status", "--json")
    assert (nobody.returncode, json.loads(nobody.stdout)["guard"]) == (0, None)
    assert "directories" in sealrun_guard("start").stdout
    status = json.loads(sealrun_guard("--json").stdout)["guard"]
    assert status["watches"] == status["directories"] == status["kernel_watches"]
    places = Places(*(home / name for name in ("state", "data", "cache", "runtime")))
    with ensure(site.root, places) as client:
        assert client.pid == status["pid"]
        client.arm("run", site.manifest, site.evidence)
        refused = sealrun_guard("stop")
        assert (refused.returncode, refused.stdout) == (125, "")
        assert "is guarding run run" in refused.stderr
        client.disarm("run")
    assert sealrun_guard("stop").returncode == 0
    assert find(site.root, places) is None
