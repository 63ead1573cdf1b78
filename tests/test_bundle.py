"""Bundles carry runs whole to another machine, and whatever somebody did to one is refused."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from _bundles import WRONG, Parts, checksummed, packed, spots_of
from _cli import Cli
from _disk import unsized_disk
from _git import Repo
from _sandbox import client
from _signed import BASE, LOG, MODEL, ODD, WHEELS, Site, sha256
from sealrun.engine import private as private_engine
from sealrun.errors import SealrunError, UsageError
from sealrun.image import tar
from sealrun.ledger import Imported
from sealrun.ledger.chain import Link, link_hash
from sealrun.progress import Silent
from sealrun.provenance import envelope, sign_run
from sealrun.provenance.bundle import container, imported
from sealrun.provenance.bundle.checking import checked
from sealrun.provenance.bundle.export import Exported, export
from sealrun.provenance.faults import BadBundle, BadEnvelope
from sealrun.provenance.keys import Keys
from sealrun.provenance.signing import FILE
from sealrun.reproduce.rebuild import Stored, rebuild, tree_of
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def site_at(directory: Path) -> Site:
    """Make a repository and a home."""
    directory.mkdir(parents=True, exist_ok=True)
    home = directory / "home"
    places = Places(home / "state", home / "data", home / "cache", home / "runtime")
    return Site(Repo.create(directory), places)


def signed_run(site: Site, idea: str = "an idea") -> str:
    """Make a signed run."""
    run = site.run(idea=idea)
    with site.ledger() as ledger:
        assert sign_run(run, ledger, site.repo.find(), site.places)
    return run


def exported(site: Site, runs: list[str], file: Path, *, full: bool = False) -> Exported:
    """Export runs."""
    with site.ledger() as ledger:
        return export(runs, ledger, site.stored, file, full=full)


@dataclass
class Made:
    """Two signed runs, the first of them in bundles."""

    site: Site
    run: str
    other: str
    thin: Path
    full: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Bundles to look at; no test changes them."""
    directory = tmp_path_factory.mktemp("made")
    site = site_at(directory)
    Keys.of(site.places).create()
    run, other = signed_run(site), signed_run(site, "another idea")
    thin, full = directory / "thin", directory / "full"
    exported(site, [run], thin)
    exported(site, [run], full, full=True)
    return Made(site, run, other, thin, full)


def refusal(made: Made, file: Path, place: Path, *, unsigned: bool = False) -> str:
    """Check a bundle that must be refused; return the reason. Nothing of it stays."""
    keys = Keys.of(made.site.places).all()
    with (
        pytest.raises((BadBundle, BadEnvelope)) as caught,
        checked(file, place, keys, unsigned=unsigned),
    ):
        pass
    assert not place.exists() or not list(place.iterdir())
    return caught.value.message


# -- what a bundle is ------------------------------------------------------------------------------


def test_a_thin_bundle_of_a_small_repository_is_small(made: Made) -> None:
    """Less than 100 KB beside the outputs, commits, image and record included."""
    parts = Parts.of(made.thin)
    outputs = sum(one["size"] for one in parts.run["files"])
    assert made.thin.stat().st_size < 100_000
    assert outputs > 7000
    assert sha256(BASE) not in parts.blobs
    assert sha256(WHEELS) in Parts.of(made.full).blobs


def test_a_bundle_is_its_owners_alone(made: Made) -> None:
    """It may hold private code and the values of variables."""
    assert made.full.stat().st_mode & 0o777 == 0o600


def test_the_same_runs_give_the_same_bundle(made: Made, tmp_path: Path) -> None:
    """Byte for byte: nothing of the time, place or user is in it."""
    again = exported(made.site, [made.run], tmp_path / "again", full=True)
    assert again.file.read_bytes() == made.full.read_bytes()


def test_a_bundle_holds_every_file_of_the_run(made: Made) -> None:
    """Log, outputs of any name, evidence, statement and events."""
    parts = Parts.of(made.thin)
    assert parts.blobs[parts.file("log")["digest"]] == LOG
    assert parts.blobs[parts.file("outputs/out/model.bin")["digest"]] == MODEL
    assert any(one["path"].startswith("outputs/out/odd") for one in parts.run["files"])
    assert any(one["path"].startswith("evidence/") for one in parts.run["files"])
    assert (
        parts.blobs[parts.run["statement"]] == (made.site.directory(made.run) / FILE).read_bytes()
    )


def test_a_full_bundle_is_an_image_archive_that_others_read(made: Made) -> None:
    """Python's tar reader opens it; each digest in its OCI index leads to a content of that digest."""
    parts = Parts.of(made.full)
    (entry,) = json.loads(parts.rest["index.json"])["manifests"]
    manifest = json.loads(parts.blobs[entry["digest"].removeprefix("sha256:")])
    for one in (manifest["config"], *manifest["layers"]):
        content = parts.blobs[one["digest"].removeprefix("sha256:")]
        assert (sha256(content), len(content)) == (one["digest"][7:], one["size"])
    (docker,) = json.loads(parts.rest["manifest.json"])
    assert docker["Config"].endswith(parts.run["image"]["config"])
    assert json.loads(parts.rest["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}


def test_what_compresses_like_a_bomb_is_written_plainly(made: Made, tmp_path: Path) -> None:
    """Gigabytes of zeros are a legal output: the bundle is larger then, and can be read."""
    run = made.site.run(idea="zeros")
    zeros = made.site.directory(run) / "outputs/out/zeros"
    with zeros.open("wb") as file:
        file.truncate(container.SLACK + (1 << 20))
    with made.site.ledger() as ledger:
        sign_run(run, ledger, made.site.repo.find(), made.site.places)
    done = exported(made.site, [run], tmp_path / "zeros")
    assert done.size > container.SLACK
    with checked(done.file, tmp_path / "unpacked", Keys.of(made.site.places).all()) as found:
        assert found.runs[0].entry.run == run


def test_a_bundle_is_read_on_a_disk_that_has_no_size(made: Made, tmp_path: Path) -> None:
    """Where the file system does not tell how much is free, unfolding is tried."""
    with (
        unsized_disk(tmp_path / "unpacked"),
        checked(made.thin, tmp_path / "unpacked", Keys.of(made.site.places).all()) as found,
    ):
        assert found.runs[0].entry.run == made.run


@pytest.mark.parametrize("full", [False, True])
def test_everything_in_an_untouched_bundle_holds(made: Made, tmp_path: Path, full: bool) -> None:  # noqa: FBT001 - a parameter
    """And the key that signed is named; what was unpacked is gone afterwards."""
    file = made.full if full else made.thin
    with checked(file, tmp_path / "unpacked", Keys.of(made.site.places).all()) as found:
        (run,) = found.runs
        assert run.key is not None
        assert (run.entry.run, run.key.name) == (made.run, "own")
    assert not list((tmp_path / "unpacked").iterdir())


# -- the file --------------------------------------------------------------------------------------


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def _kind(kind: bytes, target: bytes = b"") -> Callable[[bytes, bytes], bytes]:
    def change(name: bytes, header: bytes) -> bytes:
        if not name.startswith(b"blobs/"):
            return header
        changed = header[:156] + kind + target.ljust(100, b"\0") + header[257:]
        return checksummed(changed)

    return change


def _owner(name: bytes, header: bytes) -> bytes:
    del name
    return checksummed(header[:108] + b"0001750\0" + header[116:])


def _huge(name: bytes, header: bytes) -> bytes:
    if not name.startswith(b"blobs/"):
        return header
    return checksummed(header[:124] + b"77777777777\0" + header[136:])


def _bomb(parts: Parts) -> bytes:
    """Say that a content has a gigabyte of zeros, and bring them: one megabyte compressed."""
    entry = parts.index["contents"][0]
    entry["size"] = 1 << 30
    front = packed(parts.members()[:1], end=b"")
    name = f"blobs/sha256/{entry['digest']}".encode()
    header = gzip.compress(tar.header(name, tar.FILE, 0o644, 1 << 30))
    return front + header + gzip.compress(bytes(256 << 20))


def _longer(parts: Parts) -> bytes:
    return packed([*parts.members(), (b"blobs/sha256/" + b"0" * 64, b"more")])


def _swapped_members(parts: Parts) -> bytes:
    members = parts.members()
    members[1], members[2] = members[2], members[1]
    return packed(members)


def _twice(parts: Parts) -> bytes:
    members = parts.members()
    return packed([*members[:2], members[1], *members[2:]])


def _hidden(parts: Parts) -> bytes:
    raw = bytearray(gzip.decompress(packed(parts.members())))
    size = len(parts.members()[0][1])
    raw[512 + size] = 65
    assert size % 512
    return gzip.compress(bytes(raw))


def _no_image_index(parts: Parts) -> bytes:
    parts.rest["manifest.json"] = parts.rest["manifest.json"].replace(
        b"sealrun-run", b"library-run"
    )
    return packed(parts.members())


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda parts: packed(parts.members())[:2000], "cut off"),
        (lambda parts: packed(parts.members())[:-1], "cut off"),
        (lambda parts: packed(parts.members()[:3], end=b""), "cut off"),
        (lambda parts: packed(parts.members()[:3]), "ends too early"),
        (lambda parts: packed(parts.members()) + b"more", "cut off or damaged"),
        (lambda parts: packed(parts.members(), end=tar.END * 2), "follows the end"),
        (lambda parts: _flip(packed(parts.members()), 1000), ""),
        (lambda parts: packed(parts.members(), _kind(b"2", b"/etc/passwd")), "symbolic link"),
        (lambda parts: packed(parts.members(), _kind(b"1", b"bundle.json")), "hard link"),
        (lambda parts: packed(parts.members(), _kind(b"5")), "a directory"),
        (lambda parts: packed(parts.members(), _kind(b"L")), "no plain file"),
        (lambda parts: packed(parts.members(), _kind(b"x")), "no plain file"),
        (lambda parts: packed(parts.members(), _kind(b"S")), "no plain file"),
        (lambda parts: packed(parts.members(), _owner), "another header"),
        (lambda parts: packed(parts.members(), _huge), "too many"),
        (_bomb, "times its size"),
        (_longer, "follows the end"),
        (_swapped_members, "belongs"),
        (_twice, "belongs"),
        (_hidden, "hidden behind"),
        (_no_image_index, "does not follow"),
        (lambda _: b"", "cut off"),
        (lambda _: b"PK\3\4" * 1000, "no plain file"),
    ],
)
def test_a_file_that_is_no_bundle_of_ours_is_refused(
    made: Made, tmp_path: Path, tamper: Callable[[Parts], bytes], words: str
) -> None:
    """Links, odd headers, bombs, cuts, more and less: with the reason, leaving nothing behind."""
    file = tmp_path / "bad"
    file.write_bytes(tamper(Parts.of(made.full)))
    assert words in refusal(made, file, tmp_path / "unpacked")


@pytest.mark.parametrize("seed", range(8))
def test_every_byte_of_a_bundle_counts(made: Made, tmp_path: Path, seed: int) -> None:
    """Whichever bit is another one, it is refused as such: no other end, no unnoticed byte."""
    random = Random(seed)  # noqa: S311 - it decides what a test tries
    raw = gzip.decompress(made.full.read_bytes())
    for _ in range(12):
        at = random.randrange(len(raw))
        bit = 1 << random.randrange(8)
        changed = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
        (tmp_path / "bad").write_bytes(changed)
        assert refusal(made, tmp_path / "bad", tmp_path / "unpacked")


@pytest.mark.parametrize("seed", range(8))
def test_no_index_ends_in_anything_but_a_refusal(made: Made, tmp_path: Path, seed: int) -> None:
    """Any value in any place of the index."""
    random = Random(seed)  # noqa: S311 - it decides what a test tries
    spots = list(spots_of(Parts.of(made.full).index))
    for _ in range(12):
        parts = Parts.of(made.full)
        *way, last = random.choice(spots)
        inner: Any = parts.index
        for step in way:
            inner = inner[step]
        wrong = random.choice(WRONG)
        if inner[last] == wrong:
            continue
        inner[last] = wrong
        (tmp_path / "bad").write_bytes(packed(parts.members_as_they_are()))
        assert refusal(made, tmp_path / "bad", tmp_path / "unpacked")


# -- the index -------------------------------------------------------------------------------------


def _path(path: str) -> Callable[[Parts], None]:
    def tamper(parts: Parts) -> None:
        parts.file("outputs/out/model.bin")["path"] = path

    return tamper


def _set(name: str, value: object) -> Callable[[Parts], None]:
    def tamper(parts: Parts) -> None:
        parts.index[name] = value

    return tamper


def _run_twice(parts: Parts) -> None:
    parts.index["runs"] *= 2


def _many_runs(parts: Parts) -> None:
    parts.index["runs"] = [{**parts.run, "files": [], "image": None}] * 10_001


def _many_files(parts: Parts) -> None:
    parts.run["files"] *= 50_000


def _digest_name(parts: Parts) -> None:
    parts.index["contents"][0]["digest"] = "../../etc/passwd"


def _negative(parts: Parts) -> None:
    parts.index["contents"][0]["size"] = -1


def _content_twice(parts: Parts) -> None:
    parts.index["contents"] += parts.index["contents"][:1]


def _unreferenced(parts: Parts) -> None:
    parts.add(b"a stowaway")


def _unnamed_git(parts: Parts) -> None:
    parts.index["git"] = "0" * 64


def _two_sizes(parts: Parts) -> None:
    parts.file("log")["size"] += 1


def _field(parts: Parts) -> None:
    parts.index["hook"] = "curl"


def _type(parts: Parts) -> None:
    parts.run["files"] = {"path": "log"}


def _run_name(parts: Parts) -> None:
    parts.run["run"] = "../../../x"


def _commit_name(parts: Parts) -> None:
    parts.run["commit"] = "--upload-pack=touch"


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_path("../log"), "no plain path"),
        (_path("/etc/passwd"), "no plain path"),
        (_path("outputs/../../../x"), "no plain path"),
        (_path("outputs/./x"), "no plain path"),
        (_path("outputs//x"), "no plain path"),
        (_path("outputs/"), "no plain path"),
        (_path("outputs/a\0b"), "no plain path"),
        (_path("outputs/" + "x" * 256), "no plain path"),
        (_path("outputs/" + "x/" * 2500 + "x"), "no plain path"),
        (_path("outputs/\ufffdD800"), "no plain path"),
        (_path(""), "no plain path"),
        (_path("outputs"), "none of the files"),
        (_path("events.jsonl"), "none of the files"),
        (_path("origin.json"), "none of the files"),
        (_path(".git/hooks/post-checkout"), "none of the files"),
        (_path("log"), "stands twice"),
        (_path("outputs/workdir"), "at once"),
        (_run_twice, "stands twice"),
        (_many_runs, "10001 runs"),
        (_many_files, "files; up to"),
        (_digest_name, "no sha256"),
        (_negative, "has the size -1"),
        (_content_twice, "stands twice"),
        (_unreferenced, "nothing in the bundle refers"),
        (_unnamed_git, "not in the bundle"),
        (_two_sizes, "bytes in one place"),
        (_field, "not as sealrun writes"),
        (_type, "cannot be read"),
        (_run_name, "no run's id"),
        (_commit_name, "no commit's id"),
        (_set("kind", "something"), "no bundle"),
        (_set("version", 2), "of version 2"),
        (_set("algorithm", "md5"), "no known format"),
        (_set("repository", "x"), "no repository"),
        (_set("runs", []), "holds 0 runs"),
    ],
)
def test_an_index_that_would_do_harm_is_refused(
    made: Made, tmp_path: Path, tamper: Callable[[Parts], None], words: str
) -> None:
    """Paths that climb, names that are none, counts, sizes, doubles and stowaways."""
    parts = Parts.of(made.thin)
    tamper(parts)
    parts.write(tmp_path / "bad")
    assert words in refusal(made, tmp_path / "bad", tmp_path / "unpacked")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"null", b'{"a": 1', b"1e999"])
def test_an_index_that_is_no_document_is_refused(
    made: Made, tmp_path: Path, content: bytes
) -> None:
    """Neither its depth nor its bytes end in anything but a refusal."""
    (tmp_path / "bad").write_bytes(packed([(b"bundle.json", content)]))
    assert refusal(made, tmp_path / "bad", tmp_path / "unpacked")


# -- what it says: every digest is right, and still it is found ------------------------------------


def _events(parts: Parts) -> list[dict[str, Any]]:
    return [json.loads(line) for line in parts.blobs[parts.run["events"]].splitlines()]


def _put_events(parts: Parts, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n" for row in rows)
    parts.exchange(parts.run["events"], lines.encode())


def _rehashed(row: dict[str, Any]) -> dict[str, Any]:
    fields = {**row, "previous": bytes.fromhex(row["previous"]), "hash": b""}
    return {**row, "hash": link_hash(Link(**fields)).hex()}


def _verdict(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "payload": row["payload"].replace('"kind":"flagged"', '"kind":"clean"')}


def edited(parts: Parts, made: Made) -> None:
    """Another verdict, with the old hash."""
    del made
    _put_events(parts, [_verdict(row) for row in _events(parts)])


def rechained(parts: Parts, made: Made) -> None:
    """Another verdict, with hashes made right from there on."""
    del made
    rows = _events(parts)
    for number, row in enumerate(rows):
        before = rows[number - 1]["hash"] if number else row["previous"]
        rows[number] = _rehashed({**_verdict(row), "previous": before})
    _put_events(parts, rows)


def reordered(parts: Parts, made: Made) -> None:
    """Two events change places."""
    del made
    rows = _events(parts)
    rows[2], rows[3] = rows[3], rows[2]
    _put_events(parts, rows)


def renumbered(parts: Parts, made: Made) -> None:
    """Two events change places and numbers, each with a hash that is right."""
    del made
    rows = _events(parts)
    one, two = rows[2], rows[3]
    rows[2] = _rehashed({**two, "seq": one["seq"], "previous": one["previous"]})
    rows[3] = _rehashed({**one, "seq": two["seq"], "previous": rows[2]["hash"]})
    for number in range(4, len(rows)):
        rows[number] = _rehashed({**rows[number], "previous": rows[number - 1]["hash"]})
    _put_events(parts, rows)


def without_alert(parts: Parts, made: Made) -> None:
    """The mutation is gone, and the evidence with it."""
    del made
    _put_events(parts, [row for row in _events(parts) if row["kind"] != "alert"])
    evidence = next(one for one in parts.run["files"] if one["path"].startswith("evidence/"))
    parts.run["files"].remove(evidence)
    parts.drop(evidence["digest"])


def without_end(parts: Parts, made: Made) -> None:
    """The run never ended."""
    del made
    _put_events(parts, [row for row in _events(parts) if row["kind"] != "run-ended"])


def of_another_run(parts: Parts, made: Made) -> None:
    """Events of another run of the same ledger."""
    rows = _events(parts)
    with made.site.ledger() as ledger:
        link = next(one for one in ledger.links() if one.run == made.other)
    other = {
        **{name: getattr(link, name) for name in ("seq", "at", "monotonic_ns", "boot_id", "kind")},
        "run": link.run,
        "payload": link.payload,
        "previous": link.previous.hex(),
        "hash": link.hash.hex(),
    }
    _put_events(parts, [*rows, other])


def unknown_event(parts: Parts, made: Made) -> None:
    """An event of a kind that nobody knows."""
    del made
    rows = _events(parts)
    _put_events(parts, [*rows[:-1], _rehashed({**rows[-1], "kind": "miracle"})])


def cut_events(parts: Parts, made: Made) -> None:
    """The last line is not whole."""
    del made
    parts.exchange(parts.run["events"], parts.blobs[parts.run["events"]][:-1])


def payload(parts: Parts, made: Made) -> None:
    """The statement says another verdict."""
    del made
    document = json.loads(parts.blobs[parts.run["statement"]])
    lie = base64.b64decode(document["payload"]).replace(
        b'"verdict":"flagged"', b'"verdict":"clean"'
    )
    document["payload"] = base64.b64encode(lie).decode()
    parts.exchange(parts.run["statement"], json.dumps(document).encode())


def signature(parts: Parts, made: Made) -> None:
    """One bit of the signature is another."""
    del made
    document = json.loads(parts.blobs[parts.run["statement"]])
    raw = base64.b64decode(document["signatures"][0]["sig"])
    document["signatures"][0]["sig"] = base64.b64encode(_flip(raw, 5)).decode()
    parts.exchange(parts.run["statement"], json.dumps(document).encode())


def swapped_key(parts: Parts, made: Made) -> None:
    """Signed again by a stranger."""
    from securesystemslib.signer import CryptoSigner

    del made
    document = json.loads(parts.blobs[parts.run["statement"]])
    content = envelope.seal(base64.b64decode(document["payload"]), CryptoSigner.generate_ed25519())
    parts.exchange(parts.run["statement"], content)


def unsigned(parts: Parts, made: Made) -> None:
    """The signature is taken off."""
    del made
    parts.drop(parts.run["statement"])
    parts.run["statement"] = None


def other_statement(parts: Parts, made: Made) -> None:
    """Another run's statement, signed by the right key."""
    content = (made.site.directory(made.other) / FILE).read_bytes()
    parts.exchange(parts.run["statement"], content)


def log_byte(parts: Parts, made: Made) -> None:
    """A better number in the log."""
    del made
    parts.exchange(parts.file("log")["digest"], LOG.replace(b"0.9979", b"0.8979"))


def log_gone(parts: Parts, made: Made) -> None:
    """No log at all."""
    del made
    parts.drop(parts.file("log")["digest"])
    parts.run["files"].remove(parts.file("log"))


def output_byte(parts: Parts, made: Made) -> None:
    """Other weights."""
    del made
    parts.exchange(parts.file("outputs/out/model.bin")["digest"], _flip(MODEL, 9))


def output_added(parts: Parts, made: Made) -> None:
    """A file that the run never left."""
    del made
    digest = parts.add(b"#!/bin/sh")
    parts.run["files"].append({"path": "outputs/out/run.sh", "digest": digest, "size": 9})


def evidence_byte(parts: Parts, made: Made) -> None:
    """Other evidence under the old name."""
    del made
    entry = next(one for one in parts.run["files"] if one["path"].startswith("evidence/"))
    path = entry["path"]
    new = parts.exchange(entry["digest"], b"SCALAR_LR = 0.5\n")
    next(one for one in parts.run["files"] if one["digest"] == new)["path"] = path


def manifest_added(parts: Parts, made: Made) -> None:
    """A manifest of data that the run did not read."""
    del made
    digest = parts.add(b"0  x\n")
    parts.run["files"].append({"path": "data/0", "digest": digest, "size": 5})


def other_commit(parts: Parts, made: Made) -> None:
    """The commits of another run."""
    file = made.thin.with_name("commits")
    ref = f"refs/sealrun/runs/{made.other}"
    made.site.repo.git("bundle", "create", "-q", str(file), ref)
    parts.exchange(parts.index["git"], file.read_bytes())


def commit_renamed(parts: Parts, made: Made) -> None:
    """The run claims another commit, and the bundle holds that one."""
    other_commit(parts, made)
    parts.run["commit"] = made.site.repo.git("rev-parse", f"refs/sealrun/runs/{made.other}")


def pack(parts: Parts, made: Made) -> None:
    """A byte of the pack is another."""
    del made
    content = parts.blobs[parts.index["git"]]
    parts.exchange(parts.index["git"], _flip(content, len(content) - 60))


def no_pack(parts: Parts, made: Made) -> None:
    """No git bundle at all."""
    del made
    parts.exchange(parts.index["git"], b"--upload-pack=touch /tmp/x\n")


def config(parts: Parts, made: Made) -> None:
    """An image config with another command."""
    del made
    content = parts.blobs[parts.run["image"]["config"]]
    parts.exchange(parts.run["image"]["config"], content.replace(b'"Env"', b'"Cmd":["sh"],"Env"'))
    _renamed(parts)


def manifest(parts: Parts, made: Made) -> None:
    """An OCI manifest with other layers."""
    del made
    digest = parts.run["image"]["manifest"]
    document = json.loads(parts.blobs[digest])
    document["layers"].pop()
    parts.exchange(digest, json.dumps(document).encode())
    _renamed(parts)


def layer(parts: Parts, made: Made) -> None:
    """Another base under a digest of its own."""
    del made
    parts.exchange(sha256(BASE), b"another base")
    _renamed(parts)


def tree_layer(parts: Parts, made: Made) -> None:
    """Another tree layer."""
    del made
    parts.exchange(parts.run["image"]["layers"][-1]["digest"], b"another tree")
    _renamed(parts)


def no_image(parts: Parts, made: Made) -> None:
    """The image is left out, though the run had one."""
    del made
    image = parts.run["image"]
    parts.run["image"] = None
    for digest in {image["config"], image["manifest"], *(x["digest"] for x in image["layers"])}:
        parts.drop(digest)
    parts.rest["index.json"] = parts.rest["index.json"].split(b'"manifests"')[0] + (
        b'"manifests":[],"mediaType":"application/vnd.oci.image.index.v1+json","schemaVersion":2}'
    )
    parts.rest["manifest.json"] = b"[]"


def _renamed(parts: Parts) -> None:
    """Let the members for other readers follow from the changed index, as an attacker can."""
    from sealrun.ledger.codec import from_document
    from sealrun.provenance.bundle.index import Index

    index = from_document(Index, parts.index)
    parts.rest = {name.decode(): content for name, content in container.names(index)}


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (edited, "is not what was written"),
        (rechained, "not those that were signed"),
        (reordered, "stands after"),
        (renumbered, "not those that were signed"),
        (without_alert, "not those that were signed"),
        (without_end, "no beginning or no end"),
        (of_another_run, "belongs to another run"),
        (unknown_event, "cannot be read"),
        (cut_events, "are cut off"),
        (payload, "signature does not hold"),
        (signature, "signature does not hold"),
        (swapped_key, "not known here"),
        (unsigned, "was not signed"),
        (other_statement, "is about run"),
        (log_byte, "'log' was changed"),
        (log_gone, "'log' is missing"),
        (output_byte, "was changed"),
        (output_added, "nothing on record names"),
        (evidence_byte, "was changed"),
        (manifest_added, "was changed"),
        (other_commit, "is not in the bundle"),
        (commit_renamed, "is of commit"),
        (pack, "git does not take"),
        (no_pack, "git does not take"),
        (config, "its image is"),
        (manifest, "does not consist of its layers"),
        (layer, "not those on record"),
        (tree_layer, "not those on record"),
        (no_image, "do not fit"),
    ],
)
def test_a_bundle_that_lies_is_refused(
    made: Made, tmp_path: Path, tamper: Callable[[Parts, Made], None], words: str
) -> None:
    """Its form and its digests are right; what it says is not, and that is named."""
    parts = Parts.of(made.full)
    tamper(parts, made)
    parts.write(tmp_path / "bad")
    assert words in refusal(made, tmp_path / "bad", tmp_path / "unpacked")


def test_runs_that_nobody_signed_are_taken_only_when_asked(made: Made, tmp_path: Path) -> None:
    """Even then outputs are held against the record."""
    parts = Parts.of(made.thin)
    unsigned(parts, made)
    parts.write(tmp_path / "bare")
    keys = Keys.of(made.site.places).all()
    with checked(tmp_path / "bare", tmp_path / "u", keys, unsigned=True) as found:
        assert found.runs[0].key is None
    output_byte(parts, made)
    parts.write(tmp_path / "bare")
    words = refusal(made, tmp_path / "bare", tmp_path / "u", unsigned=True)
    assert "was changed" in words


# -- importing -------------------------------------------------------------------------------------


def taken(made: Made, file: Path, site: Site) -> imported.Installed:
    """Import a bundle at another site that trusts the maker."""
    keys = [Keys.of(made.site.places).own()]
    with checked(file, site.places.data / "unpacked", keys) as found:
        return imported.install(found, file, site.stored)


def test_an_imported_run_stands_beside_the_own_ledger(made: Made, tmp_path: Path) -> None:
    """Its files, events and commit are there; the own ledger holds one event about it."""
    site = site_at(tmp_path / "two")
    done = taken(made, made.full, site)
    assert (done.runs, done.known, done.layers) == ((made.run,), (), 2)
    found = imported.find(site.places, site.id, made.run[:20])
    with made.site.ledger() as ledger:
        assert found.record == ledger.run(made.run)
    assert (found.directory / "log").read_bytes() == LOG
    assert (found.directory / "outputs/out" / os.fsdecode(ODD)).read_bytes() == b"odd"
    assert found.origin.repository == made.site.id
    with site.ledger() as ledger:
        assert ledger.runs() == []
        (event,) = ledger.events(Imported)
        assert event.event.runs == (made.run,)
        assert ledger.verify_chain().sound
    assert site.repo.git("rev-parse", f"refs/sealrun/runs/{made.run}") == found.record.commit
    stored = Stored(site.repo.find(), site.id, site.places)
    assert stored.layers.get(f"sha256:{sha256(BASE)}", len(BASE)) is not None
    again = rebuild(found.record, tree_of(found.record, stored), stored)
    assert again.image.image_id == found.record.progress.image_id
    assert not (site.places.bases).exists() or not list(site.places.bases.iterdir())


def test_importing_twice_changes_nothing(made: Made, tmp_path: Path) -> None:
    """What is here already is said to be, also where it is the maker's own ledger."""
    site = site_at(tmp_path / "two")
    taken(made, made.thin, site)
    again = taken(made, made.full, site)
    assert (again.runs, again.known, again.layers) == ((), (made.run,), 2)
    own = taken(made, made.thin, made.site)
    assert (own.runs, own.known) == ((), (made.run,))
    with pytest.raises(UsageError):
        imported.find(made.site.places, made.site.id, made.run)


def test_a_ref_that_names_something_else_stays(made: Made, tmp_path: Path) -> None:
    """The import is refused before anything is written."""
    site = site_at(tmp_path / "two")
    mine = site.repo.commit({"a": "b"})
    site.repo.git("update-ref", f"refs/sealrun/runs/{made.run}", mine)
    site.repo.git("update-ref", "-d", f"refs/sealrun/runs/{made.run}")
    with site.ledger() as ledger:
        assert ledger.head()[0] == 0
    site.repo.git("update-ref", f"refs/sealrun/runs/{made.run}", mine)
    with pytest.raises(BadBundle, match="another commit here"):
        taken(made, made.full, site)
    assert site.repo.git("rev-parse", f"refs/sealrun/runs/{made.run}") == mine
    assert imported.all_runs(site.places, site.id) == []


def test_a_changed_imported_run_is_not_shown_as_it_was(made: Made, tmp_path: Path) -> None:
    """Its events are hashed each time they are read."""
    site = site_at(tmp_path / "two")
    taken(made, made.thin, site)
    file = imported.find(site.places, site.id, made.run).directory / "events.jsonl"
    file.write_bytes(file.read_bytes().replace(b"flagged", b"cleaned"))
    with pytest.raises(SealrunError, match="not what was written"):
        imported.find(site.places, site.id, made.run)


def test_a_sha256_repository_takes_no_sha1_commits(made: Made, tmp_path: Path) -> None:
    """The formats cannot be mixed; that is said."""
    directory = tmp_path / "two"
    directory.mkdir()
    repo = Repo.create(directory, "--object-format=sha256")
    site = Site(repo, Places(*(directory / name for name in ("s", "d", "c", "r"))))
    with pytest.raises(BadBundle, match="this repository's are sha256"):
        taken(made, made.thin, site)


# -- the commands ----------------------------------------------------------------------------------


def test_the_commands_carry_a_run_from_one_home_to_another(made: Made, tmp_path: Path) -> None:
    """Export, show, verify, import; then show, log --imported and verify-run know it."""
    home = made.site.places.state.parent
    maker = Cli(made.site.repo.path, home)
    file = tmp_path / "night.sealrun"
    told = maker.json("bundle", "export", made.run[:20], "-o", str(file), "--full")
    assert told["runs"] == [made.run]
    assert told["bytes"] == file.stat().st_size
    other = Cli(site_at(tmp_path / "two").repo.path, tmp_path / "two" / "home")
    (shown,) = other.json("bundle", "show", str(file))["runs"]
    assert (shown["layers"], shown["layers_here"], shown["signed"]) == (3, 3, True)
    assert "not known here" in other("bundle", "verify", str(file), status=121).stderr
    pem = tmp_path / "maker.pem"
    pem.write_text(maker("key", "show").stdout)
    assert "holds" in other("bundle", "verify", str(file), "--key", str(pem)).stdout
    assert "not known here" in other("bundle", "import", str(file), status=121).stderr
    other("key", "import", str(pem), "--name", "maker")
    assert other.json("bundle", "import", str(file))["runs"] == [made.run]
    record = other.json("show", made.run)["run"]
    assert record["imported"]["signer"] == "maker"
    assert record["verdict"]["kind"] == "flagged"
    assert "imported: from repository" in other("show", made.run).stderr
    assert other.json("log")["runs"] == []
    assert [one["run"] for one in other.json("log", "--imported")["runs"]] == [made.run]
    assert "signed by maker" in other("log", "--imported").stdout
    checks = {one["name"]: one["result"] for one in other.json("verify-run", made.run)["checks"]}
    assert checks == {
        "signature": "holds",
        "record": "holds",
        "chain": "not-checked",
        "git": "holds",
        "log": "holds",
        "outputs": "holds",
    }
    other("bundle", "verify", str(tmp_path / "none"), status=125)
    other("bundle", "export", made.run, "-o", str(tmp_path / "new"), status=2)
    assert "there already" in maker("bundle", "export", made.run, "-o", str(file), status=2).stderr


TRAIN = """\
import pathlib
pathlib.Path('/out/model.bin').write_bytes(b'weights' * 100)
print('val_bpb: 0.75')
"""


@pytest.fixture
def maker(repo: Repo) -> Iterator[Cli]:
    """A warm command line with a key."""
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    cli("key", "create")
    yield cli
    cli.stop_guard()


def _signed_run(maker: Cli) -> str:
    """Run HEAD once, sign the run and return its id."""
    run = str(maker.run("python3", "train.py")[0]["run"])
    maker("key", "sign", run)
    return run


def _exported(maker: Cli, run: str, directory: Path) -> Path:
    """Return a full bundle of a run."""
    file = directory / "night.sealrun"
    maker("bundle", "export", run, "-o", str(file), "--full")
    return file


def _receiver(maker: Cli, repo: Repo, bundle: Path, directory: Path) -> Cli:
    """Return a fresh clone with a fresh home that knows the maker's key and took in a bundle."""
    clone = directory / "clone"
    subprocess.run(["git", "clone", "-q", repo.path, clone], check=True)
    other = Cli(clone, directory / "other-home")
    pem = directory / "maker.pem"
    pem.write_text(maker("key", "show").stdout)
    other("key", "import", str(pem), "--name", "maker")
    other("bundle", "import", str(bundle))
    return other


@pytest.mark.engine
def test_a_discarded_run_is_reproduced_on_another_machine(
    maker: Cli, repo: Repo, tmp_path: Path
) -> None:
    """Fresh clone, fresh home: the full bundle brings all that the same image id needs."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "shard").write_text("1.5")
    policy = f'[[data]]\nsource = "{data}"\ntarget = "/data"\n'
    repo.commit({"README": "the beginning"}, "baseline")
    origin = repo.git("rev-parse", "HEAD")
    repo.commit({"train.py": TRAIN, "sealrun.toml": policy}, "an idea that was discarded")
    run = _signed_run(maker)
    assert maker.json("verify-run", run)["holds"]
    repo.git("reset", "-q", "--hard", origin)
    file = _exported(maker, run, tmp_path)
    assert any(one["path"] == "data/0" for one in Parts.of(file).run["files"])
    other = _receiver(maker, repo, file, tmp_path)
    api = client()
    image = maker.json("show", run)["run"]["image_id"]
    api.remove_image(image, force=True)
    try:
        found = other.json("reproduce", run)
    finally:
        other.stop_guard()
    assert found["image_id"] == image
    assert found["likeness"] == "outputs-identical"
    (again,) = found["repetitions"]
    assert again["image_id"] == image
    assert again["metric"] == 0.75
    shutil.rmtree(data)


TELLING = """\
import os, pathlib
pathlib.Path('/out/token').write_text(os.environ.get('TEAM_TOKEN', 'none'))
"""


@pytest.mark.engine
def test_a_bundle_takes_no_variable_that_is_not_named(
    maker: Cli, repo: Repo, tmp_path: Path
) -> None:
    """A run from elsewhere names variables; yours reach it only where you name them too."""
    policy = '[sandbox]\npass_variables = ["TEAM_TOKEN"]\n'
    repo.commit({"train.py": TELLING, "sealrun.toml": policy}, "baseline")
    maker.extra["TEAM_TOKEN"] = "of-the-maker"  # noqa: S105 - it opens nothing
    run = _signed_run(maker)
    own = maker("reproduce", run)
    assert "gets these variables of yours: TEAM_TOKEN" in own.stderr
    other = _receiver(maker, repo, _exported(maker, run, tmp_path), tmp_path)
    other.extra["TEAM_TOKEN"] = "of-the-reader"  # noqa: S105 - it opens nothing

    def token(again: str) -> str:
        record = other.json("show", again)["run"]
        return tmp_path.joinpath(record["outputs_path"], "out", "token").read_text()

    try:
        without = other("reproduce", run, "--json")
        found = json.loads(without.stdout)
        assert "left out: TEAM_TOKEN" in without.stderr
        assert "may differ because of it" in without.stderr
        assert found["likeness"] == "incomparable"
        (again,) = found["repetitions"]
        assert "keys of the caller: TEAM_TOKEN then, none now" in again["conditions"]
        assert token(again["run"]) == "none"
        shown = other("show", again["run"]).stdout
        assert f"the variable TEAM_TOKEN, which run {run} was given, was left out" in shown
        wrong = other("reproduce", run, "--pass-variable", "HOME", status=2)
        assert "was not given HOME" in wrong.stderr
        named = other("reproduce", run, "--json", "--pass-variable", "TEAM_TOKEN", status=None)
        assert "gets these variables of yours: TEAM_TOKEN" in named.stderr
        (again,) = json.loads(named.stdout)["repetitions"]
        assert token(again["run"]) == "of-the-reader"
    finally:
        other.stop_guard()


@pytest.mark.engine
@pytest.mark.soak
def test_a_second_engine_makes_the_same_image(maker: Cli, repo: Repo, tmp_path: Path) -> None:
    """An engine of its own, whose store never saw an image: the same id, the same metric."""
    repo.commit({"train.py": TRAIN}, "an idea")
    run = _signed_run(maker)
    file = _exported(maker, run, tmp_path)
    other = _receiver(maker, repo, file, tmp_path)
    second = private_engine.up(other.places, Silent())
    try:
        other.extra["DOCKER_HOST"] = f"unix://{second.socket}"
        found = other.json("reproduce", run)
    finally:
        other.stop_guard()
        private_engine.down(other.places, purge=True)
    image = maker.json("show", run)["run"]["image_id"]
    (again,) = found["repetitions"]
    assert (again["image_id"], again["metric"]) == (image, 0.75)
    assert found["likeness"] == "outputs-identical"
    made_there = other.json("show", again["run"])["run"]
    assert made_there["loading"]["way"] == "full"
    assert made_there["engine"]["details"]["private"] is True


@pytest.mark.engine
def test_an_engine_loads_a_full_bundle_as_it_is(maker: Cli, repo: Repo, tmp_path: Path) -> None:
    """The file is an image archive: ``docker load`` gives the image that the record names."""
    repo.commit({"train.py": TRAIN}, "an idea")
    run = _signed_run(maker)
    file = _exported(maker, run, tmp_path)
    image = maker.json("show", run)["run"]["image_id"]
    api = client()
    api.remove_image(image, force=True)
    with file.open("rb") as stream:
        list(api.load_image(stream))
    assert api.inspect_image(f"sealrun-run:{run.lower()}")["Id"] == image
    api.remove_image(image, force=True)


@pytest.mark.soak
def test_skopeo_reads_the_image_in_a_bundle(made: Made, tmp_path: Path) -> None:
    """As an OCI archive and as docker's: the config is the one on record, layers in order."""
    plain = tmp_path / "bundle.tar"
    plain.write_bytes(gzip.decompress(made.full.read_bytes()))
    parts = Parts.of(made.full)
    for kind in ("oci-archive", "docker-archive"):
        done = subprocess.run(
            ["skopeo", "inspect", "--config", "--raw", f"{kind}:{plain}"],
            capture_output=True,
            check=True,
        )
        assert sha256(done.stdout.rstrip(b"\n")) == parts.run["image"]["config"]
    with tarfile.open(plain) as archive:
        assert archive.getnames()[0] == "bundle.json"
