"""What a policy's ``[[fetch]]`` names is downloaded once, checked, kept, and found offline."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from _base import no_tree
from _hub import Hub, git_blob, serving
from sealrun.errors import ColdStart, EnvironmentFault, SealRefused
from sealrun.fetch import prepare as fetches
from sealrun.policy import load
from sealrun.progress import Silent
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
