"""Another Python than the base's: what is asked for, obtained through a real uv, and run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from _base import shared_base
from _cli import Cli
from _image import Workshop, engine
from _interpreter import MACHINE, NAME, VERSION, Source, archive, source, tarball
from _wheels import make_wheel, only_from, sha256
from sealrun.errors import ColdStart, EnvironmentFault, SealRefused
from sealrun.image import asked, bytecode, install, interpreter, recipe
from sealrun.image.environment import demands, plan
from sealrun.image.model import MTIME, Base, Package
from sealrun.image.prepare import prepare
from sealrun.init import interpreter as told_by_init
from sealrun.init import shape
from sealrun.policy import ImagePolicy
from sealrun.progress import Silent
from sealrun.state import Places, private

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from _git import Repo
    from sealrun.tree import CommittedTree

AUTO = ImagePolicy()
#: ``torchrun`` as the module that it is.
_MODULE = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
PINNED = {".python-version": "3.9\n"}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """What uv fetches from: Debian 11's interpreter, and what a test offers beside it."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with source(tmp_path / "served") as made:
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        yield made


class Case:
    """One test's places, base and commits."""

    def __init__(self, root: Path) -> None:
        home = root / "home"
        self.places = Places(home / "state", home / "data", home / "cache", home / "runtime")
        self.base = shared_base(self.places)
        self.workshop = Workshop(private(root / "workshop"))

    def tree(self, files: Mapping[str, str]) -> CommittedTree:
        """Commit files and read them back."""
        return self.workshop.tree({path.encode(): text.encode() for path, text in files.items()})

    def wish(
        self, files: Mapping[str, str] = PINNED, base: Base | None = None
    ) -> interpreter.Wanted:
        """Return what a commit needs beside its base."""
        found = interpreter.wanted(self.tree(files), AUTO, base or self.base)
        assert found is not None
        return found

    def make(self, files: Mapping[str, str] = PINNED) -> Base:
        """Obtain what a commit needs."""
        return interpreter.make(self.wish(files), self.places, engine(), Silent())


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case in a folder of its own."""
    return Case(private(tmp_path / "case"))


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class Obtained:
    """What ``PINNED`` asks for, obtained once, through a real uv, from a source that is gone since.

    Attributes:
        case: where it stands.
        base: with the interpreter.
        found: what was there before.
        asked: what uv asked the source for.
    """

    def __init__(self, root: Path) -> None:
        self.case = Case(private(root / "case"))
        self.found = interpreter.find(self.case.wish(), self.case.places)
        with (
            source(root / "served") as served,
            pytest.MonkeyPatch.context() as patch,
            _umask(0o022),
        ):
            for name, value in served.variables.items():
                patch.setenv(name, value)
            self.base = self.case.make()
            self.asked = tuple(served.asked)

    def put_into(self, places: Places) -> None:
        """Let another home have it; stored layers are read-only, and linked."""
        shutil.copytree(self.case.places.data, places.data, copy_function=os.link)


@pytest.fixture(scope="module")
def obtained(tmp_path_factory: pytest.TempPathFactory) -> Obtained:
    """An interpreter that is there already."""
    return Obtained(private(tmp_path_factory.mktemp("interpreter") / "obtained"))


# What is asked for


@pytest.mark.parametrize(
    ("text", "version", "admitted"),
    [
        ("3.10\n", "3.10.13", True),
        ("3.10\n", "3.11.2", False),
        ("3.1\n", "3.10.13", False),
        ("3.10.13\n", "3.10.13", True),
        ("3.10.1\n", "3.10.13", False),
        ("3\n", "3.12.1", True),
        ("cpython@3.10 # pinned\n", "3.10.13", True),
        ("# first\n\npython3.10\n3.12\n", "3.12.1", False),
        (">=3.10,<3.12\n", "3.11.2", True),
        ("pypy3.10\n", "3.10.13", False),
        ("3.13t\n", "3.13.0", False),
        ("3.10-dev\n", "3.10.13", False),
    ],
)
def test_a_version_file_admits_what_it_names(text: str, version: str, admitted: bool) -> None:  # noqa: FBT001 - a column of the table
    """Its first line counts, by whole numbers; what is no version of CPython admits none."""
    demand = asked.version_file(text, ".python-version")
    assert demand is not None
    assert demand.admits(version) is admitted


@pytest.mark.parametrize("text", ["", "# nothing\n", "system\n", "cpython\n"])
def test_a_version_file_may_ask_for_nothing(text: str) -> None:
    """An empty one, pyenv's ``system`` and a bare name leave the choice to the base."""
    assert asked.version_file(text, ".python-version") is None


@pytest.mark.parametrize(
    ("requires", "near", "chosen"),
    [
        (">=3.12", "3.11.2", "3.12.9"),
        (">=3.10", None, "3.10.13"),
        ("<3.11", "3.12.9", "3.10.13"),
        ("!=3.12.9,>=3.12", "3.11.2", "3.12.10"),
        ("!=3.12.*", "3.12.9", "3.13.1"),
        ("==3.12.1", "3.11.2", "3.12.1"),
        (">=3.15", "3.11.2", None),
        (">=4", "3.11.2", None),
    ],
)
def test_an_open_range_gets_the_nearest_minor_and_its_newest_patch(
    requires: str, near: str | None, chosen: str | None
) -> None:
    """No matter what is released later; a pre-release is never taken."""
    versions = ["3.8.20", "3.10.2", "3.10.13", "3.12.1", "3.12.9", "3.13.1", "3.15.0a1", "odd"]
    if "!=3.12.9" in requires:
        versions.append("3.12.10")
    offered = {f"cpython-{version}": version for version in versions}
    found = asked.choose(offered, [asked.required(requires, "pyproject.toml")], near)
    assert (found and found[1]) == chosen


def test_every_word_of_the_commit_counts(case: Case) -> None:
    """The version file, the project and the lock; a policy without environment asks for nothing."""
    tree = case.tree(
        {
            ".python-version": "3.10\n",
            "pyproject.toml": '[project]\nname = "p"\nrequires-python = ">=3.9"\n',
            "uv.lock": 'version = 1\nrequires-python = ">=3.8"\n',
        }
    )
    assert [demand.words for demand in demands(tree, AUTO)] == [
        ".python-version asks for Python 3.10",
        "pyproject.toml requires Python >=3.9",
        "uv.lock requires Python >=3.8",
    ]
    assert demands(tree, ImagePolicy(environment="none")) == ()


def test_a_base_that_has_it_is_used_as_it_is(case: Case) -> None:
    """Nothing is obtained for what the base satisfies, and nothing for a commit without a word."""
    for files in ({".python-version": "3.11\n"}, {"train.py": "pass\n"}):
        assert interpreter.wanted(case.tree(files), AUTO, case.base) is None
        bare = replace(case.base, python=None, python_path=None)
        assert (interpreter.wanted(case.tree(files), AUTO, bare) is None) is ("train.py" in files)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "runs have Python 3.11.2 of the base debian-python"),
        ({".python-version": "3.11"}, "runs have Python 3.11.2 of the base debian-python"),
        (
            {".python-version": "3.10", "train.py": "import torch\ntorch.compile\n"},
            (
                ".python-version asks for Python 3.10, and the base debian-python-build has 3.11.2: warm "
                "obtains another one through uv, once, and keeps it"
            ),
        ),
        (
            {"pyproject.toml": '[project]\nrequires-python = ">=3.12"\n'},
            (
                "pyproject.toml requires Python >=3.12, and the base debian-python has 3.11.2: warm "
                "obtains another one through uv, once, and keeps it"
            ),
        ),
        (
            {"uv.lock": 'requires-python = "<3.11"\n', "pyproject.toml": "[project]\n"},
            (
                "uv.lock requires Python <3.11, and the base debian-python has 3.11.2: warm obtains "
                "another one through uv, once, and keeps it"
            ),
        ),
        (
            {".python-version": "pypy3.10"},
            (
                ".python-version asks for Python pypy3.10, and the base debian-python has 3.11.2: only "
                "CPython by its version can be obtained, so warm will refuse it"
            ),
        ),
        (
            {"sealrun.toml": '[image]\nbase = "a/b@sha256:1"\n', ".python-version": "3.10"},
            (
                ".python-version asks for Python 3.10: the base a/b@sha256:1 has it, or warm obtains it "
                "through uv"
            ),
        ),
        (
            {"sealrun.toml": '[image]\nbase = "a/b@sha256:1"\n'},
            "runs have the Python of the base a/b@sha256:1",
        ),
        ({"sealrun.toml": '[image]\nenvironment = "none"\n', ".python-version": "3.10"}, None),
        ({"sealrun.toml": "image = 3\n["}, "runs have Python 3.11.2 of the base debian-python"),
        (
            {"pyproject.toml": "[project]\nrequires-python = '>=x'\n"},
            "pyproject.toml: requires-python '>=x' is malformed",
        ),
        ({"pyproject.toml": "project = 3\n"}, "pyproject.toml cannot be read: 'int' object"),
    ],
)
def test_init_tells_which_python_a_run_will_have(files: dict[str, str], words: str | None) -> None:
    """From the files alone: the base's, another one that warm obtains, or why there will be none."""
    whole = {"train.py": "pass\n"} | files
    contents = {path: text.encode() for path, text in whole.items()}
    found = shape.Found(frozenset(whole), contents)
    told = told_by_init.note(found, shape.recognise(found), recipe.shipped_pythons())
    assert told == words or (words is not None and told is not None and told.startswith(words))


def test_init_knows_what_the_shipped_bases_have(case: Case) -> None:
    """The version that it names without a base is the one that a made base has; init prints it."""
    assert recipe.shipped_pythons()["debian-python"] == case.base.python


def test_init_says_it_with_the_rest(repo: Repo, tmp_path: Path) -> None:
    """It is the first note after the diff, and nothing is fetched for it."""
    repo.commit({"train.py": "pass\n", **PINNED})
    cli = Cli(repo.path, tmp_path / "home", {"UV_PYTHON_DOWNLOADS_JSON_URL": "http://127.0.0.1:1/"})
    shown = cli("init", "--no-hooks").stderr
    assert "note: .python-version asks for Python 3.9, and the base debian-python has 3.11" in shown


# What is obtained


@pytest.mark.engine
def test_the_base_gets_one_more_layer(obtained: Obtained, served: Source) -> None:
    """It is the same base otherwise, names what was fetched by its hash, and is made once.

    A commit that asks for the same in other words, or pins it, gets the same base.
    """
    assert obtained.found is None
    case, base = obtained.case, obtained.base
    digest = sha256(archive())
    assert base.layers[:-1] == case.base.layers
    assert (base.python, base.python_path) == (VERSION, "/opt/python/bin/python3")
    assert (base.libc, base.platform) == (case.base.libc, case.base.platform)
    assert base.packages == (*case.base.packages, Package("cpython", VERSION, digest))
    assert base.origin == f"recipe:debian-python with {NAME}@sha256:{digest}"
    assert interpreter.pin_line(base) == f'"{NAME}" = "sha256:{digest}"'
    assert interpreter.pin_line(case.base) is None
    assert interpreter.find(case.wish(), case.places) == base
    assert case.make() == base
    assert served.asked == []
    served.offer("3.9.7", b"newer")
    pins = f'[python]\n"{NAME}" = "sha256:{digest}"\n'
    assert case.make(PINNED | {"sealrun.lock": pins}) == base
    assert case.make({".python-version": f"{VERSION}\n"}) == base


@pytest.mark.engine
def test_the_layer_depends_on_the_archive_alone(
    obtained: Obtained, tmp_path: Path, served: Source
) -> None:
    """Two makings elsewhere give one digest; it holds no host path, time, owner or stray mode."""
    with _umask(0o077):
        again = Case(private(tmp_path / "elsewhere/deep")).make().layers[-1]
    first = obtained.base.layers[-1]
    for fetched in (obtained.asked, served.asked):
        assert fetched.count(f"/cpython-{VERSION}-gnu.tar.gz") == 1
    assert first.diff_id == again.diff_id
    content = first.path.read_bytes()
    for place in (obtained.case.places.data.parent, tmp_path):
        assert str(place).encode() not in content
    with tarfile.open(first.path) as layer:
        members = {info.name: info for info in layer}
        os_py = layer.extractfile("opt/python/lib/python3.9/__pycache__/os.cpython-39.pyc")
        config = next(n for n in members if "_sysconfigdata_" in n and n.endswith(".py"))
        described = layer.extractfile(config)
        assert os_py is not None
        assert described is not None
        # PEP 552: hash-based and not checked, so that no time is in it.
        assert os_py.read()[4:8] == b"\x01\0\0\0"
        assert re.search(rb'"prefix": "/opt/python"', described.read())
    assert {(i.uid, i.gid, i.uname, i.gname, i.mtime) for i in members.values()} == {
        (0, 0, "", "", MTIME)
    }
    assert {i.mode for i in members.values() if i.isfile()} == {0o644, 0o755}
    assert members["usr/local/bin/python"].linkname == "python3"
    assert members["usr/local/bin/python3"].linkname == "/opt/python/bin/python3"
    assert "opt/python/include/python3.9/Python.h" in members


@pytest.mark.engine
@pytest.mark.parametrize(
    "version", ["3.9", pytest.param("3.11", marks=pytest.mark.soak(sample=True))]
)
def test_every_way_to_start_python_works_offline(
    version: str, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Source
) -> None:
    """``uv run``, ``python -m``, console scripts and all names of the interpreter, in a real run.

    On an obtained Python and on the base's; afterwards the run is made again from what is stored.
    """
    links = private(tmp_path / "links")
    only_from(links, monkeypatch)
    make_wheel(links, "aa", "1.0", scripts="aa = aa:main")
    train = "import aa, sys, sysconfig\nprint(sys.version_info[:2], sys.prefix, aa.VERSION)\n"
    repo.write(
        {
            "train.py": train,
            ".python-version": f"{version}\n",
            "pyproject.toml": '[project]\nname = "demo"\nversion = "0.1"\n'
            'requires-python = ">=3.9"\ndependencies = ["aa"]\n',
        }
    )
    lock = ["lock", "--quiet", "--no-index", "--find-links", str(links)]
    subprocess.run([install.uv_command(), *lock], cwd=repo.path, check=True)
    repo.commit({})
    cli = Cli(repo.path, tmp_path / "home").with_base()
    major, minor = (int(part) for part in version.split("."))
    expected = f"({major}, {minor}) /opt/env 1.0\n"
    try:
        assert version in cli("warm").stderr
        assert bool(served.asked) is (version == "3.9")
        assert (f'"{NAME}" = "sha256:' in cli("-v", "warm").stderr) is (version == "3.9")
        ways = {
            "uv run train.py": expected,
            "python train.py": expected,
            "python3 -m train": expected,
            f"python{version} train.py": expected,
            "uv run python -m train": expected,
            "aa": "1.0\n",
            "uv run aa": "1.0\n",
            # What torchrun asks first: where this host is found under its own name.
            "python -c 'import socket as s; print(s.gethostbyname(s.gethostname()))'": "127.0.0.1\n",
        }
        result, done = cli.run("sh", "-euc", "\n".join(ways))
        assert done.stdout == "".join(ways.values())
        assert result["verdict"] == "clean", done.stderr
        served.folder.joinpath("interpreters.json").unlink()
        assert "1 of 1 runs could be rebuilt" in cli("doctor", "--reproducible").stdout
        assert "same" in cli("reproduce", result["run"]).stdout
    finally:
        cli.stop_guard()


RANKS = """import torch, torch.distributed as ranks
ranks.init_process_group("gloo")
total = torch.tensor([ranks.get_rank() + 1.0])
ranks.all_reduce(total)
if ranks.get_rank() == 0:
    print(ranks.get_world_size(), total.item())
ranks.destroy_process_group()
"""


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.engine
def test_torchrun_starts_its_ranks_offline(repo: Repo, tmp_path: Path) -> None:
    """Two ranks meet over the loopback of a container without network, started by ``uv run`` too."""
    wants = 'dependencies = ["torch==2.13.0", "numpy"]\n'
    project = f'[project]\nname = "p"\nversion = "0.1"\nrequires-python = ">=3.11"\n{wants}'
    repo.commit({"train.py": RANKS, "pyproject.toml": project})
    cli = Cli(repo.path, tmp_path / "home").with_base()
    torchrun = ("torchrun", "--standalone", "--nproc-per-node=2", "train.py")
    try:
        cli("warm", timeout=1200)
        for command in (torchrun, ("uv", "run", *torchrun), ("python3", "-m", *_MODULE)):
            result, done = cli.run(*command)
            assert done.stdout == "2 3.0\n", done.stderr
            assert result["verdict"] == "clean", done.stderr
    finally:
        cli.stop_guard()


@pytest.mark.engine
def test_a_script_alone_runs_on_the_python_that_is_asked_for(
    repo: Repo, tmp_path: Path, obtained: Obtained
) -> None:
    """Without any lock there is no environment, and PATH finds the obtained interpreter."""
    repo.commit({"train.py": "import sys; print(sys.version.split()[0])\n", **PINNED})
    cli = Cli(repo.path, tmp_path / "home")
    obtained.put_into(cli.places)
    try:
        cli("warm")
        names = ("python", "python3", "python3.9")
        done = cli.run("sh", "-euc", "\n".join(f"{name} train.py" for name in names))[1]
        assert done.stdout == f"{VERSION}\n" * 3
    finally:
        cli.stop_guard()


@pytest.mark.engine
def test_a_cold_run_says_what_to_do(case: Case, served: Source) -> None:
    """Where nobody waits, nothing is fetched: what is asked for is named, and the command."""
    with pytest.raises(ColdStart, match=r"asks for Python 3\.9, but the base has 3\.11") as caught:
        prepare(case.tree(PINNED), AUTO, case.places, None, Silent(), make=False)  # type: ignore[arg-type]  # a cold start asks no engine
    assert "sealrun warm" in (caught.value.hint or "")
    assert served.asked == []


# What cannot be obtained


@pytest.mark.engine
@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {".python-version": "3.10\n", "pyproject.toml": '[project]\nrequires-python=">=3.9"\n'},
            rf"asks for Python 3\.10, but the base has 3\.11\.2; uv offers none for linux-{MACHINE}-gnu",
        ),
        (
            {".python-version": "3.9\n", "pyproject.toml": '[project]\nrequires-python=">=3.11"\n'},
            r"asks for Python 3\.9, but the base has 3\.11\.2; uv offers none",
        ),
        ({".python-version": "pypy3.9\n"}, r"asks for Python pypy3\.9, but .* offers none"),
    ],
)
def test_what_is_not_offered_is_refused_and_never_replaced(
    files: dict[str, str], words: str, case: Case, served: Source
) -> None:
    """The refusal names who asks, what the base has and what there is; nothing is fetched."""
    with pytest.raises(SealRefused, match=words) as caught:
        case.make(files)
    assert "[image] base" in (caught.value.hint or "")
    assert set(served.asked) == {"/interpreters.json"}


def test_an_unfitted_base_is_refused_where_an_environment_is_planned(case: Case) -> None:
    """Whoever comes by another way than ``prepare`` cannot install for the wrong Python."""
    with pytest.raises(SealRefused, match=r"asks for Python 3\.9, but the base has 3\.11"):
        plan(case.tree(PINNED), AUTO, case.base)


@pytest.mark.engine
@pytest.mark.parametrize("libc", [None, "glibc-2.36", "musl-1.2"])
def test_the_c_library_of_the_base_decides(libc: str | None, case: Case, served: Source) -> None:
    """Only what is built for it is looked at; for an unknown one nothing is."""
    served.offer("3.10.5", b"", libc="musl")
    wish = case.wish({".python-version": "3.10\n"}, replace(case.base, libc=libc))
    words = {
        None: "whose C library is unknown",
        "glibc-2.36": "only 3.9",
        "musl-1.2": f"cpython-3.10.5-linux-{MACHINE}-musl through uv",
    }[libc]
    with pytest.raises((SealRefused, EnvironmentFault), match=words):
        interpreter.make(wish, case.places, engine(), Silent())


@pytest.mark.engine
@pytest.mark.parametrize(
    ("content", "digest", "words"),
    [
        (None, None, r"\.python-version asks for Python 3\.10, .*(.|\n)*404"),
        (b"other", "0" * 64, r"(.|\n)*Hash mismatch|Failed to"),
        ({"bin/python3.10": b"#!/bin/sh\nexit 7\n"}, None, "ended with status 7"),
        (
            {"bin/python3.10": b"#!/bin/sh\necho CPython 3.9.2\n"},
            None,
            r"says of itself in a container that it is CPython 3\.9\.2",
        ),
        (
            {"bin/python3.10": b"#!/bin/sh\ntouch /sealrun-bytecode/x.pyc; echo CPython 3.10.5\n"},
            None,
            "left sealrun-bytecode/x.pyc, which it must not",
        ),
        ({"lib/shadow": "../../../../etc/shadow"}, None, "escapes the destination"),
        ({"lib/shadow": "/etc/shadow"}, None, "leads out of it|absolute|escapes"),
    ],
)
def test_what_arrives_is_checked(
    content: bytes | dict[str, bytes | str] | None,
    digest: str | None,
    words: str,
    case: Case,
    served: Source,
) -> None:
    """A missing archive, a wrong hash, an interpreter that lies, does not start or is a trap."""
    body = content if isinstance(content, bytes) else None
    if isinstance(content, dict):
        # What uv looks into when it installs.
        described = f"lib/python3.10/_sysconfigdata__linux_{MACHINE}-linux-gnu.py"
        values = b"# system configuration generated and used by the sysconfig module\n"
        values += b"build_time_vars = {}\n"
        body = tarball({described: values, "bin/python3.10": b""} | content)
    served.offer("3.10.5", body, sha256=digest)
    with pytest.raises(EnvironmentFault, match=words):
        case.make({".python-version": "3.10\n"})
    assert interpreter.find(case.wish({".python-version": "3.10\n"}), case.places) is None
    assert not list((case.places.cache / "scratch").glob("python-*"))


@pytest.mark.engine
def test_uvs_own_settings_decide_where_to_ask(
    case: Case, served: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its switch against downloads counts, and its user's file; a project's file never does."""
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    with pytest.raises(EnvironmentFault, match="downloads are not allowed") as caught:
        case.make()
    assert "[image] base" in (caught.value.hint or "")
    monkeypatch.delenv("UV_PYTHON_DOWNLOADS")
    monkeypatch.delenv("UV_PYTHON_DOWNLOADS_JSON_URL")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (private(tmp_path / "config" / "uv") / "uv.toml").write_text(
        f'python-downloads = "never"\npython-downloads-json-url = "{served.address}/interpreters.json"\n'
    )
    # Above all that uv is started in: where a project's would be found.
    (case.places.cache / "uv.toml").write_text("python-downloads-json-url = 'http://0.0.0.0:1/'\n")
    with pytest.raises(EnvironmentFault, match="downloads are not allowed"):
        case.make()
    assert "/interpreters.json" in served.asked


@pytest.mark.engine
def test_uvs_own_list_is_fetched_from_the_users_mirror(
    case: Case, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a list of the user's, uv's own says what there is, and a mirror is asked for it."""
    monkeypatch.delenv("UV_PYTHON_DOWNLOADS_JSON_URL")
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", served.address)
    with pytest.raises(EnvironmentFault, match=r"asks for Python 3\.10, but the base has 3\.11"):
        case.make({".python-version": "3.10\n"})
    (asked_for,) = set(served.asked)
    assert re.search(rf"/cpython-3\.10\.\d+.*{MACHINE}-unknown-linux-gnu", asked_for)


@pytest.mark.engine
def test_no_network_is_told_with_what_was_asked_for(
    case: Case, served: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault names the commit's words, the base's Python and uv's own; it is none of the commit's."""
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", "http://127.0.0.1:1/none.json")
    with pytest.raises(
        EnvironmentFault, match=r"asks for Python 3\.9, but the base has 3\.11"
    ) as e:
        case.make()
    assert "UV_PYTHON_INSTALL_MIRROR" in (e.value.hint or "")
    assert served.asked == []


def test_links_out_of_an_interpreter_are_never_carried(tmp_path: Path) -> None:
    """Whatever uv lets through: no absolute link, none that leaves, nothing but files and links."""
    for number, target in enumerate(("/etc/shadow", "../../x", "../bin/../../x")):
        top = private(tmp_path / str(number))
        (private(top / "lib") / "link").symlink_to(target)
        with pytest.raises(EnvironmentFault, match="opt/python/lib/link, which leads out of it"):
            list(interpreter.clean(interpreter.Obtained("n", "3.9.2", "", top), "usr/local/bin"))
    private(tmp_path / "elsewhere" / "bin")
    (tmp_path / "whole").symlink_to("elsewhere")
    with pytest.raises(EnvironmentFault, match="is a link, which leads out of it"):
        list(interpreter.clean(interpreter.Obtained("n", "3.9.2", "", tmp_path / "whole"), "bin"))
    os.mkfifo(private(tmp_path / "fifo") / "pipe")
    made = interpreter.Obtained("n", "3.9.2", "", tmp_path / "fifo")
    with pytest.raises(EnvironmentFault, match="neither a file nor a link"):
        list(interpreter.clean(made, "usr/local/bin"))


# Pins


@pytest.mark.engine
def test_a_pin_binds(case: Case, served: Source) -> None:
    """Another archive than the pinned one is refused, and a pin that the commit contradicts."""
    assert served
    digest = sha256(archive())
    right = f'[python]\n"{NAME}" = "sha256:{digest}"\n'
    wrong = right.replace(digest, "0" * 64)
    with pytest.raises(SealRefused, match=r"pins cpython-3\.9\.2.* but what uv fetched is"):
        case.make(PINNED | {"sealrun.lock": wrong})
    with pytest.raises(SealRefused, match=r"asks for Python 3\.8, but sealrun\.lock pins"):
        case.make({".python-version": "3.8\n", "sealrun.lock": right})


@pytest.mark.parametrize(
    "text",
    [
        '[python]\n"3.9" = "sha256:' + "0" * 64 + '"\n',
        f'[python]\n"{NAME}" = "sha256:short"\n',
        "python = 3\n",
        "[python\n",
    ],
)
def test_a_pin_that_is_none_is_refused(text: str, case: Case) -> None:
    """By name and by hash, or the lock is not readable."""
    with pytest.raises(SealRefused, match=r"sealrun\.lock"):
        case.wish(PINNED | {"sealrun.lock": text})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (
            b"sealrun-bytecode/opt/lib/os.cpython-310.pyc",
            (b"opt/lib/__pycache__/os.cpython-310.pyc", b"opt/lib/os.py"),
        ),
        (b"sealrun-bytecode/opt/lib/os.py", None),
        (b"sealrun-bytecode/opt/lib/.cpython-310.pyc", None),
        (b"sealrun-bytecode/opt/../os.cpython-310.pyc", None),
    ],
)
def test_bytecode_belongs_beside_its_source(name: bytes, place: tuple[bytes, bytes] | None) -> None:
    """Names that came back from a container are taken apart, never followed."""
    assert bytecode.place_of(name) == place
