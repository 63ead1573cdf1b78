"""What a policy's ``[[fetch]]`` names is downloaded once, checked, kept, and found offline."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from _base import no_tree
from _cli import Cli
from _disk import small_disk, unsized_disk
from _git import Repo
from _hub import Hub, git_blob, serving
from _offline import run_offline
from sealrun import nested
from sealrun.errors import (
    ColdStart,
    EnvironmentFault,
    PolicyError,
    Refused,
    SealRefused,
    StorageFault,
)
from sealrun.fetch import prepare as fetches
from sealrun.fetch import transfer
from sealrun.fetch.wanted import hub_cache, pin_line
from sealrun.policy import HubFetch, load
from sealrun.progress import Silent
from sealrun.state import Places, private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _hub import Answer, Handler
    from sealrun.fetch.prepare import Fetched
    from sealrun.tree import CommittedTree

METADATA = {
    "name": "tiny",
    "id": "_tiny_1",
    "version": 1,
    "license": "MIT",
    "python-depends": [],
    "backend": {"type": "cpu"},
}
#: A kernel in the layout of kernel repositories, for any machine: pure Python.
KERNEL = {
    "build/torch-universal/__init__.py": b"def answer():\n    return 42\n",
    "build/torch-universal/metadata.json": json.dumps(METADATA).encode(),
    "README.md": b"a kernel\n",
}
BIG = bytes(range(256)) * 12_000


class Case:
    """One test's places, hub and policy."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.root = root
        self.hub = hub
        home = root / "home"
        self.places = Places(home / "state", home / "data", home / "cache", home / "runtime")
        self.tree: CommittedTree = no_tree()

    def fetch(self, text: str, *, make: bool = True) -> tuple[Fetched, ...]:
        """Fetch what a policy's text names."""
        policy = load(text.encode(), source="sealrun.toml").policy
        return fetches.prepare(policy, self.tree, self.places, Silent(), make=make)

    def one(self, text: str, *, make: bool = True) -> Fetched:
        """Fetch the only item of a policy."""
        (found,) = self.fetch(text, make=make)
        return found


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    """A hub on this machine that holds one kernel, and empty places."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield Case(tmp_path, hub)


def entry(name: str = "org/tiny", kind: str = "kernel", **more: object) -> str:
    """Return the text of one entry of a hub."""
    lines = ["[[fetch]]", 'kind = "hub"', f'repository = "{name}"', f'type = "{kind}"']
    return (
        "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in more.items())]) + "\n"
    )


def files_of(found: Fetched) -> dict[str, bytes]:
    """Return the content of each file of an item, links followed."""
    root = found.dataset.source
    paths = (path for path in sorted(root.rglob("*")) if not path.is_dir())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_a_repository_becomes_what_its_client_would_have_made(case: Case) -> None:
    """Blobs by hash, links in the snapshot, refs with the commit; the second time asks nobody."""
    repo = case.hub.repo("org/tiny", "kernel", lfs=frozenset({"weights.bin"}))
    commit = repo.push({**KERNEL, "weights.bin": BIG}, "v1")
    found = case.one(entry(revision="v1"))
    digest = hashlib.sha256(BIG).hexdigest()
    snapshot = f"snapshots/{commit}"
    assert files_of(found) == {
        "refs/main": commit.encode(),
        "refs/v1": commit.encode(),
        f"blobs/{digest}": BIG,
        f"{snapshot}/weights.bin": BIG,
        **{f"{snapshot}/{path}": content for path, content in KERNEL.items()},
        **{f"blobs/{git_blob(content)}": content for content in KERNEL.values()},
    }
    root = found.dataset.source
    link = (root / snapshot / "weights.bin").readlink()
    assert str(link) == f"../../blobs/{digest}"
    assert found.dataset.target == "/home/run/.cache/huggingface/hub/kernels--org--tiny"
    assert (found.record.revision, found.record.files) == (commit, 4)
    assert commit in str(root)
    assert {oct(p.stat().st_mode & 0o777) for p in (root / "blobs").iterdir()} == {"0o444"}
    asked = len(case.hub.asked)
    again = case.one(entry(revision="v1"), make=False)
    assert (again.made, again.dataset.digest, len(case.hub.asked)) == (
        False,
        found.dataset.digest,
        asked,
    )


def test_a_branch_is_resolved_once(case: Case) -> None:
    """The hub's branch moves on; what was fetched stays, until the policy names another commit."""
    repo = case.hub.repo("org/tiny", "kernel")
    first = repo.push(KERNEL)
    found = case.one(entry())
    second = repo.push({**KERNEL, "README.md": b"moved on\n"})
    assert case.one(entry()).record == found.record
    # Lost and fetched again it is the same commit.
    shutil.rmtree(found.dataset.source)
    assert case.one(entry()).record.revision == first
    assert case.one(entry(revision=second)).record.revision == second


def test_what_is_cold_is_told_at_once(case: Case) -> None:
    """Where nobody waits nothing is downloaded; the hint names the command that does."""
    case.hub.repo("org/tiny", "kernel").push(KERNEL)
    with pytest.raises(ColdStart, match="org/tiny") as told:
        case.one(entry(), make=False)
    assert "sealrun warm" in (told.value.hint or "")
    assert case.hub.asked == []


def test_a_changed_item_is_never_handed_out(case: Case) -> None:
    """One byte changed on disk: a run is cold, and warm fetches the same item again."""
    case.hub.repo("org/tiny", "kernel").push(KERNEL)
    found = case.one(entry())
    blob = found.dataset.source / "blobs" / git_blob(KERNEL["README.md"])
    blob.chmod(0o644)
    blob.write_bytes(b"a Kernel\n")
    with pytest.raises(ColdStart, match="changed on disk"):
        case.one(entry(), make=False)
    again = case.one(entry())
    assert (again.made, again.dataset.digest) == (True, found.dataset.digest)
    assert again.dataset.source == found.dataset.source


def test_other_bytes_under_the_same_commit_are_refused(case: Case) -> None:
    """A hub that rewrites a commit does not get past what is on record."""
    repo = case.hub.repo("org/tiny", "kernel")
    commit = repo.push(KERNEL)
    found = case.one(entry())
    shutil.rmtree(found.dataset.source)
    repo.commits[commit] = {**KERNEL, "build/torch-universal/__init__.py": b"import os\n"}
    with pytest.raises(SealRefused, match="other bytes under"):
        case.one(entry())


def test_patterns_choose_files(case: Case) -> None:
    """As the client's allow_patterns: ``*`` covers slashes, a final slash means all below."""
    case.hub.repo("org/data", "dataset").push({"a/b/c.txt": b"1", "a/d.bin": b"2", "e.txt": b"3"})
    names = {
        name.split("/", 2)[2]
        for name in files_of(case.one(entry("org/data", "dataset", allow=["a/*.txt", "e*"])))
        if name.startswith("snapshots/")
    }
    assert names == {"a/b/c.txt", "e.txt"}
    with pytest.raises(EnvironmentFault, match="no file that is wanted"):
        case.one(entry("org/data", "dataset", allow=["nothing/"]))


def test_a_listing_may_have_pages(case: Case) -> None:
    """Each page is read; a next page on another server is not."""
    case.hub.repo("org/tiny", "kernel").push({f"f{n}": b"%d" % n for n in range(7)})
    case.hub.page = 3
    assert case.one(entry()).record.files == 7
    case.hub.repo("org/other", "kernel").push({f"f{n}": b"%d" % n for n in range(7)})
    url, case.hub.url = case.hub.url, "http://127.0.0.2:1"
    with pytest.raises(EnvironmentFault, match="another server"):
        case.one(entry("org/other"))
    case.hub.url = url


def test_one_file_by_its_hash(case: Case) -> None:
    """A file stands at its target, or below /data by its name; two servers give one item."""
    case.hub.instead["/a/tokens.bin"] = lambda _: (200, {}, BIG)
    case.hub.instead["/b/tokens.bin"] = lambda _: (200, {}, BIG)
    found = case.one(url_entry(case, BIG, "/a/tokens.bin?signature=x"))
    assert (found.dataset.target, found.dataset.source.read_bytes()) == ("/data/tokens.bin", BIG)
    assert "signature" not in found.record.server + found.record.label
    elsewhere = case.one(url_entry(case, BIG, "/b/tokens.bin", target="~/.cache/x/tokens.bin"))
    assert (elsewhere.made, elsewhere.dataset.target) == (False, "/home/run/.cache/x/tokens.bin")
    case.hub.instead["/empty"] = lambda _: (200, {}, b"")
    assert case.one(url_entry(case, b"", "/empty")).dataset.source.read_bytes() == b""


def test_one_commit_of_another_repository(case: Case) -> None:
    """Its files stand there without its history, links and executables as committed."""
    tools = Repo.create(private(case.root / "tools"))
    tools.write({"run.sh": "#!/bin/sh\n", "d/tool.py": "TOOL = 1\n"})
    (tools.path / "run.sh").chmod(0o755)
    (tools.path / "link").symlink_to("d/tool.py")
    commit = tools.commit({})
    tools.commit({"d/tool.py": "TOOL = 2\n"})
    text = f'[[fetch]]\nkind = "git"\nurl = "file://{tools.path}"\ncommit = "{commit}"\n'
    found = case.one(text)
    assert files_of(found) == {
        "d/tool.py": b"TOOL = 1\n",
        "link": b"TOOL = 1\n",
        "run.sh": b"#!/bin/sh\n",
    }
    root = found.dataset.source
    assert (root / "link").is_symlink()
    assert oct((root / "run.sh").stat().st_mode & 0o777) == "0o555"
    assert found.dataset.target == "/data/repo"
    assert case.one(text, make=False).made is False
    with pytest.raises(EnvironmentFault, match="has no commit 0000"):
        case.one(text.replace(commit, "0" * 40))


def test_a_repository_of_deep_directories(case: Case) -> None:
    """Strangers may nest more of them than Python nests calls."""
    tools = Repo.create(private(case.root / "tools"))
    deep = "/".join(["d"] * 1100)
    tools.git(
        "fast-import",
        "--quiet",
        stdin=b"commit refs/heads/deep\ncommitter a <a@b> 0 +0000\ndata 1\nx\n"
        + f"M 644 inline {deep}/f\ndata 1\ny\n".encode(),
    )
    commit = tools.git("rev-parse", "deep")
    text = f'[[fetch]]\nkind = "git"\nurl = "file://{tools.path}"\ncommit = "{commit}"\n'
    root = case.one(text).dataset.source
    try:
        assert (root / deep / "f").read_text() == "y"
    finally:
        nested.remove(root)


def test_a_commit_over_plain_http_with_its_token(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of plain files will do; a token goes in a header, and not onto the disk."""
    tools = Repo.create(private(case.root / "tools"))
    commit = tools.commit({"tool.py": "TOOL = 1\n"})
    tools.git("update-server-info")
    for path in (tools.path / ".git").rglob("*"):
        if path.is_file():
            name = str(path.relative_to(tools.path / ".git"))
            case.hub.instead[f"/tools.git/{name}"] = always(path.read_bytes())
    monkeypatch.setenv("GIT_TOKEN", "ghx_" + "w" * 20)
    text = f'[[fetch]]\nkind = "git"\nurl = "{case.hub.url}/tools.git"\ncommit = "{commit}"\n'
    found = case.one(text + 'token = "GIT_TOKEN"\n')
    assert files_of(found) == {"tool.py": b"TOOL = 1\n"}
    assert found.dataset.target == "/data/tools"
    assert all("basic " in headers["authorization"].lower() for _, _, headers in case.hub.asked)
    kept = subprocess.run(
        ["grep", "-rlE", "ghx_|Authorization", case.places.data], capture_output=True, check=False
    )
    assert kept.stdout == b""


def test_the_lock_binds_commit_and_content(case: Case, repo: Repo) -> None:
    """What warm prints for sealrun.lock finds the same item; another digest is refused."""
    hub_repo = case.hub.repo("org/tiny", "kernel")
    commit = hub_repo.push(KERNEL)
    found = case.one(entry())
    asked = len(case.hub.asked)
    hub_repo.push({"other": b"moved on"})
    policy_entry = found.wanted.entry
    assert isinstance(policy_entry, HubFetch)
    line = pin_line(policy_entry, commit, found.record.digest)
    repo.commit({"sealrun.lock": f"[fetch]\n{line}\n"})
    case.tree = repo.tree()
    assert case.one(entry(), make=False).record.digest == found.record.digest
    assert len(case.hub.asked) == asked
    # On another machine the lock decides, not where the branch is now.
    other = Case(case.root / "other", case.hub)
    other.tree = case.tree
    assert other.one(entry()).record.revision == commit
    repo.commit({"sealrun.lock": f"[fetch]\n{line.replace(found.record.digest, '0' * 64)}\n"})
    case.tree = repo.tree()
    with pytest.raises(SealRefused, match=r"sealrun\.lock binds"):
        case.one(entry(), make=False)
    repo.commit({"sealrun.lock": '[fetch]\n"kernel/org/tiny@main" = "main"\n'})
    case.tree = repo.tree()
    with pytest.raises(SealRefused, match="no full commit"):
        case.one(entry())


def test_where_a_client_looks_follows_the_policys_variables(case: Case) -> None:
    """HF_HUB_CACHE before HF_HOME before XDG_CACHE_HOME before ``~/.cache``."""
    assert hub_cache({}) == "/home/run/.cache/huggingface/hub"
    assert hub_cache({"XDG_CACHE_HOME": "/data/c"}) == "/data/c/huggingface/hub"
    assert hub_cache({"XDG_CACHE_HOME": "/c", "HF_HOME": "~/hf"}) == "/home/run/hf/hub"
    assert hub_cache({"HF_HUB_CACHE": "/data/hub/", "HF_HOME": "/x"}) == "/data/hub"
    case.hub.repo("gpt2").push({"config.json": b"{}"})
    text = entry("gpt2", "model") + '[sandbox.variables]\nHF_HOME = "/data/hf"\n'
    assert case.one(text).dataset.target == "/data/hf/hub/models--gpt2"
    covering = entry("gpt2", "model") + '[sandbox.variables]\nHF_HUB_CACHE = "/workspace"\n'
    with pytest.raises(Refused, match="target"):
        case.one(covering)
    with pytest.raises(Refused, match="takes HF_HOME from the caller"):
        case.one(entry("gpt2", "model") + '[sandbox]\npass_variables = ["HF_HOME", "X"]\n')


def test_two_items_do_not_stand_at_one_place(case: Case) -> None:
    """Two files of one name need targets of their own."""
    case.hub.instead["/a/x"] = case.hub.instead["/b/x"] = lambda _: (200, {}, b"x")
    with pytest.raises(Refused, match="would both stand at /data/x"):
        case.fetch(url_entry(case, b"x", "/a/x") + url_entry(case, b"y", "/b/x"))
    assert case.hub.asked == []


@pytest.mark.parametrize(
    "text",
    [
        entry("../tiny"),
        entry("a/b/c"),
        entry("org--x/tiny"),
        entry(revision="../main"),
        entry(revision="refs//x"),
        entry(revision="-x"),
        entry() + entry(revision="v1"),
        entry(token="sk-not a name"),  # noqa: S106 - no variable can be called that
        '[[fetch]]\nkind = "url"\nurl = "file:///etc/passwd"\nsha256 = "' + "0" * 64 + '"\n',
        '[[fetch]]\nkind = "url"\nurl = "https://u:p@example.org/x"\nsha256 = "' + "0" * 64 + '"\n',
        '[[fetch]]\nkind = "url"\nurl = "https://example.org/x"\nsha256 = "abc"\n',
        '[[fetch]]\nkind = "git"\nurl = "ext::sh -c id"\ncommit = "' + "0" * 40 + '"\n',
        '[[fetch]]\nkind = "git"\nurl = "https://example.org/x"\ncommit = "main"\n',
    ],
)
def test_entries_that_cannot_be_are_errors_of_the_policy(text: str) -> None:
    """Names that leave their place, secrets in the commit, protocols that run programs."""
    with pytest.raises(PolicyError):
        load(text.encode(), source="sealrun.toml")


def test_two_warms_at_once_download_once(case: Case) -> None:
    """The second waits for the first and finds what it made."""
    repo = case.hub.repo("org/tiny", "kernel")
    repo.push(KERNEL)
    found: list[Fetched] = []
    threads = [threading.Thread(target=lambda: found.append(case.one(entry()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.made for one in found) == [False, False, False, True]
    bodies = [path for path in case.hub.paths() if "/resolve/" in path]
    assert len(bodies) == len(set(bodies)) == len(KERNEL)


def test_what_a_run_had_is_found_by_its_digest(case: Case) -> None:
    """Months later, whatever the policy says by then; changed or gone it is refused."""
    case.hub.repo("org/tiny", "kernel").push(KERNEL)
    found = case.one(entry())
    digest, target = found.record.digest, found.dataset.target
    assert fetches.again(target, digest, case.places, Silent()) == found.dataset
    (found.dataset.source / "refs" / "more").write_text("x")
    with pytest.raises(Refused, match="was changed on disk"):
        fetches.again(target, digest, case.places, Silent())
    shutil.rmtree(found.dataset.source)
    with pytest.raises(Refused, match="not here any more"):
        fetches.again(target, digest, case.places, Silent())


TRAIN = """\
import os, socket, sys
from kernels import get_kernel
from huggingface_hub import hf_hub_download, snapshot_download

print("answer", get_kernel("org/tiny", revision="main").answer())
print("version", get_kernel("org/tiny", version=1).answer())
snapshot = snapshot_download("org/model", allow_patterns=["*.json"])
print("model", open(hf_hub_download("org/model", "config.json")).read(), sorted(os.listdir(snapshot)))
print("url", open("/data/tokens.bin").read())
print("git", open("/data/tools/tool.py").read())
print("token", any(sys.argv[2] in value for value in os.environ.values()))
try:
    open(os.path.join(snapshot, "config.json"), "w")
except OSError as error:
    print("read-only", error.errno)
home = os.path.expanduser("~/.cache/huggingface/hub")
print("cache", sorted(os.listdir(home)), os.access(home, os.W_OK))
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)
except OSError:
    print("no network")
"""


@pytest.mark.engine
def test_real_clients_find_it_offline_in_the_sandbox(case: Case, tmp_path: Path) -> None:
    """Kernels and huggingface_hub load what warm fetched, in the container, without a network."""
    hub = case.hub
    hub.token = f"hf_{secrets.token_hex(16)}"
    hub.repo("org/tiny", "kernel").push(KERNEL, "v1")
    hub.repo("org/model").push({"config.json": b"{}", "weights.bin": BIG})
    tools = Repo.create(private(tmp_path / "tools"))
    commit = tools.commit({"tool.py": "TOOL = 1\n"})
    hub.instead["/tokens.bin"] = lambda _: (200, {}, b"tokens")
    tokens = hashlib.sha256(b"tokens").hexdigest()
    repo = Repo.create(private(tmp_path / "work"))
    named = {"token": "HUB_TOKEN"}
    policy = entry(revision="v1", **named) + entry("org/model", "model", **named)
    policy += f'[[fetch]]\nkind = "url"\nurl = "{hub.url}/tokens.bin"\nsha256 = "{tokens}"\n'
    policy += f'[[fetch]]\nkind = "git"\nurl = "file://{tools.path}"\ncommit = "{commit}"\n'
    policy += 'target = "/data/tools"\n'
    files = {"train.py": TRAIN, "requirements.txt": "kernels==0.17.2\n", "sealrun.toml": policy}
    repo.commit(files)
    cli = Cli(repo.path, tmp_path / "home", {"HF_ENDPOINT": hub.url, "HUB_TOKEN": hub.token})
    cli.with_base()
    warmed = cli("warm", timeout=600)
    assert "fetched: hub kernel org/tiny@v1: 3 files" in warmed.stderr
    port = hub.url.rpartition(":")[2]
    status, output = run_offline(repo, cli.places, "python3", "train.py", port, hub.token)
    assert status == 0, output
    lines = [line for line in output.splitlines() if "trust check" not in line]
    assert lines == [
        "answer 42",
        "version 42",
        "model {} ['config.json', 'weights.bin']",
        "url tokens",
        "git TOOL = 1",
        "",
        "token False",
        "read-only 30",
        "cache ['kernels--org--tiny', 'models--org--model'] True",
        "no network",
    ]
    kept = subprocess.run(["grep", "-rl", hub.token, cli.home], capture_output=True, check=False)
    assert (kept.stdout, hub.token in warmed.stderr) == (b"", False)
    # Months later, without any server: what is needed is here.
    again = cli("warm", timeout=600)
    assert "here: hub kernel org/tiny@v1" in again.stderr


@pytest.mark.engine
def test_a_token_is_given_away_by_an_approved_policy_alone(case: Case, repo: Repo) -> None:
    """Whoever can commit could name any variable and any server; nothing is sent, and it is told."""
    case.hub.repo("org/tiny", "kernel").push(KERNEL)
    named = {"token": "HUB_TOKEN"}
    repo.commit({"train.py": "print('val_bpb: 1')\n"})
    cli = Cli(
        repo.path, case.root / "home", {"HF_ENDPOINT": case.hub.url, "HUB_TOKEN": "hf_secret"}
    )
    cli.with_base()
    cli.run("python3", "train.py")
    cli.stop_guard()
    repo.commit({"sealrun.toml": entry(**named)})
    done = cli("warm", status=121)
    assert "is not the approved one" in done.stderr
    assert "policy approve" not in done.stderr
    assert case.hub.asked == []
    repo.commit({"sealrun.toml": entry()})
    cli("warm")
    assert {headers.get("authorization") for _, _, headers in case.hub.asked} == {None}


@pytest.mark.engine
def test_a_killed_warm_goes_on(case: Case, repo: Repo) -> None:
    """SIGKILL in the middle of a download leaves nothing that holds up or misleads the next."""
    commit = case.hub.repo("org/tiny", "kernel").push({"big": BIG})
    path = f"/kernels/org/tiny/resolve/{commit}/big"
    half, over = len(BIG) // 2, threading.Event()

    def hold(handler: Handler) -> None:
        _piece(handler, 0, len(BIG), BIG[:half])
        over.wait(60)

    case.hub.instead[path] = hold
    repo.commit({"sealrun.toml": entry()})
    cli = Cli(repo.path, case.root / "home", {"HF_ENDPOINT": case.hub.url}).with_base()
    process = cli.start("warm")
    while sum(p.stat().st_size for p in partial(case)) < half:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    over.set()
    del case.hub.instead[path]
    (made,) = cli.json("warm")["fetched"]
    assert (made["made"], made["size"]) == (True, len(BIG))
    last = [headers.get("range") for _, asked, headers in case.hub.asked if asked == path][-1]
    assert last == f"bytes={half}-"
    (found,) = cli.json("warm")["fetched"]
    assert found == made | {"made": False}


#: As much of torch as the client asks in order to choose a build; the real one weighs gigabytes.
TORCH = """\
import types
__version__ = "2.9.1"
version = types.SimpleNamespace(cuda="12.8", hip=None, xpu=None)
_C = types.SimpleNamespace()
compiled_with_cxx11_abi = lambda: True
"""
#: The two lines of autoresearch's train.py, but for the name of the repository.
UNPINNED = """\
from kernels import get_kernel
fa3 = get_kernel("org/flash-attn3").flash_attn_interface
print("attention", fa3.flash_attn_func())
"""


@pytest.mark.engine
@pytest.mark.soak(sample=True)
def test_an_import_that_names_no_revision_gets_the_pinned_one(case: Case, tmp_path: Path) -> None:
    """As in autoresearch with the client of its lock: only the build for this machine is fetched."""
    variant = "torch29-cxx11-cu128-x86_64-linux"
    body = b"def flash_attn_func():\n    return 'pinned'\n"
    mine = {
        f"build/{variant}/__init__.py": b"from . import flash_attn_interface\n",
        f"build/{variant}/flash_attn_interface.py": body,
    }
    others = {f"build/torch28-cxx11-cu126-x86_64-linux/{n}.so": BIG for n in range(3)}
    hub_repo = case.hub.repo("org/flash-attn3")
    commit = hub_repo.push({**mine, **others})
    repo = Repo.create(private(tmp_path / "work"))
    policy = entry("org/flash-attn3", "model", allow=[f"build/{variant}/*"])
    locked = "kernels==0.11.7\nhuggingface_hub==1.3.7\n"
    repo.commit(
        {
            "train.py": UNPINNED,
            "torch.py": TORCH,
            "requirements.txt": locked,
            "sealrun.toml": policy,
        }
    )
    cli = Cli(repo.path, tmp_path / "home", {"HF_ENDPOINT": case.hub.url}).with_base()
    (fetched,) = cli.json("warm")["fetched"]
    assert (fetched["revision"], fetched["files"]) == (commit, 2)
    hub_repo.push(
        {**mine, f"build/{variant}/flash_attn_interface.py": b"raise SystemExit('moved')"}
    )
    status, output = run_offline(repo, cli.places, "python3", "train.py")
    assert (status, output.splitlines()[-1]) == (0, "attention pinned"), output


def always(body: bytes) -> Callable[[Handler], Answer]:
    """Return what answers every request with one body."""
    return lambda _: (200, {}, body)


def endless(handler: Handler) -> None:
    """Answer with a body that never ends, and no length."""
    handler.answered = True
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"x" * 65536)


def url_entry(case: Case, content: bytes, path: str = "/file.bin", **more: object) -> str:
    """Return the text of an entry for one file of the server."""
    lines = ["[[fetch]]", 'kind = "url"', f'url = "{case.hub.url}{path}"']
    lines.append(f'sha256 = "{hashlib.sha256(content).hexdigest()}"')
    return (
        "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in more.items())]) + "\n"
    )


def partial(case: Case) -> list[Path]:
    """Return the files of downloads that did not come to their end."""
    return [p for p in (case.places.data / "fetched" / "partial").rglob("*") if p.is_file()]


def test_a_file_with_another_hash_is_refused(case: Case) -> None:
    """By URL and by listing: the wrong bytes are not kept, and nothing is handed out."""
    case.hub.instead["/file.bin"] = lambda _: (200, {}, b"evil")
    with pytest.raises(SealRefused, match="not the file that was expected: its sha256"):
        case.one(url_entry(case, b"good"))
    commit = case.hub.repo("org/tiny", "kernel").push(KERNEL)
    file = f"/kernels/org/tiny/resolve/{commit}/README.md"
    case.hub.instead[file] = lambda _: (200, {}, b"A kernel\n")
    with pytest.raises(SealRefused, match="not the file that was expected: its git id"):
        case.one(entry())
    assert all(b"kernel\n" not in path.read_bytes() for path in partial(case))
    with pytest.raises(ColdStart):
        case.one(entry(), make=False)


def test_a_body_without_end_is_cut_off(case: Case) -> None:
    """More bytes than the listing says, or than the policy allows, end the download."""
    commit = case.hub.repo("org/tiny", "kernel").push(KERNEL)
    case.hub.instead[f"/kernels/org/tiny/resolve/{commit}/README.md"] = endless
    with pytest.raises(EnvironmentFault, match="more than the 9 bytes"):
        case.one(entry())
    case.hub.instead["/file.bin"] = endless
    with pytest.raises(EnvironmentFault, match="more than the 1000 bytes"):
        case.one(url_entry(case, b"good", limit=1000))
    assert sum(path.stat().st_size for path in partial(case)) < 1 << 20


def test_an_answer_without_end_is_cut_off(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing is bounded too."""
    monkeypatch.setattr(transfer, "LARGEST_ANSWER", 1 << 20)
    case.hub.repo("org/tiny", "kernel").push(KERNEL)
    case.hub.instead["/api/kernels/org/tiny/revision/main"] = endless
    with pytest.raises(EnvironmentFault, match="more than 1048576 bytes"):
        case.one(entry())


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://x/",
        "//user:pw@127.0.0.1/x",
        "http://127.0.0.1:99999/x",
    ],
)
def test_redirects_to_other_schemes_are_not_followed(case: Case, location: str) -> None:
    """Only http and https, without passwords."""
    case.hub.instead["/file.bin"] = lambda _: (302, {"Location": location}, b"")
    with pytest.raises(EnvironmentFault, match=r"not followed|cannot be read"):
        case.one(url_entry(case, b"good"))


def test_a_redirect_never_takes_encryption_away() -> None:
    """From https only https is followed."""
    with pytest.raises(EnvironmentFault, match="not followed"):
        transfer._redirected("https://hub.example/a?b", "http://hub.example/a")
    assert transfer._redirected("https://hub.example/a", "b?c") == "https://hub.example/b?c"


def test_redirects_end(case: Case) -> None:
    """A server that sends us in a circle is left."""
    case.hub.instead["/file.bin"] = lambda _: (302, {"Location": "/file.bin"}, b"")
    with pytest.raises(EnvironmentFault, match="redirects more than"):
        case.one(url_entry(case, b"good"))


def test_a_token_stays_with_its_server(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect to a store gets no token, its signature stands in no message or record."""
    case.hub.token = "hf_" + "q" * 20
    monkeypatch.setenv("MY_TOKEN", case.hub.token)
    monkeypatch.setenv("HF_TOKEN", "another, which the policy does not name")
    commit = case.hub.repo("org/tiny", "kernel").push({"only.txt": b"content"})
    with serving() as store:
        store.instead["/signed"] = lambda _: (200, {}, b"content")
        away = (302, {"Location": f"{store.url}/signed?Signature=s3cr3t"}, b"")
        case.hub.instead[f"/kernels/org/tiny/resolve/{commit}/only.txt"] = lambda _: away
        with pytest.raises(EnvironmentFault, match="answers 401") as told:
            case.one(entry())
        assert "token" in (told.value.hint or "")
        found = case.one(entry(token="MY_TOKEN"))  # noqa: S106 - the name of a variable
        assert [headers.get("authorization") for _, _, headers in store.asked] == [None]
    sent = {headers.get("authorization") for _, _, headers in case.hub.asked}
    assert sent == {None, f"Bearer {case.hub.token}"}
    kept = subprocess.run(
        ["grep", "-rlE", "s3cr3t|hf_qq", case.root], capture_output=True, check=False
    )
    assert kept.stdout == b""
    assert found.record.server == case.hub.url


def test_a_token_that_is_not_set_is_told_by_its_name(case: Case) -> None:
    """The variable is named; nothing is asked of the hub without it."""
    case.hub.repo("org/tiny", "kernel").push(KERNEL)
    with pytest.raises(Refused, match="NOT_SET_HERE"):
        case.one(entry(token="NOT_SET_HERE"))  # noqa: S106 - the name of a variable
    assert case.hub.asked == []


@pytest.mark.parametrize(
    "path",
    [
        *("../../escaped", "/etc/escaped", "a/../../escaped", "a//b", "./a", "a/..", "", "a/"),
        *("back\\slash", "line\nfeed", "nul\0byte", "escape\x1b[31m", "n" * 256, "d/" * 3000 + "x"),
    ],
)
def test_names_that_could_leave_their_directory_are_refused(case: Case, path: str) -> None:
    """A hostile listing writes nothing, and what it says is shown escaped."""
    case.hub.repo("org/tiny", "kernel").push({path: b"x"})
    with pytest.raises(EnvironmentFault, match="could leave its directory") as told:
        case.one(entry())
    assert "\x1b" not in told.value.message
    assert not list(case.root.rglob("*escaped*"))


@pytest.mark.parametrize(
    "rows",
    [
        {"error": "no list"},
        ["no object"],
        [{"type": "file", "path": "a", "size": -1, "oid": "0" * 40}],
        [{"type": "file", "path": "a", "size": 1 << 60, "oid": "0" * 40}],
        [{"type": "file", "path": "a", "size": True, "oid": "0" * 40}],
        [{"type": "file", "path": "a", "size": 1, "oid": "../../etc/passwd"}],
        [{"type": "file", "path": "a", "size": 1, "oid": "0" * 40, "lfs": {"oid": "x", "size": 1}}],
        [{"type": "link", "path": "a", "size": 1, "oid": "0" * 40}],
        [
            {"type": "file", "path": "a", "size": 1, "oid": "0" * 40},
            {"type": "file", "path": "a/b", "size": 1, "oid": "1" * 40},
        ],
    ],
)
def test_listings_of_another_shape_are_refused(case: Case, rows: object) -> None:
    """Sizes, hashes and kinds that cannot be; a file that is also a directory."""
    commit = case.hub.repo("org/tiny", "kernel").push(KERNEL)
    body = json.dumps(rows).encode()
    case.hub.instead[f"/api/kernels/org/tiny/tree/{commit}"] = lambda _: (200, {}, body)
    with pytest.raises(EnvironmentFault, match="listing cannot be used"):
        case.one(entry())


@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b"[" * 100_000, b'{"sha": "main"}', b"[]"]
)
def test_what_is_not_a_hub_is_told(case: Case, body: bytes) -> None:
    """A login page, nonsense, an answer without a commit: trouble of the machine, with a hint."""
    case.hub.instead["/api/kernels/org/tiny/revision/main"] = lambda _: (200, {}, body)
    with pytest.raises(EnvironmentFault) as told:
        case.one(entry())
    assert "HF_ENDPOINT" in (told.value.hint or "") or "not a hub" in (told.value.hint or "")


def test_trouble_that_passes_is_waited_for(case: Case) -> None:
    """500 and 429 are asked again; what stays away is told with its name and status."""
    commit = case.hub.repo("org/tiny", "kernel").push(KERNEL)
    left = [500, 429, 503]

    def busy(_: Handler) -> Answer | None:
        # However long it wants us to wait, we decide.
        return (left.pop(), {"Retry-After": "86400"}, b"") if left else None

    case.hub.instead["/api/kernels/org/tiny/revision/main"] = busy
    assert case.one(entry()).record.revision == commit
    assert left == []
    gone = case.hub.repo("org/gone", "kernel").push(KERNEL)
    case.hub.instead[f"/kernels/org/gone/resolve/{gone}/README.md"] = lambda _: (404, {}, b"")
    with pytest.raises(EnvironmentFault, match=r"README\.md answers 404"):
        case.one(entry("org/gone"))
    with pytest.raises(EnvironmentFault, match="answers 404"):
        case.one(entry("org/never"))


def test_a_download_goes_on_where_it_broke_off(case: Case) -> None:
    """A connection that ends early costs the rest, not the whole; also in another warm."""
    repo = case.hub.repo("org/tiny", "kernel", lfs=frozenset({"big"}))
    commit = repo.push({"big": BIG})
    path = f"/kernels/org/tiny/resolve/{commit}/big"
    served: list[int] = []

    def cut(handler: Handler) -> None:
        wanted = handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        served.append(start)
        _piece(handler, start, len(BIG), BIG[start : start + 1_200_000])

    case.hub.instead[path] = cut
    found = case.one(entry())
    assert files_of(found)[f"snapshots/{commit}/big"] == BIG
    assert served == sorted(served)
    assert served[0] == 0
    assert served[1] > 0


def _piece(handler: Handler, start: int, whole: int, piece: bytes) -> None:
    """Promise the rest of a file, send a piece of it, hang up."""
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(whole - start))
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
    handler.end_headers()
    handler.wfile.write(piece)
    handler.answered = True


def test_another_warm_goes_on_where_the_first_gave_up(case: Case) -> None:
    """What came is kept, hashed again, and not asked for twice."""
    commit = case.hub.repo("org/tiny", "kernel").push({"a": b"first", "b": BIG})
    path = f"/kernels/org/tiny/resolve/{commit}/"

    def hang_up(handler: Handler) -> None:
        start = 0 if handler.headers.get("Range") is None else len(BIG) // 2
        _piece(handler, start, len(BIG), b"" if start else BIG[: len(BIG) // 2])

    case.hub.instead[f"{path}b"] = hang_up
    with pytest.raises(EnvironmentFault, match="broke off") as told:
        case.one(entry())
    assert "goes on" in (told.value.hint or "")
    # Somebody changes what the first attempt left.
    (kept,) = (p for p in partial(case) if p.name == git_blob(b"first"))
    kept.write_bytes(b"FIRST")
    del case.hub.instead[f"{path}b"]
    case.hub.asked.clear()
    found = case.one(entry())
    assert files_of(found)[f"snapshots/{commit}/a"] == b"first"
    assert files_of(found)[f"snapshots/{commit}/b"] == BIG
    ranges = {path: headers.get("range") for _, path, headers in case.hub.asked}
    assert ranges[f"{path}b"] == f"bytes={len(BIG) // 2}-"
    assert partial(case) == []


def test_a_download_that_never_ends_is_left(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then holds nobody for ever."""
    monkeypatch.setattr(transfer, "PATIENCE", 0.2)

    def trickle(handler: Handler) -> None:
        handler.answered = True
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.02)

    case.hub.instead["/file.bin"] = trickle
    with pytest.raises(EnvironmentFault, match="that is no download"):
        case.one(url_entry(case, b"good"))
    case.hub.repo("org/tiny", "kernel").push(KERNEL)
    case.hub.instead["/api/kernels/org/tiny/revision/main"] = trickle
    with pytest.raises(EnvironmentFault, match="that is no download"):
        case.one(entry())


def test_a_full_disk_is_told_and_costs_nothing_that_came(case: Case) -> None:
    """A listing says beforehand that there is no room; a file that does not fit goes on later."""
    data = case.places.data
    with small_disk(data, 2 << 20):
        case.hub.repo("org/tiny", "kernel").push({"big": BIG})
        with pytest.raises(EnvironmentFault, match="needs 3072000 bytes"):
            case.one(entry())
        case.hub.instead["/file.bin"] = lambda _: (200, {}, BIG)
        with pytest.raises(StorageFault, match=r"file\.bin cannot be written"):
            case.one(url_entry(case, BIG))
        assert sum(path.stat().st_size for path in partial(case)) > 1 << 20
        subprocess.run(["mount", "-o", "remount,size=16m", data], check=True)
        assert case.one(url_entry(case, BIG)).record.size == len(BIG)


def test_a_disk_that_has_no_size_is_not_a_full_one(case: Case) -> None:
    """Where the file system does not tell how much is free, fetching is tried."""
    with unsized_disk(case.places.data):
        case.hub.repo("org/tiny", "kernel").push({"big": BIG})
        assert case.one(entry()).record.files == 1


def test_a_repository_is_bounded(case: Case) -> None:
    """Git gets no more room for one file than the policy gives."""
    tools = Repo.create(private(case.root / "tools"))
    commit = tools.commit({"big": secrets.token_bytes(1 << 20)})
    text = f'[[fetch]]\nkind = "git"\nurl = "file://{tools.path}"\ncommit = "{commit}"\n'
    with pytest.raises(EnvironmentFault, match="fetching file://"):
        case.one(text + 'limit = "100KiB"\n')
    assert case.one(text + 'limit = "2MiB"\n').record.files == 1


def test_a_file_that_changed_while_it_was_resumed_is_fetched_anew(case: Case) -> None:
    """The first half of one version and the second of another do not count."""
    other = b"o" * len(BIG)
    first = [True]

    def changing(handler: Handler) -> None:
        if first:
            first.clear()
            _piece(handler, 0, len(BIG), other[:1_500_000])
            return
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        _piece(handler, start, len(BIG), BIG[start:])

    case.hub.instead["/file.bin"] = changing
    found = case.one(url_entry(case, BIG))
    assert found.dataset.source.read_bytes() == BIG


def test_a_server_that_gives_nothing_is_left(case: Case) -> None:
    """Connections that end without a byte are not tried for ever."""
    case.hub.instead["/file.bin"] = lambda handler: _piece(handler, 0, 100, b"")
    with pytest.raises(EnvironmentFault, match="broke off 4 times"):
        case.one(url_entry(case, b"good"))
