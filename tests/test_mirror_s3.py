"""The record outlives the machine in a bucket too: spoken to over HTTP by the real client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from _cli import Cli
from _http import served
from sealrun.errors import SealrunError
from sealrun.mirror import config, s3line
from sealrun.mirror.format import EVENTS, line_name
from sealrun.mirror.line import Change, Unreachable
from test_mirror import Machine, elsewhere, left_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from _git import Repo

SECRET = "opens-nothing-0123456789"  # noqa: S105 - it opens nothing
BUCKET = "nights"


@dataclass
class S3:
    """A store that speaks S3, with one bucket."""

    url: str
    bucket: str = BUCKET
    client: Any = field(repr=False, default=None)

    @property
    def text(self) -> str:
        """A destination in it."""
        return (
            f'[destination.store]\ntype = "s3"\nbucket = "{self.bucket}"\nprefix = "me/loops"\n'
            f'endpoint = "{self.url}"\n'
        )

    def objects(self) -> dict[str, int]:
        """Return the size of each object by its key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", ())}

    def head(self) -> str:
        """Return the key of the one head."""
        (found,) = [key for key in self.objects() if key.endswith("head.json")]
        return found

    def read(self, key: str) -> bytes:
        """Return an object."""
        content: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The store, over HTTP."""
    httpd = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    httpd.start()
    host, port = httpd.get_host_and_port()
    yield f"http://{host}:{port}"
    httpd.stop()


@pytest.fixture
def store(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> S3:
    """A bucket of this test's own, and credentials in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDCALLER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    bucket = f"{BUCKET}-{abs(hash(request.node.name)) % 10**9}"
    client.create_bucket(Bucket=bucket)
    return S3(server, bucket, client)


@pytest.fixture
def machine(repo: Repo, tmp_path: Path, store: S3) -> Machine:
    """A machine with three runs on record, of which the second was discarded, that mirrors to S3."""
    repo.commit({"train.py": "pass\n"}, "baseline")
    machine = Machine(repo, Cli(repo.path, tmp_path / "home"))
    machine.run()
    machine.run(kept=False)
    machine.run()
    machine.configure(store.text)
    return machine


def test_every_row_is_there_again_on_another_machine(
    machine: Machine, store: S3, tmp_path: Path
) -> None:
    """Log, show, alerts, outputs and pins come back from the bucket, held against the anchor."""
    machine.now()
    (row,) = machine.status()
    assert (row["state"], row["events"], row["head"]) == ("whole", 12, machine.head())
    assert row["leads_to"] == f"s3://{store.bucket}/me/loops at {store.url}"
    assert all(key.startswith("me/loops/sealrun-mirror-1/") for key in store.objects())
    other = elsewhere(machine, tmp_path)
    # By the destination's name, where the file is brought along.
    (other.home / "config").mkdir(parents=True)
    (other.home / "config" / "mirror.toml").write_text(store.text)
    found = other.json("restore", "store", "--anchor", machine.head())
    assert (found["runs"], found["events"], found["anchored"]) == (3, 12, True)
    assert other.json("log") == machine.cli.json("log")
    for run in machine.runs:
        assert other.json("show", run) == machine.cli.json("show", run)
        assert other("logs", run).stdout == machine.cli("logs", run).stdout
    assert (
        machine.runs[1]
        in subprocess.run(
            ["git", "show", f"refs/sealrun/runs/{machine.runs[1]}:train.py"],
            cwd=other.directory,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    )


def test_a_url_is_enough_on_a_new_machine(machine: Machine, store: S3, tmp_path: Path) -> None:
    """`s3://BUCKET/PREFIX` restores; which store that is, the AWS client's own settings say."""
    machine.now()
    other = elsewhere(machine, tmp_path)
    other.extra["AWS_ENDPOINT_URL_S3"] = store.url
    other.extra["AWS_REGION"] = "us-east-1"
    assert other.json("restore", f"s3://{store.bucket}/me/loops")["runs"] == 3
    said = other("restore", f"s3://{store.bucket}/elsewhere", status=2).stderr
    assert "holds no mirror" in said


def test_it_is_caught_up_and_what_is_not_named_any_more_is_removed(
    machine: Machine, store: S3, tmp_path: Path
) -> None:
    """Later runs go over segment bounds; only pieces that the head names stay, and nothing else goes."""
    machine.now()
    store.client.put_object(Bucket=store.bucket, Key="me/loops/mine.txt", Body=b"of somebody")
    folder = store.head().removesuffix("head.json") + "parts/000001/"
    store.client.put_object(Bucket=store.bucket, Key=folder + "0" * 64, Body=b"left by a death")
    store.client.put_object(Bucket=store.bucket, Key=folder + "notes", Body=b"no piece")
    for _ in range(EVENTS // 4 + 2):
        machine.run()
    assert machine.now()[0]["events"] == 4 * len(machine.runs)
    assert machine.status()[0]["state"] == "whole"
    keys = store.objects()
    assert folder + "0" * 64 not in keys
    assert {"me/loops/mine.txt", folder + "notes"} <= keys.keys()
    other = elsewhere(machine, tmp_path)
    other.extra["AWS_ENDPOINT_URL_S3"] = store.url
    found = other.json("restore", f"s3://{store.bucket}/me/loops", "--anchor", machine.head())
    assert found["runs"] == len(machine.runs)


def test_what_was_changed_in_the_bucket_is_refused(
    machine: Machine, store: S3, tmp_path: Path
) -> None:
    """A changed, cut, larger or missing object refuses the restore with the reason; nothing is put."""
    machine.now()
    other = elsewhere(machine, tmp_path)
    other.extra["AWS_ENDPOINT_URL_S3"] = store.url
    piece = next(key for key in store.objects() if "/parts/" in key)
    before = store.read(piece)
    for content in (before[:-1], before + b"x", bytes([before[0] ^ 1]) + before[1:], None):
        if content is None:
            store.client.delete_object(Bucket=store.bucket, Key=piece)
        else:
            store.client.put_object(Bucket=store.bucket, Key=piece, Body=content)
        said = other("restore", f"s3://{store.bucket}/me/loops", status=125).stderr
        assert any(word in said for word in ("cut", "changed", "larger", "missing")), said
        assert left_by(other) == []
    store.client.put_object(Bucket=store.bucket, Key=piece, Body=before)
    store.client.put_object(Bucket=store.bucket, Key=store.head(), Body=b'{"format": 1}')
    assert (
        "cannot be believed" in other("restore", f"s3://{store.bucket}/me/loops", status=125).stderr
    )
    assert machine.status(status=125)[0]["state"] == "damaged"


def test_two_writers_of_one_line_do_not_write_over_each_other(machine: Machine, store: S3) -> None:
    """A head that was replaced since it was read stays; the write that came late is told so."""
    machine.now()
    place = config.bucket(f"s3://{store.bucket}/me/loops").model_copy(
        update={"endpoint": store.url}
    )
    written_by = machine.cli.json("mirror", "status")["machine"]
    name = line_name(machine.identity, written_by)
    one, other, late = (s3line.S3Line(s3line.connect(place), name) for _ in range(3))
    assert one.head() == other.head()
    one.write(Change((), {}, b"first"))
    for _ in range(2):
        with pytest.raises(Unreachable, match="somebody else wrote this line"):
            other.write(Change((), {}, b"second"))
    # It never read one: it believes that it begins.
    with pytest.raises(Unreachable, match="somebody else wrote this line"):
        late.write(Change((), {}, b"third"))
    assert store.read(store.head()) == b"first"
    one.write(Change((), {}, b"fourth"))
    assert store.read(store.head()) == b"fourth"


def test_credentials_are_the_callers_and_stand_nowhere(
    machine: Machine, store: S3, tmp_path: Path
) -> None:
    """Profile and files of the AWS client are used; no key is in a state file, the bucket or a message."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        machine.cli.extra[name] = ""
    (row,) = machine.now(status=125)
    assert "no AWS credentials" in row["why"]
    (tmp_path / "aws-credentials").write_text(
        f"[night]\naws_access_key_id = AKIDNIGHT\naws_secret_access_key = {SECRET}\n"
    )
    machine.configure(store.text + 'profile = "night"\n')
    assert machine.now()[0]["whole"] is True
    machine.configure(store.text + 'profile = "day"\n')
    (row,) = machine.now(status=125)
    assert "the AWS configuration cannot be used: ProfileNotFound" in row["why"]
    kept = [file.read_bytes() for file in machine.cli.home.rglob("*") if file.is_file()]
    sent = [store.read(key) for key in store.objects()]
    assert all(b"AKIDNIGHT" not in one and SECRET.encode() not in one for one in kept + sent)


def test_a_run_is_mirrored_in_the_background(machine: Machine, store: S3) -> None:
    """The process that mirrors after a run gets the AWS client's variables and nothing else of them."""
    from sealrun.mirror import after_run
    from sealrun.mirror.after import _variables

    assert {"AWS_ACCESS_KEY_ID", "HTTPS_PROXY"} <= _variables({"a": {"type": "s3"}})
    assert "AWS_ACCESS_KEY_ID" not in _variables({"a": {"type": "directory"}})
    os.environ["SEALRUN_HOME"] = str(machine.cli.home)
    try:
        machine.configure("[mirror]\nsettle = 0\n" + store.text)
        assert after_run(machine.cli.places, machine.repo.find(), machine.identity) is None
    finally:
        del os.environ["SEALRUN_HOME"]
    until = time.monotonic() + 60
    while not [key for key in store.objects() if key.endswith("head.json")]:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('bucket = "nights"\nendpoint = "http://store.example.com"', "nothing protects"),
        ('bucket = "nights"\nendpoint = "https://me:pw@store.example.com"', "without a user"),
        ('bucket = "UPPER"', "destination.store.bucket"),
        ('bucket = "nights"\nprefix = "../up/"', "destination.store.prefix"),
        ('bucket = "nights"\nsecret_access_key = "x"', "unknown key"),
        ("layers = true", "destination.store.bucket"),
    ],
)
def test_a_configuration_that_is_wrong_names_the_line(
    machine: Machine, text: str, said: str
) -> None:
    """A store without protection, a name that is none, a key in the file: each is said with its line."""
    machine.configure(f'[destination.store]\ntype = "s3"\n{text}\n')
    words = machine.cli("mirror", "status", status=2).stderr
    assert said in words
    assert "mirror.toml:" in words
    assert "me:pw" not in words


def test_an_answer_that_is_lost_is_no_other_writer(store: S3) -> None:
    """A head that was stored while the answer broke off is asked for again, and is ours."""
    with _answering_late(store.url) as url:
        place = config.bucket(f"s3://{store.bucket}").model_copy(update={"endpoint": url})
        line = s3line.S3Line(s3line.connect(place), f"{'a' * 32}/{'b' * 16}")
        assert line.head() is None
        for content in (b"first", b"second"):
            line.write(Change((), {}, content))
            assert store.read(store.head()) == content


def _answering_late(store: str) -> AbstractContextManager[str]:
    """Pass on to a store; of each object that is put twice the first answer is trouble."""
    trouble: set[bytes] = set()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = HTTPConnection(urlsplit(store).netloc)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            late = self.command == "PUT" and body not in trouble
            trouble.update([body] if late else [])
            self.send_response(500 if late else answer.status)
            for name, value in answer.headers.items():
                if name.lower() in ("etag", "content-type"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(0 if late else len(content)))
            self.end_headers()
            self.wfile.write(b"" if late else content)

        do_GET = _pass_on  # noqa: N815 - the names that http.server looks for
        do_PUT = _pass_on  # noqa: N815 - likewise

    return served(Handler)


def test_a_store_that_is_gone_or_refuses_is_said_and_holds_nothing_up(
    machine: Machine, store: S3, tmp_path: Path
) -> None:
    """A missing bucket, a closed port and rubbish for an answer are trouble, each with what to do."""
    machine.configure(store.text.replace(store.bucket, "not-there"))
    (row,) = machine.now(status=125)
    assert "the store answered NoSuchBucket" in row["why"]
    machine.configure(store.text.replace(store.url, "http://127.0.0.1:9"))
    (row,) = machine.now(status=125)
    assert "EndpointConnectionError" in row["why"]
    (tmp_path / "disk").mkdir()
    disk = f'[destination.disk]\ntype = "directory"\npath = "{tmp_path / "disk"}"\n'
    with _rubbish() as url:
        machine.configure(store.text.replace(store.url, url) + disk)
        rows = {row["name"]: row["whole"] for row in machine.now(status=125)}
    assert rows == {"store": False, "disk": True}


def _rubbish() -> AbstractContextManager[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _rubbish(self) -> None:
            self.send_response(500)
            self.send_header("Content-Length", "19")
            self.end_headers()
            self.wfile.write(b"<Error>\x1b[2Jno XML<<")

        do_GET = _rubbish  # noqa: N815 - the names that http.server looks for
        do_PUT = _rubbish  # noqa: N815 - likewise

    return served(Handler)


def test_a_store_without_conditions_is_written_all_the_same(
    store: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a store does not know conditional writes, the head is written without one."""
    from botocore.exceptions import ClientError

    place = config.bucket(f"s3://{store.bucket}").model_copy(update={"endpoint": store.url})
    connected = s3line.connect(place)
    true_put = connected.client.put_object

    def put(**asked: Any) -> Any:  # noqa: ANN401 - botocore ships no types
        if asked.keys() & {"IfMatch", "IfNoneMatch"}:
            raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
        return true_put(**asked)

    monkeypatch.setattr(connected.client, "put_object", put)
    line = s3line.S3Line(connected, f"{'a' * 32}/{'b' * 16}")
    assert line.head() is None
    line.write(Change((), {}, b"head"))
    assert line.head() == b"head"


def test_without_the_extra_it_says_what_to_install() -> None:
    """Where the AWS client is not installed, the error names the extra."""
    script = (
        "import sys; sys.modules['boto3'] = None\n"
        "from sealrun.mirror import config, s3line\n"
        "try:\n    s3line.connect(config.bucket('s3://nights'))\n"
        "except config.MirrorError as error:\n    print(error.message, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "sealrun[s3]" in done.stdout


def test_a_url_that_names_no_bucket_is_refused() -> None:
    """Only `s3://BUCKET/PREFIX` with a bucket's name is taken."""
    for url in ("s3://", "s3://A", "s3://nights/../x", "s3://nights/a//b"):
        with pytest.raises(SealrunError):
            config.bucket(url)
