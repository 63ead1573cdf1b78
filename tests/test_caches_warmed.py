"""Compile caches that begin with what warm's command left: a copy, checked, on record, never shared."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _base import no_tree, shared_base
from _cli import SEALRUN, Cli
from _git import Repo
from _image import base_of, environment_of, layer_of
from _sandbox import bench
from _user import USER, as_user
from _wheels import make_wheel
from sealrun.caches import CACHES, VARIABLES
from sealrun.caches import gather as gathering
from sealrun.caches.key import digest, parts
from sealrun.caches.start import Given, again, for_run
from sealrun.caches.store import Origin, SeedStore, Unusable
from sealrun.data import Dataset
from sealrun.devices.access import Access
from sealrun.errors import SandboxError
from sealrun.gc.model import Kind
from sealrun.gc.sweep import Collection
from sealrun.image.model import SealedImage
from sealrun.image.store import LayerStore
from sealrun.ledger import HostFacts
from sealrun.policy import Policy, SandboxPolicy
from sealrun.progress import Silent
from sealrun.sandbox.docker import DockerSandbox
from sealrun.sandbox.protocol import Limits
from sealrun.sandbox.protocol import Seed as Copied
from sealrun.sandbox.spec import SEED
from sealrun.state import Places, private
from sealrun.tree import CommittedTree
from sealrun.tree import Entry as Committed

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = '[sandbox]\ncaches = "warmed"\n'
YEAR = 365 * 86400.0
KEY = {"repository": "0" * 32, "cpu": "a processor"}
ORIGIN = Origin("c" * 40, ("python3", "train.py"), "by itself", "2026-01-01T00:00:00Z")
#: Compiles as builders do: only what is missing, or older than its source.
TRAIN = """\
import json, os, pathlib, stat, sys
cache = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "kernel"
source, made = cache / "kernel.c", cache / "kernel.so"
found = sorted(str(p.relative_to(cache)) for p in cache.rglob("*"))
compiled = not made.exists() or made.stat().st_mtime_ns < source.stat().st_mtime_ns
if compiled:
    cache.mkdir(parents=True, exist_ok=True)
    source.write_text("int answer;")
    made.write_text("#!/bin/sh\\necho 42\\n")
    made.chmod(0o751)
    os.utime(source, ns=(1, 10**18 + 123456789))
    os.utime(made, ns=(1, 10**18 + 987654321))
print(json.dumps({
    "found": found, "compiled": compiled, "answer": os.popen(str(made)).read().strip(),
    "owner": made.stat().st_uid == os.getuid(), "time": made.stat().st_mtime_ns,
}))
if not compiled:
    # What a run leaves is nobody else's.
    mark = os.urandom(8).hex()
    made.write_text(f"#!/bin/sh\\necho {mark}\\n")
    (cache / mark).write_text("x")
pathlib.Path("/out/found").write_text(repr(found))
print("val_bpb:", len(found))
"""


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str, *, level: int = 0) -> None:  # noqa: ARG002 - the listener's signature
        """Keep a line."""
        self.lines.append(text)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose base is loaded and verified once for all tests here."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def cli(repo: Repo, home: Path) -> Iterator[Cli]:
    """A command line in a repository whose policy wants warmed caches."""
    repo.commit({"train.py": TRAIN, "sealrun.toml": POLICY})
    cli = Cli(repo.path, home).with_base()
    yield cli
    cli.stop_guard()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Places of a user who has nothing yet."""
    root = tmp_path / "home"
    return Places(root / "state", root / "data", root / "cache", root / "runtime")


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a command may have left: a library, its source, an empty directory."""
    left = tmp_path / "left"
    (left / "triton" / "empty").mkdir(parents=True)
    (left / "triton" / "kernel.so").write_bytes(b"\x7fELF" * 100)
    (left / "triton" / "kernel.so").chmod(0o4755)
    (left / "triton" / "kernel.json").write_text("{}")
    return left


def warm(cli: Cli, *command: str) -> dict[str, Any]:
    """Warm with a command; return what became of its caches."""
    words = command or ("python3", "train.py")
    found: dict[str, Any] = json.loads(cli("warm", "--json", "--", *words).stdout)
    caches: dict[str, Any] = found["smoke"]["caches"]
    return caches


def keep_newer(cli: Cli, digest: str, left: Path) -> str:
    """Keep another seed where one is used; return its digest."""
    store = SeedStore(cli.places)
    kept = store.keep(left, store.open(digest).key, replace(ORIGIN, made=str(time.time_ns())))
    assert kept is not None
    assert kept.digest == store.newest(kept.key)
    return kept.digest


def run(cli: Cli) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Run; return what the command found, the run's record, and what was said."""
    result, done = cli.run("python3", "train.py")
    assert (result["verdict"], result["outcome"]) == ("clean", "succeeded"), done.stderr
    record = cli.json("show", result["run"])["run"]
    return json.loads(done.stdout.splitlines()[0]), record, done.stderr


# -- a run -----------------------------------------------------------------------------------------


@pytest.mark.engine
def test_a_run_begins_with_what_warm_compiled_and_changes_it_for_itself_alone(cli: Cli) -> None:
    """Each run finds what warm left, times included, and nothing of the other; it is on record."""
    kept = warm(cli)
    assert (kept["files"], kept["skipped"]) == (2, 0)
    first, record, said = run(cli)
    assert first == {
        "found": ["kernel.c", "kernel.so"],
        # Whatever order the copy has, an output stays as much newer than its source as it was.
        "compiled": False,
        "answer": "42",
        "owner": True,
        "time": 10**18 + 987654321,
    }
    assert "caches" not in said
    # The first run left a mark, in a file and in the library itself.
    second, later, _ = run(cli)
    assert second == first
    assert record["caches"] == later["caches"]
    assert record["caches"]["digest"] == kept["digest"]
    assert record["caches"]["commit"] == record["commit"]
    assert record["caches"]["command"] == ["python3", "train.py"]
    verified = "in the container: 2 cached files, by content, set equality"
    assert verified in record["coverage"]["verified"]
    assert any("sandbox.caches" in (r["detail"] or "") for r in record["verdict"]["reasons"])
    shown = cli("show", record["run"]).stdout
    assert "compiled by python3 train.py" in shown
    assert kept["digest"] in shown


@pytest.mark.engine
def test_the_seed_of_another_environment_or_repository_is_not_used(
    cli: Cli, repo: Repo, tmp_path: Path
) -> None:
    """A new lock, and the same commit in another repository, each begin empty and say so."""
    warm(cli)
    other = Repo.create(tmp_path / "other")
    other.commit({"train.py": TRAIN, "sealrun.toml": POLICY})
    elsewhere = Cli(other.path, cli.home)
    found, record, said = run(elsewhere)
    elsewhere.stop_guard()
    assert (found["found"], record["caches"]) == ([], None)
    assert "begin empty" in said
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = make_wheel(folder, "light", "1", {"light.py": b"VALUE = 7\n"})
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = f"""lock-version = "1.0"
created-by = "a test"
[[packages]]
name = "light"
version = "1"
[[packages.wheels]]
name = "{wheel.name}"
url = "https://files.pythonhosted.org/{wheel.name}"
hashes = {{ sha256 = "{sha256}" }}
"""
    repo.commit({"pylock.toml": lock})
    cli.extra |= {
        "PIP_CONFIG_FILE": os.devnull,
        "UV_FIND_LINKS": str(folder),
        "UV_OFFLINE": "1",
    }
    cli("warm")
    found, record, said = run(cli)
    assert (found["found"], record["caches"]) == ([], None)
    assert "nothing was warmed for this environment, these data and sources" in said


@pytest.mark.engine
def test_a_changed_source_is_never_run_as_it_was_compiled_before(cli: Cli, repo: Repo) -> None:
    """Files of an image have one time: builders that compare times would keep what they find."""
    script = """
        import os, pathlib
        cache = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"])
        source, made = pathlib.Path("answer.cpp"), cache / "answer.so"
        if not made.exists() or made.stat().st_mtime_ns < source.stat().st_mtime_ns:
            cache.mkdir(parents=True, exist_ok=True)
            made.write_bytes(source.read_bytes())
        index = pathlib.Path(os.environ["NUMBA_CACHE_DIR"]) / "index.nbi"
        bytecode = cache.parent / "train.cpython-311.pyc"
        print(made.read_text(), index.exists() or bytecode.exists())
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text("Found by the time of a Python file, which is that of all others.")
        bytecode.write_text("So is this.")
        print("val_bpb: 1")
    """
    train = textwrap.dedent(script)
    repo.commit({"train.py": train, "answer.cpp": "0.5"})
    assert warm(cli)["skipped"] == 2
    repo.commit({"train.py": train + "# Another idea.\n", "README.md": "Of it.\n"})
    _, done = cli.run("python3", "train.py")
    assert done.stdout.splitlines()[0] == "0.5 False"
    assert "begin empty" not in done.stderr
    repo.commit({"answer.cpp": "0.3"})
    _, done = cli.run("python3", "train.py")
    assert done.stdout.splitlines()[0] == "0.3 False"
    assert "the compile caches begin empty: nothing was warmed for" in done.stderr


@pytest.mark.engine
def test_a_changed_seed_is_refused_with_the_reason_and_warmed_anew(cli: Cli) -> None:
    """One flipped byte, size and time kept: the run begins empty and says which file it was."""
    kept = warm(cli)
    file = SeedStore(cli.places).files(kept["digest"]) / "torch-extensions/kernel/kernel.so"
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    found, record, said = run(cli)
    assert (found["found"], record["caches"]) == ([], None)
    assert (
        "the warmed ones were changed on disk: 'torch-extensions/kernel/kernel.so' was changed"
        in said
    )
    anew = warm(cli)["digest"]
    assert anew != kept["digest"]
    assert SeedStore(cli.places).open(anew).files == 2


@pytest.mark.engine
def test_what_a_hostile_command_left_is_harmless_or_not_kept(cli: Cli, repo: Repo) -> None:
    """Links, pipes and locks stay behind, odd names come along; a hole as large as a disk is refused."""
    hostile = """
        import os, sys
        top = os.environ["TRITON_CACHE_DIR"].encode()
        found = sorted(os.listdir(top)) if os.path.isdir(top) else []
        print(json_of(found))
        os.makedirs(top, exist_ok=True)
        os.chdir(top)
        if "huge" in sys.argv:
            with open("huge", "wb") as file:
                file.truncate(1 << 42)
        elif not found:
            os.symlink("/etc/passwd", "link")
            os.symlink("/", "root")
            os.mkfifo("pipe")
            open("lock", "w").close()
            for name in (b"two\\nlines", b"\\xff\\xfe", b"-rf", b"plain"):
                open(name, "wb").write(name)
            os.chmod("plain", 0o6777)
        print("val_bpb: 1")
    """
    source = textwrap.dedent(hostile).replace("json_of(found)", "repr(found)")
    repo.commit({"train.py": source})
    kept = warm(cli)
    assert (kept["files"], kept["skipped"]) == (4, 4)
    refused = warm(cli, "python3", "train.py", "huge")
    assert refused == {"digest": None, "why": f"it left more than {2 << 30} bytes"}
    _, done = cli.run("python3", "train.py")
    assert done.stdout.splitlines()[0] == repr([b"-rf", b"plain", b"two\nlines", b"\xff\xfe"])


@pytest.mark.engine
def test_of_a_command_that_fails_or_a_policy_that_wants_none_nothing_is_kept(
    cli: Cli, repo: Repo
) -> None:
    """Half a compilation is no seed; and the shipped policy keeps nothing at all."""
    done = cli("warm", "--", "sh", "-c", f"echo x > {CACHES}/x; exit 3", status=125)
    assert "no compile caches were kept: the command failed" in done.stderr
    assert not list((cli.places.data / "caches" / "partial").iterdir())
    repo.commit({"sealrun.toml": ""})
    assert warm(cli) is None


@pytest.mark.engine
def test_of_a_commit_that_a_human_has_to_approve_nothing_is_kept(cli: Cli, repo: Repo) -> None:
    """A changed judge may be looked at, but leaves nothing for the runs of the approved one."""
    policy = POLICY + '[guard]\nprotected = ["judge.py"]\n'
    repo.commit({"sealrun.toml": policy, "judge.py": "print('val_bpb: 1')\n"})
    cli.run("true")
    repo.commit({"judge.py": "print('val_bpb: 0')\n"})
    why = "a protected file is not the approved one"
    assert warm(cli) == {"digest": None, "why": why}


@pytest.mark.engine
def test_a_command_that_prints_first_and_compiles_later_is_not_cut_short(
    cli: Cli, repo: Repo
) -> None:
    """Its first line does not end it; what it compiled long after that is kept."""
    repo.commit({"train.py": "print('up', flush=True)\nimport time\ntime.sleep(2.5)\n" + TRAIN})
    assert warm(cli)["files"] == 2


@pytest.mark.engine
def test_a_repetition_begins_with_the_same_seed_or_says_that_it_could_not(
    cli: Cli, left: Path
) -> None:
    """With a newer seed beside it the recorded one counts; without it the difference is named."""
    kept = warm(cli)
    _, record, _ = run(cli)
    keep_newer(cli, kept["digest"], left)
    again_document = cli.json("reproduce", record["run"])
    (repeated,) = [one for one in cli.json("log")["runs"] if one["run"] != record["run"]]
    assert cli.json("show", repeated["run"])["run"]["caches"]["digest"] == kept["digest"]
    assert "outputs-identical" in json.dumps(again_document)
    shutil.rmtree(SeedStore(cli.places).files(kept["digest"]).parent)
    done = cli("reproduce", record["run"], status=None)
    assert "the compile caches begin empty" in done.stderr
    assert "the warmed ones are not here any more" in done.stderr
    assert "compile caches begin" in done.stdout
    newest = cli.json("show", cli.json("log")["runs"][0]["run"])["run"]
    assert any("the compile caches began empty" in one for one in newest["coverage"]["missing"])
    # The run can be rebuilt all the same.
    (rebuildable, *_) = cli.json("doctor", "--reproducible")["runs"]
    assert rebuildable["rebuildable"]


@pytest.mark.engine
def test_gc_keeps_what_a_run_began_with_and_what_is_newest(cli: Cli, left: Path) -> None:
    """Used by a run: kept for ever. Newest and unused: for a while. Neither: it goes."""
    used = warm(cli)["digest"]
    run(cli)
    between, newest = keep_newer(cli, used, left), keep_newer(cli, used, left)
    seeds = cli.places.data / "caches" / "seeds"
    mine = {used, between, newest}
    assert mine <= {path.name for path in seeds.iterdir()}

    def collect(unused: float) -> set[str]:
        now = time.time() + YEAR
        done = Collection(cli.places, Silent(), unused=unused, recent=0, connect=None, now=now)
        assert Kind.CACHES in {one.kind for one in done.collect().found}
        return mine & {path.name for path in seeds.iterdir()}

    assert collect(2 * YEAR) == {used, newest}
    assert collect(0) == {used}


@pytest.mark.engine
def test_an_ordinary_user_has_them_too_and_knows_how_they_were_verified() -> None:
    """Where the container's files cannot be seen, the copy's source is what was compared, untouched."""
    with tempfile.TemporaryDirectory(prefix="sealrun-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        (root / "home").mkdir()
        (root / "work").mkdir()
        (root / "work" / "train.py").write_text(TRAIN)
        (root / "work" / "sealrun.toml").write_text(POLICY)
        shared_base(Cli(root / "work", root / "state").places)
        # The base's layers are links to those of every test here: they stay root's.
        theirs = ["find", str(root), "(", "-type", "d", "-o", "-links", "1", ")"]
        subprocess.run([*theirs, "-exec", "chown", f"{USER}:{USER}", "{}", "+"], check=True)
        script = f"""git init -q . && git add . && git commit -qm baseline
            trap '{SEALRUN} guard stop >&2' EXIT
            {SEALRUN} warm -- python3 train.py
            {SEALRUN} run --result-file ../result.json -- python3 train.py
            {SEALRUN} show --json $(python3 -c "import json
print(json.load(open('../result.json'))['run'])")"""
        group = Path("/var/run/docker.sock").stat().st_gid
        said = as_user(root, script, state=root / "state", groups=(group,))
    printed, _, shown = said.partition("\n")
    found, record = json.loads(printed), json.loads(shown[shown.index("{") :])["run"]
    assert (found["compiled"], found["owner"], len(found["found"])) == (False, True, 2)
    (verified,) = [line for line in record["coverage"]["verified"] if "caches" in line]
    assert "2 files, by content before they were copied, and untouched until" in verified


@pytest.mark.engine
@pytest.mark.soak(sample=True)
def test_two_at_once_leave_one_whole_newest(cli: Cli) -> None:
    """Of three real processes each keeps a seed of its own; the run gets one of them, whole."""
    running = [cli.start("warm", "--json", "--", "python3", "train.py") for _ in range(3)]
    ends = [one.communicate() for one in running]
    assert [one.returncode for one in running] == [0, 0, 0], ends
    digests = {json.loads(out)["smoke"]["caches"]["digest"] for out, _ in ends}
    assert run(cli)[1]["caches"]["digest"] in digests
    assert not list((cli.places.data / "caches" / "partial").iterdir())


# -- the container ---------------------------------------------------------------------------------


@pytest.mark.engine
def test_the_copy_in_the_container_is_what_counts(
    tmp_path: Path, places: Places, left: Path
) -> None:
    """The init's copy equals the seed; another entry is found, and so is a store touched meanwhile."""
    policy = Policy(sandbox=SandboxPolicy(caches="warmed"))
    store = SeedStore(places)
    seed = store.keep(left, KEY, ORIGIN)
    given = for_run(policy, KEY, places, Heard())
    assert seed is not None
    assert given is not None
    at = bench(private(tmp_path / "bench"))
    sandbox = DockerSandbox(at.api, owner="test-caches")
    script = f"find {CACHES}; echo more >> {CACHES}/triton/kernel.json; echo x > {SEED}/x"
    container = sandbox.create(at.request("sh", "-c", script, seed=given.copied))
    try:
        assert container.effective().problems == ()
        assert "by content, set equality" in given.check(container)
        other = replace(seed, entries=(*seed.entries[:-1], replace(seed.entries[-1], size=1)))
        with pytest.raises(SandboxError, match=r"'triton/kernel\.so' is not as it was warmed"):
            replace(given, seed=other).check(container)
        root, container.root = container.root, None
        assert "untouched until the copy was made" in given.check(container)
        file = seed.directory / "triton" / "kernel.json"
        os.utime(file, ns=(1, file.stat().st_mtime_ns))
        for container.root in (root, None):
            with pytest.raises(SandboxError, match="changed on disk while they were copied"):
                given.check(container)
        container.open_gate()
        sink = os.open(os.devnull, os.O_WRONLY)
        container.pump(sink, sink, tmp_path / "log", 1 << 20)
        os.close(sink)
        assert container.finish().exit_status != 0
        assert b"Read-only file system" in (tmp_path / "log").read_bytes()
    finally:
        container.remove()
    # The container wrote to its copy alone.
    assert store.open(seed.digest) == seed


@pytest.mark.engine
def test_what_the_scratch_cannot_hold_ends_before_the_gate(tmp_path: Path, left: Path) -> None:
    """A copy that does not fit is trouble of ours, said in words; nothing of the experiment runs."""
    (left / "large").write_bytes(bytes(3 << 20))
    at = bench(private(tmp_path / "bench"))
    request = at.request(
        "true", limits=Limits(tmp=2 << 20, pids=16), seed=Copied(left, CACHES, 3 << 20)
    )
    with pytest.raises(SandboxError, match="cannot write a cached file: No space left on device"):
        DockerSandbox(at.api, owner="test-caches").create(request)
    assert at.api.containers(all=True, filters={"name": request.name}) == []


# -- the store -------------------------------------------------------------------------------------


def test_what_is_kept_is_normal_and_says_where_it_came_from(places: Places, left: Path) -> None:
    """Modes become two, set-user-id goes, times stay; commit and command are in the manifest."""
    store = SeedStore(places)
    kept = store.keep(left, KEY, ORIGIN)
    assert kept is not None
    assert store.open(kept.digest) == kept
    assert store.newest(KEY) == kept.digest
    assert (kept.origin, kept.key, kept.files, kept.largest) == (ORIGIN, KEY, 2, 400)
    paths = ["triton", "triton/empty", "triton/kernel.json", "triton/kernel.so"]
    assert [entry.path for entry in kept.entries] == paths
    modes = {p.name: p.stat().st_mode & 0o7777 for p in kept.directory.rglob("*")}
    assert modes == {"triton": 0o755, "empty": 0o755, "kernel.json": 0o444, "kernel.so": 0o555}
    for name in ("kernel.so", "kernel.json"):
        mine, theirs = kept.directory / "triton" / name, left / "triton" / name
        assert mine.stat().st_mtime_ns == theirs.stat().st_mtime_ns
    assert kept.directory.parent.parent.parent.stat().st_mode & 0o077 == 0


def test_nothing_is_kept_of_nothing(places: Places, tmp_path: Path) -> None:
    """Directories alone are no seed, and leave nothing in the store."""
    (tmp_path / "left" / "triton").mkdir(parents=True)
    store = SeedStore(places)
    assert store.keep(tmp_path / "left", KEY, ORIGIN) is None
    assert store.newest(KEY) is None
    assert not list((places.data / "caches" / "partial").iterdir())


@pytest.mark.parametrize(
    "change", ["byte", "added", "gone", "link", "mode", "time", "manifest", "dir"]
)
def test_whatever_is_changed_in_the_store_is_found(places: Places, left: Path, change: str) -> None:
    """Content, names, kinds, modes and times: any difference makes a seed unusable, with the reason."""
    kept = SeedStore(places).keep(left, KEY, ORIGIN)
    assert kept is not None
    file = kept.directory / "triton" / "kernel.so"
    status = file.stat()
    if change == "byte":
        file.chmod(0o755)
        file.write_bytes(b"\x7fELG" * 100)
        file.chmod(0o555)
        os.utime(file, ns=(1, status.st_mtime_ns))
    elif change == "added":
        (kept.directory / "new").write_text("x")
    elif change == "gone":
        file.unlink()
    elif change == "link":
        file.unlink()
        file.symlink_to("/bin/sh")
    elif change == "mode":
        file.chmod(0o755)
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "manifest":
        manifest = kept.directory.parent / "manifest.json"
        manifest.write_bytes(manifest.read_bytes().replace(b"train.py", b"other.py"))
    else:
        shutil.rmtree(kept.directory)
    with pytest.raises(Unusable, match=r"changed on disk|cannot be read"):
        SeedStore(places).open(kept.digest)
    heard = Heard()
    policy = Policy(sandbox=SandboxPolicy(caches="warmed"))
    assert for_run(policy, KEY, places, heard) is None
    (line,) = heard.lines
    assert line.startswith("the compile caches begin empty: the ")
    assert line.endswith("; sealrun warm -- COMMAND fills them")


def test_a_manifest_or_record_of_somebody_elses_making_is_none(places: Places) -> None:
    """Bytes that bear their own digest but say nothing, and records that name no digest, are told."""
    store = SeedStore(places)
    for text in (b"[]", b"{}", b'{"version": 1}', b'{"version": 99}', b"\xff", b"[" * 100_000):
        name = hashlib.sha256(text).hexdigest()
        (private(places.data / "caches" / "seeds" / name) / "manifest.json").write_bytes(text)
        with pytest.raises(Unusable):
            store.open(name)
    origin = {"commit": "c", "command": ["x"], "ended": "", "made": ""}
    whole = {"version": 1, "key": {}, "origin": origin, "entries": [], "skipped": 0}
    for wrong in (
        {"key": 1},
        {"origin": origin | {"commit": []}},
        {"origin": origin | {"command": [1]}},
        {"entries": [[1]]},
        {"entries": [["x", "0" * 64, "many"]]},
        {"entries": [["x", "0" * 64, None, True, 0]]},
        {"skipped": "none"},
    ):
        text = json.dumps(whole | wrong).encode()
        name = hashlib.sha256(text).hexdigest()
        place = private(places.data / "caches" / "seeds" / name)
        private(place / "files")
        (place / "manifest.json").write_bytes(text)
        with pytest.raises(Unusable, match="none of ours"):
            store.open(name)
    record = private(places.data / "caches" / "records") / f"{digest(KEY)}.json"
    for text in (
        b"",
        b"[]",
        b'{"version": 1, "digest": "../../x"}',
        b'{"version": 9, "digest": 3}',
        b"[" * 100_000,
    ):
        record.write_bytes(text)
        assert store.newest(KEY) is None
    record.unlink()
    os.mkfifo(record)
    assert store.newest(KEY) is None
    with pytest.raises(Unusable, match="no digest"):
        store.open("../x")


def test_bounds_are_of_the_whole(
    places: Places, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many bytes, files, levels or too long a path: nothing is kept, and what was stays newest."""
    store = SeedStore(places)
    before = store.keep(left, KEY, ORIGIN)
    assert before is not None
    for name, value, says in (
        ("MOST_BYTES", 401, "more than 401 bytes"),
        ("MOST_FILES", 3, "more than 3 files"),
        ("MOST_LEVELS", 1, "more than 1 levels"),
        ("MOST_PATH", 10, "a path of more than 10 bytes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(gathering, name, value)
            with pytest.raises(gathering.Unkept, match=says):
                store.keep(left, KEY, ORIGIN)
    assert store.newest(KEY) == before.digest
    assert not list((places.data / "caches" / "partial").iterdir())


def test_a_death_at_any_moment_leaves_nothing_half(places: Places, left: Path) -> None:
    """SIGKILL while seeds are being kept: what the record names is whole, and so is every other."""
    script = f"""
from pathlib import Path
from sealrun.caches.store import Origin, SeedStore
from sealrun.state import Places
places = Places(*map(Path, {[str(p) for p in (places.state, places.data, places.cache, places.runtime)]!r}))
store, number = SeedStore(places), 0
while True:
    number += 1
    store.keep(Path({str(left)!r}), {KEY!r}, Origin("c" * 40, ("x",), str(number), "now"))
    print(number, flush=True)
"""
    moments = random.Random(3)  # noqa: S311 - moments, not secrets
    store = SeedStore(places)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(moments.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        newest = store.newest(KEY)
        assert newest is not None
        assert store.open(newest).files == 2
    seeds = list((places.data / "caches" / "seeds").iterdir())
    assert len(seeds) >= 4
    assert all(store.open(path.name).files == 2 for path in seeds)


def test_several_keep_at_once(places: Places, left: Path) -> None:
    """Eight threads keep seeds of one key; each is whole, and the newest is one of them."""
    kept: list[str] = []

    def keep(number: int) -> None:
        found = SeedStore(places).keep(left, KEY, replace(ORIGIN, made=str(number)))
        assert found is not None
        kept.append(found.digest)

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(kept)) == 8
    assert SeedStore(places).newest(KEY) in kept
    assert all(SeedStore(places).open(one).files == 2 for one in kept)


def test_a_seed_that_does_not_fit_is_not_used(places: Places, left: Path) -> None:
    """Half of scratch and memory, in pages, is the run's own; no file is larger than is allowed."""
    assert SeedStore(places).keep(left, KEY, ORIGIN) is not None
    page = os.sysconf("SC_PAGE_SIZE")
    for box, says in (
        (
            SandboxPolicy(caches="warmed", tmp=4 * page - 1),
            f"take {2 * page} bytes, more than half",
        ),
        (SandboxPolicy(caches="warmed", file_size=399), "has 400 bytes"),
    ):
        heard = Heard()
        assert for_run(Policy(sandbox=box), KEY, places, heard) is None
        assert says in heard.lines[0]
    box = SandboxPolicy(caches="warmed", tmp=4 * page, file_size=400)
    assert for_run(Policy(sandbox=box), KEY, places, Heard()) is not None
    assert for_run(Policy(), KEY, places, heard := Heard()) is None
    assert heard.lines == []
    (left / "triton" / "large").write_bytes(bytes(8 << 20))
    assert SeedStore(places).keep(left, KEY, ORIGIN) is not None
    box = SandboxPolicy(caches="warmed", memory=16 << 20)
    assert for_run(Policy(sandbox=box), KEY, places, heard) is None
    assert "more than half of [sandbox] memory" in heard.lines[0]


def test_a_repetition_elsewhere_gets_no_code_for_another_processor(
    places: Places, left: Path
) -> None:
    """What a run began with is not used where the key differs; the part that differs is named."""
    policy = Policy(sandbox=SandboxPolicy(caches="warmed"))
    assert SeedStore(places).keep(left, KEY, ORIGIN) is not None
    given = for_run(policy, KEY, places, Heard())
    assert given is not None
    same = again(given.facts, policy, KEY, places, Heard())
    assert isinstance(same, Given)
    assert same.seed == given.seed
    heard = Heard()
    assert again(given.facts, policy, {**KEY, "cpu": "another"}, places, heard) is None
    assert "made for another cpu" in heard.lines[0]
    assert again(None, policy, KEY, places, heard) is None
    assert len(heard.lines) == 1


def test_a_key_is_what_decides_whether_code_may_run(tmp_path: Path) -> None:
    """Base, environment, machine, GPUs, variables, repository, data and what is not Python do."""
    layers = LayerStore(private(tmp_path / "layers"))
    base, middle, tree = (layer_of(layers, {b"x": mark}) for mark in (b"1", b"2", b"3"))
    host = HostFacts(
        architecture="x86_64", cpu_model="a", details={"instruction_sets": ("avx", "avx2")}
    )
    gpu = Access((), facts={"gpus": ["H200", "H200"], "driver": "nvidia 580"})
    data = Dataset(tmp_path, "/data/headers", (), "d" * 64, 0)

    def committed(**files: str) -> CommittedTree:
        names = sorted(name.replace("_", ".").encode() for name in files)
        ids = {name.replace("_", ".").encode(): oid for name, oid in files.items()}
        entries = tuple(Committed(name, 0o100644, ids[name], 1) for name in names)
        return replace(no_tree(), entries=entries)

    def key(**other: Any) -> str:  # noqa: ANN401 - any of the parts
        below = base_of(other.get("base", base)), environment_of(other.get("middle", middle))
        image = SealedImage("sha256:0", b"{}", *below, other.get("tree", tree))
        policy = Policy(
            sandbox=SandboxPolicy(variables=other.get("variables", {})),
        )
        return digest(
            parts(
                other.get("repository", "1"),
                other.get("commit", committed(a_py="1", b_cu="1")),
                other.get("data", [data]),
                image,
                policy,
                other.get("host", host),
                other.get("devices"),
            )
        )

    same = key()
    assert key(tree=layer_of(layers, {b"x": b"4"})) == same
    assert key(host=replace(host, hostname="another", kernel="7")) == same
    assert key(commit=committed(a_py="2", b_cu="1", c_md="1", d_py="1")) == same
    different = [
        key(base=tree),
        key(middle=tree),
        key(repository="2"),
        key(commit=committed(a_py="1", b_cu="2")),
        key(commit=committed(a_py="1", b_cu="1", c_h="1")),
        key(commit=committed(a_py="1", c_cu="1")),
        key(commit=committed(a_py="1")),
        key(data=[]),
        key(data=[replace(data, digest="e" * 64)]),
        key(variables={"CFLAGS": "-march=native"}),
        key(host=replace(host, cpu_model="b")),
        key(host=replace(host, details={"instruction_sets": ("avx",)})),
        key(host=replace(host, architecture="aarch64")),
        key(devices=gpu),
        key(devices=replace(gpu, facts={**gpu.facts, "driver": "nvidia 590"})),
    ]
    assert len({same, *different}) == 1 + len(different)
    assert key(devices=replace(gpu, facts={**gpu.facts, "gpus": ["H200"]})) == key(devices=gpu)


def test_every_cache_lies_where_seeds_are_taken_from() -> None:
    """What the variables name is what warm keeps."""
    assert all(Path(place).is_relative_to(CACHES) for place in VARIABLES.values())
