"""The middle of an image: locks, wheels, one deterministic layer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import threading
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _base import shared_base
from _image import Workshop, engine
from _wheels import make_buildable, make_sdist, make_wheel, only_from, sha256
from sealrun.errors import EngineError, EnvironmentFault, SealRefused
from sealrun.image import build, index, install, lock
from sealrun.image.archive import stack
from sealrun.image.environment import Kind, find_environment, plan
from sealrun.image.load import EngineImages, load
from sealrun.image.model import MTIME, Base, Environment, Platform
from sealrun.image.provision import make_environment
from sealrun.image.seal import seal
from sealrun.policy import ImagePolicy
from sealrun.progress import Silent
from sealrun.shipped import shipped
from sealrun.state import Places, private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _image import Content
    from sealrun.tree import CommittedTree

AUTO = ImagePolicy()
TARGET = lock.Target("3.11.2", "glibc-2.36", Platform())


class Case:
    """One test's places, base, folder of wheels and commits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.links = private(root / "links")
        home = root / "home"
        self.places = Places(home / "state", home / "data", home / "cache", home / "runtime")
        self.base = shared_base(self.places)
        self.workshop = Workshop(private(root / "workshop"))

    def tree(self, files: Mapping[str, Content | str]) -> CommittedTree:
        """Commit files and read them back."""
        return self.workshop.tree(
            {p.encode(): c.encode() if isinstance(c, str) else c for p, c in files.items()}
        )

    def make(self, files: Mapping[str, Content | str], policy: ImagePolicy = AUTO) -> Environment:
        """Make the environment of a commit."""
        chosen = plan(self.tree(files), policy, self.base)
        return make_environment(chosen, self.base, self.places, Silent())

    def run(self, files: Mapping[str, Content | str], *commands: list[str]) -> list[str]:
        """Seal a commit, run commands in hardened containers, and return what they print."""
        tree = self.tree(files)
        made = make_environment(plan(tree, AUTO, self.base), self.base, self.places, Silent())
        image = seal(tree, self.base, made, self.workshop.trees).image
        client = engine()
        name = f"sealrun-test-environment:{os.getpid()}"
        try:
            found = load(image, client, name).engine_image
            return [contained(found, *command) for command in commands]
        finally:
            # Another test run may use the same image at this moment: it is the same bytes.
            with contextlib.suppress(EngineError):
                EngineImages(client, Silent()).forget(stack(image, name))


def contained(image: str, *argv: str) -> str:
    """Run a command as the product would: no network, a stranger, a read-only root."""
    command = ["docker", "run", "--rm", "--network=none", "--user=10001", "--read-only"]
    command += ["--tmpfs=/tmp:exec", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    done = subprocess.run([*command, image, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A case whose packages come from its own folder alone."""
    made = Case(tmp_path)
    only_from(made.links, monkeypatch)
    return made


def contents(environment: Environment) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """Return an environment's files below opt/env."""
    assert environment.layer is not None
    found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(environment.layer.path) as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isfile() else None
            found[info.name.removeprefix("opt/env/")] = (info, file.read() if file else b"")
    return found


SITE = "lib/python3.11/site-packages"


# the layer


def test_a_wheel_is_installed_whole_and_nothing_else(case: Case) -> None:
    """Modules, scripts, data and headers are there; traces of the installer and bytecode are not."""
    wheel = make_wheel(
        case.links,
        "tool",
        "1.0",
        {
            "tool.py": b"def main(): print('ran')\n",
            "__pycache__/tool.cpython-311.pyc": b"stale",
            "tool-1.0.data/data/share/tool/data.txt": b"data",
            "tool-1.0.data/headers/tool.h": b"header",
            "tool-1.0.data/scripts/old": b"#!python\nprint('old')\n",
            "tool-1.0.data/scripts/shell": b"#!/bin/sh\necho shell\n",
        },
        scripts="tool = tool:main",
    )
    made = case.make({"requirements.txt": f"tool==1.0 --hash=sha256:{sha256(wheel)}\n"})
    found = contents(made)
    assert {
        *(f"{SITE}/tool.py", f"{SITE}/tool-1.0.dist-info/METADATA", "share/tool/data.txt"),
        *("include/site/python3.11/tool/tool.h", "bin/tool", "bin/old", "bin/shell", "pyvenv.cfg"),
    } <= found.keys()
    names = " ".join(found)
    for trace in ("__pycache__", "INSTALLER", "REQUESTED", "direct_url", "uv_cache", ".lock"):
        assert trace not in names
        assert trace.encode() not in found[f"{SITE}/tool-1.0.dist-info/RECORD"][1]
    assert found["bin/tool"][1].startswith(b"#!/opt/env/bin/python3\n")
    assert found["bin/old"][1] == b"#!/opt/env/bin/python3\nprint('old')\n"
    assert found["bin/shell"][1] == b"#!/bin/sh\necho shell\n"
    assert found["bin/python3"][0].linkname == "/usr/bin/python3"
    infos = [info for info, _ in found.values()]
    assert {(i.uid, i.gid, i.mtime) for i in infos} == {(0, 0, MTIME)}
    assert {i.mode for i in infos if i.isfile()} == {0o644, 0o755}
    assert not [p for p, (_, content) in found.items() if os.fsencode(sys.prefix) in content]
    assert [(p.name, p.version, p.sha256) for p in made.packages] == [
        ("tool", "1.0", sha256(wheel))
    ]
    assert made.source == "requirements.txt"


_AGAIN = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[1], 8))
sys.path.insert(0, sys.argv[2])
from test_environment import Case
case = Case(Path(sys.argv[3]))
made = case.make({"requirements.txt": Path(sys.argv[4]).read_text()})
print(made.key, made.layer.diff_id)
"""


def test_the_layer_is_the_same_on_every_machine(case: Case, tmp_path: Path) -> None:
    """Another umask, time zone, locale, home and cache, and the digest is the same."""
    for name in ("aa", "bb", "cc"):
        make_wheel(case.links, name, "1.0", {f"{name}.py": b"", f"data/{name}": b"x" * 9999})
    text = "aa\nbb\ncc\n"
    requirements = tmp_path / "again.txt"
    requirements.write_text(text)
    made = case.make({"requirements.txt": text})
    assert made.layer is not None
    for number, (umask, extra) in enumerate(
        [("077", {"TZ": "Asia/Kathmandu", "HOME": str(tmp_path)}), ("000", {"LC_ALL": "C"})]
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-c", _AGAIN, umask, str(Path(__file__).parent)),
                *(str(private(tmp_path / f"again-{number}")), str(requirements)),
            ],
            env={
                **os.environ,
                "SEALRUN_TEST_CACHE": os.environ.get(
                    "SEALRUN_TEST_CACHE", str(Path.home() / ".cache" / "sealrun-tests")
                ),
                **extra,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == [made.key, made.layer.diff_id], done.stderr


def test_files_that_two_packages_fight_for_come_out_the_same(case: Case) -> None:
    """Where two wheels bring different bytes for one path, the later name wins, every time."""
    for name in ("aaa", "mmm", "zzz"):
        make_wheel(case.links, name, "1.0", {f"{name}.py": b"", "shared/f.py": name.encode()})
    for text in ("aaa\nmmm\nzzz\n", "zzz\nmmm\naaa\n"):
        found = contents(case.make({"requirements.txt": text}))
        assert found[f"{SITE}/shared/f.py"][1] == b"zzz"
        assert {f"{SITE}/{name}.py" for name in ("aaa", "mmm", "zzz")} <= found.keys()


# keys and records


def test_an_environment_is_found_by_its_record_alone(case: Case) -> None:
    """None before, the same record afterwards, and an edit of the script changes nothing."""
    make_wheel(case.links, "aa", "1.0")
    chosen = plan(case.tree({"requirements.txt": "aa\n", "train.py": "1"}), AUTO, case.base)
    assert find_environment(chosen, case.places) is None
    made = make_environment(chosen, case.base, case.places, Silent())
    assert find_environment(chosen, case.places) == made
    edited = plan(case.tree({"requirements.txt": "aa\n", "train.py": "2"}), AUTO, case.base)
    assert find_environment(edited, case.places) == made
    other = plan(case.tree({"requirements.txt": "aa==1.0\n"}), AUTO, case.base)
    assert find_environment(other, case.places) is None


def test_two_locks_that_mean_the_same_files_are_one_environment(case: Case) -> None:
    """The key is over the exact files, so another spelling makes no other layer."""
    make_wheel(case.links, "aa", "1.0")
    first = case.make({"requirements.txt": "aa\n"})
    second = case.make({"requirements.txt": "# the same\nAA >= 1\n"})
    assert (first.key, first.layer) == (second.key, second.layer)


def test_what_is_not_pinned_is_resolved_once(case: Case) -> None:
    """A newer version on the index changes nothing, even when the layer has to be made again."""
    make_wheel(case.links, "aa", "1.0")
    files = {"requirements.txt": "aa\n"}
    made = case.make(files)
    make_wheel(case.links, "aa", "2.0")
    for record in case.places.bases.glob("environment-*"):
        record.unlink()
    assert case.make(files) == made


def test_two_at_once_make_it_once(case: Case) -> None:
    """Two commands that need the same environment at the same time both get it."""
    make_wheel(case.links, "aa", "1.0")
    chosen = plan(case.tree({"requirements.txt": "aa\n"}), AUTO, case.base)
    found: list[Environment] = []

    def work() -> None:
        found.append(make_environment(chosen, case.base, case.places, Silent()))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len({e.layer.diff_id for e in found if e.layer}) == 1


def test_nothing_is_left_of_the_making(case: Case) -> None:
    """After success neither uv's cache nor the unpacked copy stays on the disk."""
    make_wheel(case.links, "aa", "1.0")
    case.make({"requirements.txt": "aa\n"})
    assert list((case.places.cache / "environments").iterdir()) == []


# which lock


def test_the_first_lock_in_order_counts(case: Case) -> None:
    """pylock.toml, then uv.lock, then requirements.txt, then a project's dependencies; else none."""
    project = '[project]\nname = "p"\nversion = "1"\ndependencies = ["aa"]\n'
    files: dict[str, Content | str] = {
        "pylock.toml": 'lock-version = "1.0"\ncreated-by = "x"\npackages = []\n',
        "uv.lock": 'version = 1\nrequires-python = ">=3.11"\n',
        "requirements.txt": "aa\n",
        "pyproject.toml": project,
    }
    expected = [
        ("pylock.toml", Kind.PYLOCK),
        ("uv.lock", Kind.UV),
        ("requirements.txt", Kind.REQUIREMENTS),
        ("pyproject.toml", Kind.REQUIREMENTS),
    ]
    for source, kind in expected:
        chosen = plan(case.tree(files), AUTO, case.base)
        assert (chosen.source, chosen.kind) == (source, kind)
        del files[source]
    chosen = plan(case.tree({"train.py": "x"}), AUTO, case.base)
    assert chosen.kind is Kind.NONE
    assert find_environment(chosen, case.places) == Environment(chosen.key, None, None)


def test_the_policy_may_name_the_lock_or_none(case: Case) -> None:
    """A named lock goes before the order; ``none`` installs nothing; an odd name is refused."""
    make_wheel(case.links, "aa", "1.0")
    tree = case.tree({"requirements.txt": "bb\n", "env/requirements-gpu.txt": "aa\n", "x.yml": ""})
    named = plan(tree, ImagePolicy(environment="env/requirements-gpu.txt"), case.base)
    made = make_environment(named, case.base, case.places, Silent())
    assert [p.name for p in made.packages] == ["aa"]
    nothing = plan(tree, ImagePolicy(environment="none"), case.base)
    assert find_environment(nothing, case.places) == Environment(nothing.key, None, None)
    for name in ("x.yml", "missing.txt"):
        with pytest.raises(SealRefused, match=name):
            plan(tree, ImagePolicy(environment=name), case.base)


def test_packages_without_python_are_refused(case: Case) -> None:
    """A base without Python cannot carry a lock, and the message names both."""
    base = Base("reference:x", Platform(), case.base.layers, None, None, None)
    with pytest.raises(SealRefused, match=r"requirements.txt .* reference:x"):
        plan(case.tree({"requirements.txt": "aa\n"}), AUTO, base)


def test_included_requirements_come_from_the_commit(case: Case) -> None:
    """Files behind -r and -c enter the key; one that is not committed, or remote, is refused."""
    make_wheel(case.links, "aa", "1.0")
    make_wheel(case.links, "aa", "2.0")
    files = {"requirements.txt": "-r more/base.txt\n", "more/base.txt": "-c c.txt\naa\n"}
    made = case.make({**files, "more/c.txt": "aa<2\n"})
    assert [(p.name, p.version) for p in made.packages] == [("aa", "1.0")]
    made = case.make({**files, "more/c.txt": "aa<3\n"})
    assert [(p.name, p.version) for p in made.packages] == [("aa", "2.0")]
    for bad in ("-r gone.txt\n", "-r https://example.org/r.txt\n", "-r ../outside.txt\n"):
        with pytest.raises(SealRefused):
            plan(case.tree({"requirements.txt": bad}), AUTO, case.base)


# what is refused


@pytest.mark.parametrize(
    ("path", "text", "fits"),
    [
        (".python-version", "3.11\n", True),
        (".python-version", "# comment\ncpython-3.11\n", True),
        (".python-version", "3.11.2\n", True),
        (".python-version", ">=3.9\n", True),
        (".python-version", "3.10\n", False),
        (".python-version", "3.11.9\n", False),
        (".python-version", "3.1\n", False),
        (".python-version", "pypy3.11\n", False),
        ("pyproject.toml", '[project]\nname = "p"\nrequires-python = ">=3.10"\n', True),
        ("pyproject.toml", '[project]\nname = "p"\nrequires-python = ">=3.12"\n', False),
        ("uv.lock", 'version = 1\nrequires-python = "==3.10.*"\n\n[[package]]\n', False),
        ("pylock.toml", 'lock-version = "1.0"\nrequires-python = "<3.11"\n', False),
    ],
)
def test_another_python_is_refused_with_the_bases_version(
    case: Case, path: str, text: str, *, fits: bool
) -> None:
    """What the commit asks of Python is compared with the base; the hint names the key to change."""
    tree = case.tree({"pyproject.toml": '[project]\nname = "p"\n', path: text})
    if fits:
        plan(tree, AUTO, case.base)
        return
    with pytest.raises(SealRefused) as caught:
        plan(tree, AUTO, case.base)
    assert path in caught.value.message
    assert f"the base has {case.base.python}" in caught.value.message
    assert "[image] base" in (caught.value.hint or "")


def test_a_source_distribution_is_refused_by_name(case: Case) -> None:
    """What has no wheel is not built on the host; the message names it, the hint the policy key."""
    make_sdist(case.links, "onlysource", "1.0")
    with pytest.raises(SealRefused) as caught:
        case.make({"requirements.txt": "onlysource\n"})
    assert "onlysource" in caught.value.message
    assert "built on the host" not in caught.value.message
    assert "build_sdists" in (caught.value.hint or "")


def test_what_does_not_exist_is_refused_with_uvs_words(case: Case) -> None:
    """A requirement that nothing meets is the commit's trouble, not the machine's."""
    make_wheel(case.links, "aa", "1.0")
    with pytest.raises(SealRefused, match="aa"):
        case.make({"requirements.txt": "aa==9\n"})


def test_an_index_that_does_not_answer_is_our_trouble(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without network nothing is judged: a fault with the tool's words, never a refusal."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(EnvironmentFault, match=r"127\.0\.0\.1"):
        case.make({"requirements.txt": "aa\n"})


def test_a_wrong_hash_is_refused(case: Case) -> None:
    """Neither a requirements file's hash nor a lock's is ever stepped over."""
    wheel = make_wheel(case.links, "aa", "1.0")
    zeros = "0" * 64
    with pytest.raises(SealRefused, match=r"requirements.txt: no file of aa 1.0"):
        case.make({"requirements.txt": f"aa==1.0 --hash=sha256:{zeros}\n"})
    text = (
        'lock-version = "1.0"\ncreated-by = "x"\n[[packages]]\nname = "aa"\nversion = "1.0"\n'
        f'wheels = [{{url = "{wheel.as_uri()}", hashes = {{sha256 = "{zeros}"}}}}]\n'
    )
    with pytest.raises(SealRefused, match="not the file that the lock names"):
        case.make({"pylock.toml": text})


def test_one_hash_means_every_package_needs_one(case: Case) -> None:
    """A file that gives a hash for one package must give one for what that package requires too."""
    wheel = make_wheel(case.links, "aa", "1.0", requires="bb")
    make_wheel(case.links, "bb", "1.0")
    with pytest.raises(SealRefused, match=r"none for bb 1.0"):
        case.make({"requirements.txt": f"aa==1.0 --hash=sha256:{sha256(wheel)}\n"})


def pylock(*packages: str) -> str:
    """Return a pylock with packages."""
    return 'lock-version = "1.0"\ncreated-by = "x"\n' + "\n".join(packages)


def test_the_best_wheel_is_chosen_by_its_tags() -> None:
    """Of all wheels of a version the most specific that runs here; others' platforms never."""
    names = [
        "aa-1.0-py3-none-any.whl",
        "aa-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "aa-1.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "aa-1.0-cp311-cp311-manylinux_2_39_x86_64.whl",
        "aa-1.0-cp311-cp311-musllinux_1_2_x86_64.whl",
        "aa-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "aa-1.0-cp311-cp311-win_amd64.whl",
        "aa-1.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    ]

    def chosen(target: lock.Target, offered: list[str]) -> str:
        wheels = ", ".join(
            f'{{url = "https://x/{n}", hashes = {{sha256 = "{"a" * 64}"}}}}' for n in offered
        )
        text = pylock(f'[[packages]]\nname = "aa"\nversion = "1.0"\nwheels = [{wheels}]\n')
        return lock.read_pylock(text, "pylock.toml", target, {}, build=False).wheels[0].filename

    musl = lock.Target("3.11.2", "musl-1.2", Platform())
    old = lock.Target("3.11.2", "glibc-2.17", Platform())
    arm = lock.Target("3.11.2", "glibc-2.36", Platform(architecture="arm64"))
    for offered in (names, names[::-1]):
        assert chosen(TARGET, offered) == names[2]
        assert chosen(old, offered) == names[1]
        assert chosen(musl, offered) == names[4]
        assert chosen(arm, offered) == names[7]
    with pytest.raises(SealRefused, match="by no wheel that fits"):
        chosen(TARGET, names[3:])


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ('vcs = {type = "git", url = "https://x/y", commit-id = "z"}', "version control"),
        ('directory = {path = "../lib"}', "outside the commit"),
        ('directory = {path = "/lib"}', "outside the commit"),
        ('wheels = [{url = "https://x/aa-1-py3-none-any.whl"}]', "no sha256"),
        ('wheels = [{url = "https://x/aa -1.whl", hashes = {sha256 = "00"}}]', "not a readable"),
        ("wheels = 3", "not a readable"),
        ('marker = "nonsense ="\nwheels = []', "not a readable"),
    ],
)
def test_what_a_lock_cannot_promise_is_refused(package: str, words: str) -> None:
    """No hash, no path in the commit, or no sense: refused with the package's name."""
    text = pylock(f'[[packages]]\nname = "aa"\nversion = "1"\n{package}\n')
    with pytest.raises(SealRefused, match=words):
        lock.read_pylock(text, "pylock.toml", TARGET, {}, build=False)


def test_markers_and_default_groups_decide_what_is_installed() -> None:
    """Only packages whose marker holds on the base, with the lock's default groups, count."""
    markers = {
        "win": "sys_platform == 'win32'",
        "old": "python_version < '3.10'",
        "here": "python_version >= '3.10' and platform_machine == 'x86_64'",
        "dev": "'dev' in dependency_groups",
        "docs": "'docs' in dependency_groups",
        "more": "'more' in extras",
    }
    packages = [
        f'[[packages]]\nname = "{name}"\nversion = "1"\nmarker = "{marker}"\nwheels = '
        f'[{{url = "https://x/{name}-1-py3-none-any.whl", hashes = {{sha256 = "{"a" * 64}"}}}}]\n'
        for name, marker in markers.items()
    ]
    text = 'default-groups = ["dev"]\n' + pylock(*packages)
    found = lock.read_pylock(text, "pylock.toml", TARGET, {}, build=False)
    assert [w.name for w in found.wheels] == ["dev", "here"]


@pytest.mark.parametrize(
    "change",
    [
        {"lib/pyproject.toml": '[build-system]\nbuild-backend = "maturin"\nrequires = []\n'},
        {"lib/setup.py": "setup(ext_modules=[Extension('x', ['x.c'])])"},
    ],
)
def test_a_project_that_must_be_compiled_is_refused_by_path(
    case: Case, change: dict[str, str]
) -> None:
    """A path dependency that is not pure Python names its directory; nothing is built."""
    files: dict[str, Content | str] = {
        "lib/pyproject.toml": '[project]\nname = "lib"\nversion = "1"\n',
        "pylock.toml": pylock('[[packages]]\nname = "lib"\ndirectory = {path = "lib"}\n'),
        **change,
    }
    with pytest.raises(SealRefused, match=r"lib/ has to be compiled"):
        case.make(files)


# where packages come from


def test_pips_configuration_is_handed_to_uv() -> None:
    """Index, extra indexes, folders, certificate and trusted hosts; uv's own settings go before."""
    settings = index.parse_pip(
        "[global]\nindex-url = https://a/simple\nextra-index-url = https://b https://c\n"
        "[install]\nfind-links =\n    /wheels\n    https://d\ncert = /ca.pem\ntrusted-host = a b\n"
    )
    assert index.translate(settings, {}) == {
        "UV_DEFAULT_INDEX": "https://a/simple",
        "UV_INDEX": "https://b https://c",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,https://d",
        "SSL_CERT_FILE": "/ca.pem",
        "UV_INSECURE_HOST": "a b",
    }
    own = {"UV_DEFAULT_INDEX": "https://mine", "UV_EXTRA_INDEX_URL": "https://more"}
    assert "UV_DEFAULT_INDEX" not in index.translate(settings, own)
    assert "UV_INDEX" not in index.translate(settings, own)
    assert index.parse_pip("no section") == {}


def test_pips_environment_goes_before_its_files(tmp_path: Path) -> None:
    """A variable wins over every file, and PIP_CONFIG_FILE=/dev/null switches the files off."""
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://file\nfind-links = /links\n")
    environ = {"PIP_CONFIG_FILE": str(file), "PIP_INDEX_URL": "https://variable"}
    found = index.pip_settings(environ)
    assert (found["index-url"], found["find-links"]) == ("https://variable", "/links")
    assert "index-url" not in index.pip_settings({"PIP_CONFIG_FILE": "/dev/null"})


def test_a_file_of_pypi_comes_from_the_configured_place(tmp_path: Path) -> None:
    """With another default index by name, from a folder that has it by path, else by its URL."""
    url = "https://files.pythonhosted.org/packages/aa-1-py3-none-any.whl"
    wheel = lock.Wheel("aa", "1", "aa-1-py3-none-any.whl", "a" * 64, url)
    pinned = f"--hash=sha256:{'a' * 64}"
    assert install.requirement(wheel, tmp_path, {}) == f"aa @ {url} {pinned}"
    mirror = {"UV_DEFAULT_INDEX": "https://mirror/simple"}
    assert install.requirement(wheel, tmp_path, mirror) == f"aa==1 {pinned}"
    (tmp_path / wheel.filename).touch()
    links = {**mirror, "UV_FIND_LINKS": str(tmp_path)}
    expected = f"aa @ {(tmp_path / wheel.filename).as_uri()} {pinned}"
    assert install.requirement(wheel, tmp_path, links) == expected
    other = replace(wheel, url="https://download.example/aa-1-py3-none-any.whl")
    assert install.requirement(other, tmp_path, mirror) == f"aa @ {other.url} {pinned}"


# in a container

PROJECT = """
[project]
name = "demo"
version = "0.3"
requires-python = ">=3.11"
dependencies = ["aa", "lib"]
[project.scripts]
demo = "demo:main"
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[dependency-groups]
dev = ["bb"]
[tool.uv.sources]
lib = { workspace = true }
[tool.uv.workspace]
members = ["libs/*"]
"""
LIB = '[project]\nname = "lib"\nversion = "0.2"\ndependencies = ["cc"]\n'
LIB += '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
TRAIN = """
import importlib.metadata, json, sys
import aa, bb, cc, lib, demo
print(json.dumps({
    "prefix": sys.prefix, "lib": lib.__file__, "demo": demo.__file__,
    "versions": {n: importlib.metadata.version(n) for n in ("aa", "lib", "demo")},
}))
"""


def uv_project(case: Case) -> dict[str, Content | str]:
    """Lock a workspace with uv and return its files."""
    for name in ("aa", "bb", "cc"):
        make_wheel(case.links, name, "1.0", scripts=f"{name} = {name}:main")
    files: dict[str, Content | str] = {
        "pyproject.toml": PROJECT,
        "libs/lib/pyproject.toml": LIB,
        "libs/lib/src/lib/__init__.py": "",
        "src/demo/__init__.py": "def main(): print('demo ran')\n",
        "train.py": TRAIN,
    }
    directory = case.root / "project"
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(str(content))
    subprocess.run(
        [install.uv_command(), "lock", "--quiet", "--no-index", "--find-links", str(case.links)],
        cwd=directory,
        check=True,
    )
    return {**files, "uv.lock": (directory / "uv.lock").read_text()}


@pytest.mark.engine
def test_the_committed_command_of_a_uv_project_stays_as_it_is(case: Case) -> None:
    """``uv run train.py`` works without network, cache or write access, workspace and all."""
    output, same, script, own = case.run(
        uv_project(case),
        ["uv", "run", "train.py"],
        ["python3", "train.py"],
        ["uv", "run", "aa"],
        ["demo"],
    )
    found = json.loads(output)
    assert found["prefix"] == "/opt/env"
    assert found["lib"] == "/workspace/libs/lib/src/lib/__init__.py"
    assert found["demo"] == "/workspace/src/demo/__init__.py"
    assert found["versions"] == {"aa": "1.0", "lib": "0.2", "demo": "0.3"}
    assert same == output
    assert (script, own) == ("1.0\n", "demo ran\n")


@pytest.mark.engine
def test_a_pylock_with_a_committed_wheel_runs(case: Case, tmp_path: Path) -> None:
    """PEP 751's lock is read as it stands; a wheel in the commit is installed from the commit."""
    wheel = make_wheel(private(tmp_path / "w"), "aa", "1.0", scripts="aa = aa:main")
    entry = f'{{path = "wheels/{wheel.name}", hashes = {{sha256 = "{sha256(wheel)}"}}}}'
    text = pylock(f'[[packages]]\nname = "aa"\nversion = "1.0"\nwheels = [{entry}]\n')
    files: dict[str, Content | str] = {
        "pylock.toml": text,
        f"wheels/{wheel.name}": wheel.read_bytes(),
    }
    assert case.run(files, ["aa"]) == ["1.0\n"]


def sdist_lock(source: Path, digest: str) -> str:
    """Return a pylock that names a source distribution alone."""
    return pylock(
        '[[packages]]\nname = "made"\nversion = "1.0"\n'
        f'sdist = {{url = "{source.as_uri()}", hashes = {{sha256 = "{digest}"}}}}\n'
    )


@pytest.mark.engine
def test_a_source_distribution_is_built_in_a_container(case: Case) -> None:
    """With the policy's leave it is built as nobody's user, installed, and found by its own hash."""
    source = make_buildable(case.links, "made", "1.0")
    files = {"pylock.toml": sdist_lock(source, sha256(source))}
    tree = case.tree(files)
    chosen = plan(tree, ImagePolicy(build_sdists=True), case.base)
    made = make_environment(chosen, case.base, case.places, Silent(), engine())
    assert contents(made)[f"{SITE}/made.py"][1] == b"BUILT_BY = 10001\n"
    assert [(p.name, p.version, p.sha256) for p in made.packages] == [
        ("made", "1.0", sha256(source))
    ]
    left = engine().containers(all=True, filters={"label": f"sealrun.build={chosen.key}"})
    assert left == []
    with pytest.raises(SealRefused, match="only as a source distribution"):
        plan_and_make(case, tree)


def plan_and_make(case: Case, tree: CommittedTree) -> None:
    """Make an environment under the policy's defaults."""
    make_environment(plan(tree, AUTO, case.base), case.base, case.places, Silent(), engine())


@pytest.mark.engine
def test_a_source_distribution_with_another_hash_is_never_built(case: Case) -> None:
    """Its bytes are compared before anything of it runs; without an engine it is our trouble."""
    source = make_buildable(case.links, "made", "1.0")
    allowed = ImagePolicy(build_sdists=True)
    tree = case.tree({"pylock.toml": sdist_lock(source, "0" * 64)})
    with pytest.raises(SealRefused, match="sha256 differs"):
        make_environment(plan(tree, allowed, case.base), case.base, case.places, Silent(), engine())
    tree = case.tree({"pylock.toml": sdist_lock(source, sha256(source))})
    with pytest.raises(EnvironmentFault, match="engine"):
        make_environment(plan(tree, allowed, case.base), case.base, case.places, Silent())


@pytest.mark.engine
def test_a_build_that_fails_shows_its_last_words(case: Case) -> None:
    """The package is named and its own words are shown; the container is gone."""
    source = make_sdist(case.links, "made", "1.0")
    tree = case.tree({"pylock.toml": sdist_lock(source, sha256(source))})
    chosen = plan(tree, ImagePolicy(build_sdists=True), case.base)
    with pytest.raises(EnvironmentFault, match=r"building made 1\.0"):
        make_environment(chosen, case.base, case.places, Silent(), engine())
    filters = {"label": f"sealrun.build={chosen.key}"}
    assert engine().containers(all=True, filters=filters) == []


def test_what_a_build_may_see_of_the_hosts_settings() -> None:
    """Addresses of indexes enter a build; passwords and paths of the host do not."""
    assert build.may_enter("UV_DEFAULT_INDEX", "https://mirror.example/simple")
    assert not build.may_enter("UV_DEFAULT_INDEX", "https://user:secret@mirror.example/simple")
    assert not build.may_enter("UV_INDEX", "https://a file:///srv/simple")
    assert not build.may_enter("UV_FIND_LINKS", "/srv/wheels")
    assert not build.may_enter("UV_INDEX_A_PASSWORD", "secret")


@pytest.mark.soak
@pytest.mark.engine
def test_requirements_that_need_a_build_are_resolved_in_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real package that has no wheel is resolved and built with network, in the container."""
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    case = Case(tmp_path)
    tree = case.tree({"requirements.txt": "docopt==0.6.2\n"})
    chosen = plan(tree, ImagePolicy(build_sdists=True), case.base)
    made = make_environment(chosen, case.base, case.places, Silent(), engine())
    assert f"{SITE}/docopt.py" in contents(made)


@pytest.mark.engine
def test_a_compiled_package_from_the_index_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel with a C extension, from the index that this machine is set up for, is imported."""
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    program = "import markupsafe._speedups as s; print(s.__file__)"
    (output,) = Case(tmp_path).run(
        {"requirements.txt": "markupsafe>=3\n"}, ["python3", "-c", program]
    )
    assert output.startswith(f"/opt/env/{SITE}/markupsafe/_speedups.cpython-311")


@pytest.mark.soak
@pytest.mark.engine
def test_torch_is_carried(tmp_path: Path) -> None:
    """Torch and numpy install twice with one digest, and compute in a container."""
    text = "torch==2.13.0\nnumpy\n"
    layers: list[str] = []
    cases = [Case(private(tmp_path / name)) for name in ("a", "b")]
    for case in cases:
        made = case.make({"requirements.txt": text})
        assert made.layer is not None
        layers.append(made.layer.diff_id)
    assert layers[0] == layers[1]
    program = "import torch, numpy; print(torch.from_numpy(numpy.ones(3)).sum().item())"
    (output,) = cases[0].run({"requirements.txt": text}, ["python3", "-c", program])
    assert output == "3.0\n"


def test_our_own_uv_is_the_one_that_stands_in_environments() -> None:
    """One version for the host and for images: then a machine without an index needs no other."""
    pins = tomllib.loads(shipped("images", "uv", "pins.toml").read_text("utf-8"))
    done = subprocess.run(
        [install.uv_command(), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[1] == pins["version"]
