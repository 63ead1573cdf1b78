"""Statements about runs: made from the record, signed, and checked, also by others' programs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement as TheirStatement
from in_toto_attestation.v1.statement_pb2 import Statement as TheirMessage
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from _bundles import WRONG, spots_of
from _cli import Cli
from _signed import LOCK, LOG, MODEL, ODD, Site, sha256
from sealrun.errors import UsageError
from sealrun.ledger import Anchor, Signed
from sealrun.provenance import envelope, sign_run
from sealrun.provenance.faults import KeyFault
from sealrun.provenance.keys import Keys, PublicKey, verifier
from sealrun.provenance.signing import FILE, left_by
from sealrun.provenance.statement import statement
from sealrun.provenance.verification import OnRecord, Result, Verified, verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _git import Repo


@pytest.fixture
def cli(repo: Repo) -> Cli:
    """A command line in an empty repository."""
    return Cli(repo.path, repo.path.parent / "home")


@pytest.fixture
def site(repo: Repo, cli: Cli) -> Site:
    """The same, as tests write to it."""
    return Site(repo, cli.places)


def signed_run(site: Site) -> str:
    """Make a key and a signed run; return the run's id."""
    keys = Keys.of(site.places)
    if not keys.exists:
        keys.create()
    run = site.run()
    sign(site, run)
    return run


def sign(site: Site, run: str) -> Signed | None:
    """Sign a run as the end of a run does."""
    with site.ledger() as ledger:
        return sign_run(run, ledger, site.repo.find(), site.places)


def envelope_of(site: Site, run: str) -> dict[str, Any]:
    """Return a run's envelope."""
    document: dict[str, Any] = json.loads((site.directory(run) / FILE).read_bytes())
    return document


def payload_of(site: Site, run: str) -> dict[str, Any]:
    """Return what was signed about a run."""
    document: dict[str, Any] = json.loads(base64.b64decode(envelope_of(site, run)["payload"]))
    return document


def verified(site: Site, run: str, content: bytes | None = None) -> Verified:
    """Check a run as ``verify-run`` does."""
    with site.ledger() as ledger:
        found = OnRecord(ledger.events(run=run), site.id, site.directory(run), site.stored, ledger)
        content = content or (site.directory(run) / FILE).read_bytes()
        return verify(content, Keys.of(site.places).all(), found, run)


# -- what a statement says -------------------------------------------------------------------------


def test_a_statement_is_what_in_toto_and_slsa_describe(site: Site) -> None:
    """The frameworks' own messages take every field but our extension, and find it valid."""
    run = signed_run(site)
    document = payload_of(site, run)
    message = json_format.ParseDict(document, TheirMessage())
    TheirStatement.copy_from_pb(message).validate()
    predicate = dict(document["predicate"])
    extension = predicate.pop("sealrun_run")
    provenance = json_format.ParseDict(predicate, Provenance())
    assert provenance.run_details.metadata.invocation_id == run
    assert provenance.build_definition.build_type == "urn:x-sealrun:experiment:1"
    named = {
        one.name: dict(one.digest) for one in provenance.build_definition.resolved_dependencies
    }
    assert named["commit"] == {"gitCommit": site.repo.git("rev-parse", "HEAD")}
    assert named["tree"] == {"gitTree": site.repo.git("rev-parse", "HEAD^{tree}")}
    assert named["lock"]["gitBlob"] == site.repo.git("rev-parse", "HEAD:requirements.txt")
    assert named["lock"]["sha256"] == sha256(LOCK.encode())
    assert named["data:/data"] == {"sha256": "7" * 64}
    assert {"image", "image-manifest", "init", "base-layer-0"} <= named.keys()
    assert {"environment-layer-1", "tree-layer-2"} <= named.keys()
    assert extension["verdict"] == "flagged"
    assert extension["mutations"]["alerts"] == 1
    assert extension["protection"] == "same-user"


def test_subjects_are_log_and_outputs(site: Site) -> None:
    """Each has the digest of its bytes, also where no digest was on record."""
    document = payload_of(site, signed_run(site))
    subjects = {one["name"]: one["digest"]["sha256"] for one in document["subject"]}
    assert subjects["log"] == sha256(LOG)
    assert subjects["outputs/out/model.bin"] == sha256(MODEL)
    (odd,) = (name for name in subjects if "odd" in name)
    assert subjects[odd] == sha256(b"odd")
    assert "\ufffdDCFF" in odd
    assert len(subjects) == 5


def test_no_value_of_a_variable_is_in_a_statement(site: Site) -> None:
    """Names are; a value may be a secret, and statements are shown around."""
    document = payload_of(site, signed_run(site))
    text = json.dumps(document)
    assert "never in a statement" not in text
    parameters = document["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters["variables"] == ["HOME", "TOKEN", "VIRTUAL_ENV"]


def test_the_same_record_gives_the_same_statement(site: Site) -> None:
    """It is made again, byte for byte, after later runs and their signatures too."""
    run = signed_run(site)
    first = base64.b64decode(envelope_of(site, run)["payload"])
    said = json.loads(first)["predicate"]["sealrun_run"]["ledger"]
    signed_run(site)
    with site.ledger() as ledger:
        events = ledger.events(run=run)
        left = left_by(events, site.directory(run), site.repo.find())
        again = statement(events, Anchor(said["seq"], said["head"]), site.id, left)
    assert again == first


def test_only_an_ended_run_is_signed(site: Site) -> None:
    """One under way is refused, and nothing is written."""
    from _ledger import opened

    Keys.of(site.places).create()
    opening = opened()
    with site.ledger() as ledger:
        ledger.append(opening)
    with pytest.raises(UsageError, match="has ended"):
        sign(site, opening.run or "")
    assert not (site.directory(opening.run or "") / FILE).exists()


def test_a_run_that_left_nothing_has_its_record_as_subject(site: Site) -> None:
    """A refused run has neither log nor outputs, and its statement is valid."""
    Keys.of(site.places).create()
    run = site.run(outputs=(), outcome="not-started")
    shutil.rmtree(site.directory(run))
    sign(site, run)
    document = payload_of(site, run)
    assert [one["name"] for one in document["subject"]] == ["record"]
    TheirStatement.copy_from_pb(json_format.ParseDict(document, TheirMessage())).validate()
    assert verified(site, run).holds


# -- the signature, checked by others ---------------------------------------------------------------


def test_openssl_alone_finds_the_signature_good(site: Site, tmp_path: Path) -> None:
    """Over the pre-authentication encoding, with the printed public key; not over other bytes."""
    run = signed_run(site)
    document = envelope_of(site, run)
    payload, kind = base64.b64decode(document["payload"]), document["payloadType"].encode()
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    (tmp_path / "pae").write_bytes(encoded)
    (tmp_path / "sig").write_bytes(base64.b64decode(document["signatures"][0]["sig"]))
    (tmp_path / "pub").write_text(Keys.of(site.places).own().pem)
    command: list[str | Path] = [
        *("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "pub", "-rawin"),
        *("-in", tmp_path / "pae", "-sigfile", tmp_path / "sig"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Verified Successfully" in done.stdout
    (tmp_path / "pae").write_bytes(encoded.replace(b"flagged", b"clean!!"))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_securesystemslib_alone_finds_the_signature_good(site: Site) -> None:
    """With nothing of ours but the file and the key."""
    run = signed_run(site)
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = Keys.of(site.places).own().pem.encode()
    key = SSlibKey.from_crypto(load_pem_public_key(pem))
    assert list(Envelope.from_dict(envelope_of(site, run)).verify([key], 1)) == [key.keyid]


# -- what is found ---------------------------------------------------------------------------------


def test_every_check_of_an_untouched_run_holds(site: Site) -> None:
    """Each says so, and none is left out."""
    found = verified(site, signed_run(site))
    assert [one.name for one in found.checks] == [
        *("signature", "record", "chain", "git", "log", "outputs")
    ]
    assert {one.result for one in found.checks} == {Result.HOLDS}


def _log(site: Site, run: str) -> None:
    file = site.directory(run) / "log"
    file.write_bytes(LOG.replace(b"0.9979", b"0.8979"))


def _log_gone(site: Site, run: str) -> None:
    (site.directory(run) / "log").unlink()


def _log_linked(site: Site, run: str) -> None:
    file = site.directory(run) / "log"
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def _output(site: Site, run: str) -> None:
    (site.directory(run) / "outputs/out/model.bin").write_bytes(MODEL[:-1] + b"S")


def _odd_output(site: Site, run: str) -> None:
    (site.directory(run) / "outputs/out" / os.fsdecode(ODD)).write_bytes(b"even")


def _commit(site: Site, run: str) -> None:
    commit = site.repo.git("rev-parse", f"refs/sealrun/runs/{run}")
    blob = site.repo.git("rev-parse", f"{commit}:train.py")
    file = site.repo.path / ".git/objects" / blob[:2] / blob[2:]
    file.chmod(0o600)
    file.unlink()


def _event(site: Site, run: str, change: str) -> None:
    with sqlite3.connect(site.places.ledger(site.id)) as connection:
        connection.execute("DROP TRIGGER events_keep_their_content")
        connection.execute("DROP TRIGGER events_stay")
        connection.execute(change, {"run": run})


def _verdict(site: Site, run: str) -> None:
    _event(
        site,
        run,
        "UPDATE events SET payload = replace(payload, '\"flagged\"', '\"clean\"')"
        " WHERE run = :run AND kind = 'run-ended'",
    )


def _alert_gone(site: Site, run: str) -> None:
    _event(site, run, "DELETE FROM events WHERE run = :run AND kind = 'alert'")


def _signature_unrecorded(site: Site, run: str) -> None:
    _event(site, run, "DELETE FROM events WHERE run = :run AND kind = 'signed'")


def _payload(site: Site, run: str) -> None:
    document = envelope_of(site, run)
    payload = base64.b64decode(document["payload"]).replace(b'"flagged"', b'"clean"')
    document["payload"] = base64.b64encode(payload).decode()
    (site.directory(run) / FILE).write_text(json.dumps(document))


def _kind(site: Site, run: str) -> None:
    document = envelope_of(site, run) | {"payloadType": "application/json"}
    (site.directory(run) / FILE).write_text(json.dumps(document))


def _signature(site: Site, run: str) -> None:
    document = envelope_of(site, run)
    raw = bytearray(base64.b64decode(document["signatures"][0]["sig"]))
    raw[7] ^= 1
    document["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    (site.directory(run) / FILE).write_text(json.dumps(document))


def _stranger(site: Site, run: str) -> None:
    """Sign something else with another key, and say that it was the known one."""
    from securesystemslib.signer import CryptoSigner

    other = CryptoSigner.generate_ed25519()
    document = envelope_of(site, run)
    payload = base64.b64decode(document["payload"]).replace(b'"flagged"', b'"clean"')
    forged = json.loads(envelope.seal(payload, other))
    forged["signatures"][0]["keyid"] = document["signatures"][0]["keyid"]
    (site.directory(run) / FILE).write_text(json.dumps(forged))


def _swapped(site: Site, run: str) -> None:
    from securesystemslib.signer import CryptoSigner

    payload = base64.b64decode(envelope_of(site, run)["payload"])
    (site.directory(run) / FILE).write_bytes(
        envelope.seal(payload, CryptoSigner.generate_ed25519())
    )


def _other_run(site: Site, run: str) -> None:
    other = signed_run(site)
    shutil.copy(site.directory(other) / FILE, site.directory(run) / FILE)


def _lie(site: Site, run: str) -> None:
    """Sign another verdict with the right key: the owner's own lie."""
    payload = base64.b64decode(envelope_of(site, run)["payload"])
    lie = payload.replace(b'"verdict":"flagged"', b'"verdict":"clean"')
    assert lie != payload
    (site.directory(run) / FILE).write_bytes(envelope.seal(lie, Keys.of(site.places).signer()))


def _no_json(site: Site, run: str) -> None:
    (site.directory(run) / FILE).write_bytes(b"\xff\xfe{")


def _deep(site: Site, run: str) -> None:
    (site.directory(run) / FILE).write_text("[" * 100_000)


def _half(site: Site, run: str) -> None:
    file = site.directory(run) / FILE
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("tamper", "check", "words"),
    [
        (_log, "log", "was changed"),
        (_log_gone, "log", "is gone"),
        (_log_linked, "log", "is gone"),
        (_output, "outputs", "was changed"),
        (_odd_output, "outputs", "was changed"),
        (_commit, "git", ""),
        (_verdict, "record", "otherwise"),
        (_alert_gone, "record", "not those that were signed"),
        (_signature_unrecorded, "chain", "does not say"),
        (_payload, "signature", "does not hold"),
        (_kind, "signature", "no statement"),
        (_signature, "signature", "does not hold"),
        (_stranger, "signature", "does not hold"),
        (_swapped, "signature", "not known here"),
        (_other_run, "record", "is about run"),
        (_lie, "record", "otherwise"),
        (_no_json, "signature", "no envelope"),
        (_deep, "signature", "no envelope"),
        (_half, "signature", "no envelope"),
    ],
)
def test_what_was_tampered_with_is_named(
    site: Site, tamper: Callable[[Site, str], None], check: str, words: str
) -> None:
    """The check that compares it fails, with the reason."""
    run = signed_run(site)
    tamper(site, run)
    # The spool holds what was committed; what git has lost shows once that cache is gone.
    shutil.rmtree(site.places.cache, ignore_errors=True)
    found = verified(site, run)
    failed = {one.name: one.text for one in found.checks if one.result is Result.FAILS}
    assert not found.holds
    assert words in failed[check]


def test_a_cut_ledger_is_found_against_the_statement(site: Site) -> None:
    """The head in the statement is the anchor that shows a truncation."""
    run = signed_run(site)
    content = (site.directory(run) / FILE).read_bytes()
    _event(site, run, "DELETE FROM events WHERE seq >= 5")
    found = verified(site, run, content)
    assert not found.holds
    failed = {one.name: one.text for one in found.checks if one.result is Result.FAILS}
    assert "ends with event 4" in failed["chain"]


@pytest.mark.parametrize("seed", range(12))
def test_no_statement_ends_in_anything_but_an_answer(site: Site, seed: int) -> None:
    """Any value in any place, signed by a trusted key: each is told as a failed check."""
    run = signed_run(site)
    document = payload_of(site, run)
    random = Random(seed)  # noqa: S311 - it decides what a test tries
    spots = list(spots_of(document))
    for _ in range(12):
        changed = json.loads(json.dumps(document))
        *way, last = random.choice(spots)
        inner = changed
        for step in way:
            inner = inner[step]
        wrong = random.choice(WRONG)
        if type(inner[last]) is type(wrong) and inner[last] == wrong:
            continue
        inner[last] = wrong
        lie = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        found = verified(site, run, envelope.seal(lie, Keys.of(site.places).signer()))
        assert not found.holds, (way, last, wrong)


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b'{"payload": "", "payloadType": 1, "signatures": []}',
        b'{"payload": "", "payloadType": "x", "signatures": [{"keyid": 1, "sig": ""}]}',
        b'{"payload": "", "payloadType": "x", "signatures": [{"keyid": [], "sig": ""}]}',
        b'{"payload": "", "payloadType": "x", "signatures": [1]}',
        b'{"payload": 7, "payloadType": "x", "signatures": {}}',
        b'{"payload": "", "payloadType": "application/vnd.in-toto+json", "signatures": []}',
    ],
)
def test_no_envelope_ends_in_anything_but_an_answer(content: bytes) -> None:
    """What is no envelope, or nobody's, fails its first check."""
    (check,) = verify(content, [], None, None).checks
    assert check.result is Result.FAILS


# -- keys ------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_signed_and_nothing_imported(site: Site) -> None:
    """A run costs one look at a file; the library is not even imported."""
    run = site.run()
    assert sign(site, run) is None
    assert not (site.directory(run) / FILE).exists()
    script = "import sys, sealrun.provenance; print('securesystemslib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_key_is_private_from_the_start_and_never_overwritten(site: Site) -> None:
    """0600 in a directory of 0700; a second one is refused."""
    keys = Keys.of(site.places)
    made = keys.create()
    assert keys.private.stat().st_mode & 0o777 == 0o600
    assert keys.directory.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UsageError, match="already"):
        keys.create()
    assert keys.own() == made


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_not_used(site: Site, mode: int) -> None:
    """Neither where the file is loose nor where its directory is."""
    keys = Keys.of(site.places)
    keys.create()
    keys.private.chmod(mode)
    with pytest.raises(KeyFault, match="others can"):
        keys.signer()
    keys.private.chmod(0o600)
    keys.directory.chmod(0o755)
    with pytest.raises(KeyFault, match="others can"):
        keys.signer()


def test_a_key_behind_a_link_or_a_pipe_is_not_used(site: Site, tmp_path: Path) -> None:
    """A link is not followed, a pipe not waited for."""
    keys = Keys.of(site.places)
    keys.create()
    keys.private.rename(tmp_path / "key")
    keys.private.symlink_to(tmp_path / "key")
    with pytest.raises(KeyFault):
        keys.signer()
    keys.private.unlink()
    os.mkfifo(keys.private, 0o600)
    with pytest.raises(KeyFault, match="no regular file"):
        keys.signer()


def test_the_command_shows_public_halves_alone(cli: Cli, site: Site, tmp_path: Path) -> None:
    """Create, show, list, import: nothing private is printed, and openssl reads what is."""
    printed = [cli("key", "create"), cli("key", "show"), cli("key", "list")]
    private = Keys.of(site.places).private.read_text()
    secret = private.splitlines()[1]
    for done in printed:
        assert secret not in done.stdout + done.stderr
        assert "PRIVATE" not in done.stdout + done.stderr
    pem = tmp_path / "me.pem"
    pem.write_text(printed[1].stdout)
    subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", pem, "-noout"], check=True, capture_output=True
    )
    other = Cli(cli.directory, tmp_path / "other")
    other("key", "import", str(pem), "--name", "colleague")
    (listed,) = other.json("key", "list")["keys"]
    assert listed["name"] == "colleague"
    assert listed["id"] == Keys.of(site.places).own().id
    other("key", "import", str(pem), "--name", "own", status=2)
    other("key", "import", str(pem), "--name", "../x", status=2)
    other("key", "import", "/dev/null", status=125)
    (tmp_path / "rsa.pem").write_text(RSA)
    assert "no ed25519" in other("key", "import", str(tmp_path / "rsa.pem"), status=2).stderr
    moved = tmp_path / "moved.pem"
    moved.write_text(private)
    assert "others can" in other("key", "import", str(moved), status=125).stderr
    moved.chmod(0o600)
    other("key", "import", str(moved))
    assert other.json("key", "show")["key"]["id"] == listed["id"]


RSA = """-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBALdjPzUmdaBHYZPNvJBtgNdgFVL4bqVF
6EZPTFBPNBAkZpRPb0y9c7bIMJHzGvMDUIWkkmsAtZsRTY9G7cCDyOUCAwEAAQ==
-----END PUBLIC KEY-----
"""


def test_a_private_key_in_an_error_is_no_cause_of_a_leak(site: Site) -> None:
    """A damaged key is named by its file; none of its bytes are repeated."""
    keys = Keys.of(site.places)
    keys.create()
    lines = keys.private.read_text().splitlines()
    keys.private.write_text("\n".join([lines[0], lines[1][:-4] + "AAAA", "x", lines[2]]))
    with pytest.raises(UsageError) as caught:
        keys.signer()
    assert lines[1][:10] not in str(caught.value)
    assert caught.value.__cause__ is None


# -- the commands ----------------------------------------------------------------------------------


def test_verify_run_says_each_check_and_fails_with_121(cli: Cli, site: Site) -> None:
    """By id, by its beginning and by file; with --key alone that key counts."""
    run = signed_run(site)
    file = str(site.directory(run) / FILE)
    found = cli.json("verify-run", run)
    assert found["holds"]
    assert found["run"] == run
    assert [one["result"] for one in found["checks"]] == ["holds"] * 6
    assert "holds" in cli("verify-run", run[:20]).stdout
    assert len(cli.json("verify-run", file)["checks"]) == 6
    _log(site, run)
    done = cli("verify-run", run, status=121)
    assert "log was changed" in done.stdout
    stranger = Keys(site.places.data / "stranger")
    stranger.directory.mkdir(mode=0o700)
    public = site.places.data / "stranger.pem"
    public.write_text(stranger.create().pem)
    assert "not known here" in cli("verify-run", run, "--key", str(public), status=121).stdout


def test_a_file_is_checked_where_no_repository_is(cli: Cli, site: Site, tmp_path: Path) -> None:
    """The signature is; the rest is said to be unchecked, which is no success of it."""
    run = signed_run(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(site.directory(run) / FILE, elsewhere / "statement.json")
    found = Cli(elsewhere, cli.home).json("verify-run", "statement.json")
    assert [(one["name"], one["result"]) for one in found["checks"]] == [
        ("signature", "holds"),
        ("record", "not-checked"),
    ]


def test_earlier_runs_are_signed_on_demand_and_say_so(cli: Cli, site: Site) -> None:
    """The statement and the event call it late; without a key nothing is signed."""
    run = site.run()
    assert "there is no key" in cli("key", "sign", run, status=125).stderr
    assert "was not signed" in cli("verify-run", run, status=2).stderr
    cli("key", "create")
    cli("key", "sign", run)
    assert payload_of(site, run)["predicate"]["sealrun_run"]["late"] is True
    assert cli.json("verify-run", run)["holds"]
    shown = cli.json("show", run)["run"]["signed"]
    assert shown["late"] is True
    assert "was signed already" in cli("key", "sign", run).stdout
    (site.directory(run) / FILE).unlink()
    assert "is gone" in cli("verify-run", run, status=2).stderr


def test_a_key_of_the_same_id_is_found_by_its_bytes(site: Site) -> None:
    """A public key that another one's id was written beside does not verify."""
    run = signed_run(site)
    other = Keys(site.places.data / "other")
    other.directory.mkdir(mode=0o700)
    own, forged = Keys.of(site.places).own(), other.create()
    posing = PublicKey(own.id, "posing", forged.pem)
    assert verifier(posing).keyid == forged.id
    found = verify((site.directory(run) / FILE).read_bytes(), [posing], None, None)
    assert not found.holds
