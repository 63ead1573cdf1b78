"""The guard's standing watch: what it keeps of the time between runs, with real second writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from _guard import Site, eventually, kill, site
from sealrun.errors import GuardError
from sealrun.guard import Mutation, Report, ensure, find
from sealrun.guard.armed import ArmedRun
from sealrun.guard.client import GuardStopped
from sealrun.guard.content import Looker
from sealrun.guard.coverage import Moment
from sealrun.guard.manifest import Guarded, Manifest, read_manifest
from sealrun.guard.mutations import JOURNAL, EvidenceStore
from sealrun.guard.standing import BETWEEN, FILE, Standing, StandingRun
from sealrun.reasons import Reason

__all__ = ["site"]

FOREIGN = b"SCALAR_LR = 0.3\n"


def stand(site: Site, name: str = "between") -> Report | None:
    """Begin to watch between runs."""
    return site.guard.stand(site.manifest, site.evidence.with_name(name))


def between(site: Site) -> Report:
    """Return what happened between runs."""
    report = site.guard.between()
    assert report is not None
    return report


def bytes_of(mutation: Mutation) -> bytes:
    """Return the bytes that were kept of a mutation."""
    assert mutation.evidence is not None
    assert mutation.evidence.file is not None
    return Path(mutation.evidence.file).read_bytes()


def test_a_rewriter_between_runs_is_on_record(site: Site) -> None:
    """Foreign bytes survive the loop's reset between two runs, with the process that wrote them."""
    assert site.guard.between() is None, "nobody asked for it yet"
    assert stand(site) is None
    site.sh("sleep 0.1; echo 'SCALAR_LR = 0.3' 1<> train.py; sleep 0.1; :")
    eventually(lambda: site.guard.status().standing.mutations == 1)  # type: ignore[union-attr]
    site.git("reset", "-q", "--hard")
    found = between(site).mutations
    # Git removes a file before it writes it anew, which may be seen.
    assert {(m.path, m.restored) for m in found} == {(b"train.py", True)}
    (mutation,) = (m for m in found if m.kind != "deleted")
    assert mutation.kind == "modified"
    assert bytes_of(mutation) == FOREIGN
    assert mutation.writer.process is not None
    assert Path(mutation.writer.process.exe or "").name == "bash"
    assert mutation.writer.kind == "unknown", "classes are the client's to give"
    assert between(site).coverage.complete


def test_reading_empties_nothing_and_renewing_does(site: Site) -> None:
    """A report leaves the records; ``stand`` gives the last one and begins anew, evidence kept."""
    stand(site)
    site.sh("sed -i s/0.5/0.3/ train.py")
    assert [len(between(site).mutations) for _ in range(2)] == [1, 1]
    last = stand(site, "next")
    assert last is not None
    (mutation,) = last.mutations
    assert between(site).mutations == ()
    assert bytes_of(mutation) == FOREIGN


def test_the_watch_outlives_its_client(site: Site) -> None:
    """Who asked for it may hang up; whoever comes next is told."""
    with ensure(site.root, site.places) as first:
        first.stand(site.manifest, site.evidence)
    site.sh("sed -i s/0.5/0.3/ train.py")
    assert [m.path for m in between(site).mutations] == [b"train.py"]


def test_a_run_hands_over_in_one_step(site: Site) -> None:
    """A run's end begins the watch with its manifest; what its report tells is not told twice."""
    site.guard.arm("run", site.manifest, site.evidence, between=site.evidence.with_name("b"))
    assert site.guard.between() is None
    site.sh("sed -i s/0.5/0.3/ train.py")
    assert len(site.guard.disarm("run").mutations) == 1
    assert between(site).mutations == ()
    site.sh("sed -i s/0.3/0.1/ train.py")
    (mutation,) = between(site).mutations
    assert bytes_of(mutation) == b"SCALAR_LR = 0.1\n"


def test_nothing_falls_between_a_run_and_the_watch(site: Site) -> None:
    """A state that a writer makes just as a run ends is in one of the reports, twenty times."""
    script = (
        "import sys\nfor line in sys.stdin:\n"
        "    open('train.py', 'w').write('SCALAR_LR = 0.%03d\\n' % int(line))\n"
        "    print(line, flush=True)"
    )
    seen: list[Mutation] = []
    with subprocess.Popen(
        ["python3", "-Ic", script],
        cwd=site.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for n in range(20):
            fresh = site.evidence.with_name(f"between-{n}")
            site.guard.arm(f"run-{n}", site.manifest, site.evidence, between=fresh)
            writer.stdin.write(f"{n}\n")
            seen += site.guard.disarm(f"run-{n}").mutations
            assert writer.stdout.readline()
            assert writer.stdout.readline()
            seen += between(site).mutations
        writer.stdin.close()
    kept = {bytes_of(m) for m in seen if m.evidence}
    assert {b"SCALAR_LR = 0.%03d\n" % n for n in range(20)} <= kept


def test_a_run_and_the_watch_see_the_same(site: Site) -> None:
    """While a run is armed the watch goes on; a client that dies costs neither of them anything."""
    stand(site)
    doomed = ensure(site.root, site.places)
    doomed.arm("doomed", site.manifest, site.evidence, between=site.evidence.with_name("b"))
    site.sh("sed -i s/0.5/0.3/ train.py")
    assert len(doomed.drain("doomed").mutations) == len(between(site).mutations) == 1
    doomed.close()
    eventually(lambda: site.guard.status().armed == ())
    assert len(between(site).mutations) == 1, "what nobody was told of is still there"


def test_a_dead_client_still_begins_the_first_watch(site: Site) -> None:
    """Where there was no watch, a run whose client died begins it."""
    doomed = ensure(site.root, site.places)
    doomed.arm("doomed", site.manifest, site.evidence, between=site.evidence.with_name("b"))
    doomed.close()
    eventually(lambda: site.guard.status().standing is not None)
    site.sh("sed -i s/0.5/0.3/ train.py")
    assert len(between(site).mutations) == 1


def test_the_watch_outlives_its_guard(site: Site) -> None:
    """After the guard was killed the next one has its records, and finds what nobody watched."""
    stand(site)
    site.sh("sed -i s/0.5/0.3/ train.py")
    (before,) = between(site).mutations
    kill(site.guard.pid, site.root, site.places)
    site.sh("sed -i s/64/32/ pkg/deep/model.py")
    with ensure(site.root, site.places) as second:
        report = second.between()
        assert report is not None
        kept, found = report.mutations
        assert (kept.number, kept.writer, bytes_of(kept)) == (1, before.writer, FOREIGN)
        assert kept.count == 1
        assert (found.path, found.final, found.earlier) == (b"pkg/deep/model.py", True, False)
        assert found.writer.process is None, "nobody saw who it was"
        assert report.coverage.reasons == (Reason.NOT_WATCHED,)
        site.sh("git checkout -q . && sed -i s/0.5/0.3/ train.py")
        report = second.between()
        assert report is not None
        again = next(m for m in report.mutations if m.path == b"train.py")
        assert (again.number, again.count) == (1, 2)
        second.stand(site.manifest, site.evidence.with_name("later"))
        renewed = second.between()
        assert renewed is not None
        assert (renewed.mutations, renewed.coverage.complete) == ((), True)


def test_another_workspace_at_the_same_place_inherits_nothing(site: Site) -> None:
    """A guard does not go on with the watch of a directory that was replaced."""
    stand(site)
    site.guard.stop("test")
    site.sh("cp -a . ../copy; mv ../work ../old; mv ../copy ../work")
    with ensure(site.root, site.places) as second:
        assert second.between() is None
    assert not (site.places.guard(site.root) / FILE).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"root":[1,2],"evidence":"x","since":{}}'])
def test_nonsense_in_the_guards_directory_hinders_no_guard(site: Site, text: str) -> None:
    """A file that is not understood is dropped, and the guard starts."""
    (site.places.guard(site.root) / FILE).write_text(text)
    assert site.guard.between() is None
    stand(site)
    assert between(site).coverage.complete


def test_between_is_no_name_for_a_run(site: Site) -> None:
    """A run cannot take the watch's name, nor a client disarm the watch."""
    stand(site)
    with pytest.raises(GuardError, match="armed already"):
        site.arm(BETWEEN)
    site.sh("sed -i s/0.5/0.3/ train.py")
    site.guard.disarm(BETWEEN)
    assert len(between(site).mutations) == 1


def test_mutations_between_runs_can_be_followed(site: Site) -> None:
    """A follower hears of what is found between runs, also after the watch was renewed."""
    stand(site)
    heard: list[bytes] = []
    site.guard.on_mutation(BETWEEN, lambda m: heard.append(m.path))
    site.sh("sed -i s/0.5/0.3/ train.py")
    eventually(lambda: heard == [b"train.py"])
    stand(site, "next")
    site.sh("sed -i s/64/32/ pkg/deep/model.py")
    eventually(lambda: heard == [b"train.py", b"pkg/deep/model.py"])


def test_the_index_is_still_followed(site: Site) -> None:
    """A file that becomes tracked between runs is remembered although the watch stands."""
    stand(site)
    site.sh("mkdir -p fresh/er; echo 1 > fresh/er/a.py; git add fresh")
    eventually(lambda: any(h.path.endswith(b"index") for h in site.guard.history()))

    def remembered() -> bool:
        site.sh("echo 2 >> fresh/er/a.py")
        return b"fresh/er/a.py" in {h.path for h in site.guard.history() if h.area == "tracked"}

    eventually(remembered)


# -- bounds, without a process -----------------------------------------------------------------------


def _run(tmp_path: Path, **bounds: int) -> tuple[StandingRun, EvidenceStore]:
    work, evidence = tmp_path / "w", tmp_path / "e"
    work.mkdir()
    names = [b"a.py", b"b.py"]
    for name in names:
        (work / os.fsdecode(name)).write_bytes(b"")
    manifest = Manifest("raw-sha256", tuple(Guarded(n, 0o100644, 0, "0" * 64) for n in names))
    moment = Moment(0.0, 0.0, "boot")
    store = EvidenceStore(evidence, per_file=64, per_run=bounds.pop("evidence", 1 << 20))
    standing = Standing(manifest, evidence, moment, (0, 0))
    return StandingRun(os.fsencode(work), standing, store=store, **bounds), store


def _write(run: ArmedRun, name: bytes, content: bytes) -> None:
    Path(os.fsdecode(run.workspace + b"/" + name)).write_bytes(content)
    with Looker(run.workspace) as looker:
        run.examine(looker, name, ("modify",))


def test_the_newest_states_of_a_path_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of edits leave as many records and files as the bound says, and a count."""
    monkeypatch.setattr("sealrun.guard.standing.PER_FILE", 64)
    run, store = _run(tmp_path, versions=8)
    for number in range(3000):
        _write(run, b"a.py", b"%d" % number)
    _write(run, b"b.py", b"other")
    assert [Path(m.evidence.file or "").read_bytes() for m in run.mutations() if m.evidence] == [
        *(b"%d" % number for number in range(2992, 3000)),
        b"other",
    ]
    assert run.dropped == 2992
    assert len([f for f in store.directory.rglob("*") if f.is_file()]) == 9
    assert len(run._touched[b"a.py"].states) == 8


def test_a_state_that_comes_back_is_new_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What recurs is not rolled over before what was seen once, long ago."""
    monkeypatch.setattr("sealrun.guard.standing.PER_FILE", 64)
    run, _ = _run(tmp_path, versions=3)
    for content in (b"1", b"2", b"3", b"1", b"4"):
        _write(run, b"a.py", content)
    assert [bytes_of(m) for m in run.mutations()] == [b"3", b"1", b"4"]
    assert [m.count for m in run.mutations()] == [1, 2, 1]


def test_records_and_evidence_are_bounded_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all paths the oldest go, for records and for bytes alike."""
    monkeypatch.setattr("sealrun.guard.standing.PER_FILE", 64)
    run, _ = _run(tmp_path, records=4)
    for number in range(50):
        _write(run, (b"a.py", b"b.py")[number % 2], b"%d" % number)
    assert [bytes_of(m) for m in run.mutations()] == [b"46", b"47", b"48", b"49"]
    other = tmp_path / "other"
    other.mkdir()
    run, store = _run(other, evidence=640)
    for number in range(50):
        _write(run, b"a.py", b"%064d" % number)
    assert bytes_of(run.mutations()[-1]) == b"%064d" % 49
    assert sum(f.stat().st_size for f in store.directory.rglob("*") if f.is_file()) <= 640


def test_evidence_that_was_told_of_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that was handed out may be dropped; its bytes are somebody's evidence by now."""
    monkeypatch.setattr("sealrun.guard.standing.PER_FILE", 64)
    run, _ = _run(tmp_path, versions=2)
    _write(run, b"a.py", b"first")
    (told,) = run.mutations()
    for number in range(20):
        _write(run, b"a.py", b"%d" % number)
    assert told not in run.mutations()
    assert bytes_of(told) == b"first"


def test_a_renewed_watch_takes_nothing_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that stood in the directory already are never removed, whoever keeps the same again."""
    monkeypatch.setattr("sealrun.guard.standing.PER_FILE", 64)
    run, store = _run(tmp_path, versions=2)
    _write(run, b"a.py", b"same")
    (told,) = run.mutations()
    later = EvidenceStore(store.directory, per_file=64)
    second = StandingRun(run.workspace, run.standing, versions=2, store=later)
    for content in (b"same", b"1", b"2", b"3"):
        _write(second, b"a.py", content)
    assert bytes_of(told) == b"same"


def test_a_dropped_state_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next guard takes over is what the one before still had."""
    monkeypatch.setattr("sealrun.guard.standing.PER_FILE", 64)
    run, _ = _run(tmp_path, versions=2)
    every: dict[int, Mutation] = {}
    for content in (b"1", b"2", b"3"):
        _write(run, b"a.py", content)
        every |= {mutation.number: mutation for mutation in ArmedRun.mutations(run)}
    later = StandingRun(run.workspace, run.standing, versions=2)
    later.restore(every.values())
    assert later.mutations() == run.mutations()
    _write(later, b"a.py", b"4")
    assert [m.number for m in later.mutations()] == [3, 4]


def test_the_journal_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand notes those of the records that are left remain."""
    run = StandingRun(
        os.fsencode(site.root),
        Standing(read_manifest(site.manifest), site.evidence, Moment(0, 0, ""), (0, 0)),
        versions=4,
    )
    monkeypatch.setattr("sealrun.guard.standing.JOURNAL_SIZE", 10_000)
    run._journal = 10_000

    class Nobody:
        def name(self, *_: object, **__: object) -> tuple[object, tuple[()]]:
            return Mutation.__dataclass_fields__["writer"].default, ()

    largest = 0
    for number in range(400):
        _write(run, b"train.py", b"%d" % number)
        run.settle(Nobody(), 0)  # type: ignore[arg-type]
        largest = max(largest, (site.evidence / JOURNAL).stat().st_size)
    assert largest < 25_000
    last = json.loads((site.evidence / JOURNAL).read_bytes().splitlines()[-1])
    assert last["mutation"]["number"] == 400


def test_memory_is_bounded_over_thousands_of_edits(site: Site) -> None:
    """A guard that saw three thousand edits of a file is hardly larger than one that saw a hundred."""
    stand(site)

    def edit(times: int) -> int:
        site.python(
            f"for n in range({times}): open('train.py', 'w').write('%d %d\\n' % ({times}, n))"
        )
        between(site)
        status = Path(f"/proc/{site.guard.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    first = edit(200)
    later = edit(3000)
    assert later - first < 30_000, f"{first} -> {later} KiB"
    report = between(site)
    assert len(report.mutations) <= 65


# -- a guard that stands still -----------------------------------------------------------------------


def test_a_stopped_guard_says_what_to_do(site: Site) -> None:
    """A command that finds the guard stopped says which process it is and how it goes on."""
    pid = site.guard.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(GuardStopped, match=f"process {pid}") as raised:
            ensure(site.root, site.places)
        assert raised.value.hint is not None
        assert f"kill -CONT {pid}" in raised.value.hint
        with pytest.raises(GuardStopped):
            find(site.root, site.places)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ensure(site.root, site.places).pid == pid


def test_the_command_line_shows_the_watch(site: Site) -> None:
    """``guard status`` says what is watched for between runs, and names a stopped guard."""
    env = {**os.environ, "SEALRUN_HOME": str(site.places.state.parent)}
    run = [sys.executable, "-m", "sealrun", "guard"]

    def guard() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            run, cwd=site.root, env=env, capture_output=True, text=True, check=False
        )

    stand(site)
    assert f"{len(site.entries)} files" in guard().stdout
    os.kill(site.guard.pid, signal.SIGSTOP)
    try:
        told = guard()
    finally:
        os.kill(site.guard.pid, signal.SIGCONT)
    assert told.returncode == 125
    assert "is stopped" in told.stderr
    assert "hint: kill -CONT" in told.stderr
