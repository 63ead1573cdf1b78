"""Loading into engines: a real one, and a false one that answers as broken ones do."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socketserver
import stat
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from _image import (
    AWKWARD,
    EXECUTABLE,
    FILE,
    SYMLINK,
    Workshop,
    base_of,
    engine,
    environment_of,
    layer_of,
)
from sealrun.errors import EngineError, StorageFault
from sealrun.image.archive import foundations, stack
from sealrun.image.load import EngineImages, Found, load, reload
from sealrun.image.seal import assemble, seal
from sealrun.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docker import APIClient

    from sealrun.image.archive import Stack
    from sealrun.image.model import SealedImage
    from sealrun.sandbox.protocol import FileState


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Return an empty workshop."""
    return Workshop(tmp_path)


@pytest.fixture
def client() -> Iterator[APIClient]:
    """Return a client of the real engine."""
    found = engine()
    yield found
    found.close()


@pytest.fixture
def images(workshop: Workshop, client: APIClient) -> Iterator[Callable[..., SealedImage]]:
    """Seal trees on a base that no engine has seen; forget them all afterwards."""
    nonce = os.urandom(16)
    made: list[SealedImage] = []

    def new(text: bytes, *, environment: bool = True, **variables: str) -> SealedImage:
        middle = layer_of(workshop.store, {b"opt/env/mark": nonce}) if environment else None
        image = seal(
            workshop.tree({b"train.py": text}),
            workshop.base(nonce),
            environment_of(middle, **variables),
            workshop.trees,
        ).image
        made.append(image)
        return image

    yield new
    for image in made:
        EngineImages(client, Silent()).forget(stack(image))


def _in_engine(client: APIClient, name: str) -> dict[bytes, tuple[tarfile.TarInfo, bytes]]:
    """Return the workdir of a container of an image, as the engine unpacked it."""
    container = client.create_container(name, ["/none"])
    try:
        stream, _ = client.get_archive(container["Id"], "/workspace")
        content = io.BytesIO(b"".join(stream))
    finally:
        client.remove_container(container["Id"])
    found: dict[bytes, tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(fileobj=content, encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            found[os.fsencode(member.name)] = (member, file.read() if file else b"")
    return found


@pytest.mark.engine
def test_the_engine_unpacks_exactly_what_was_committed(
    workshop: Workshop, client: APIClient
) -> None:
    """Every byte, mode, link and odd name comes out of a created container as committed."""
    image_of = seal(workshop.tree(AWKWARD), workshop.base(), environment_of(), workshop.trees)
    loading = load(image_of.image, client)
    try:
        found = _in_engine(client, loading.engine_image)
    finally:
        EngineImages(client, Silent()).forget(stack(image_of.image))
    root, _ = found.pop(b"workspace")
    assert (stat.S_IMODE(root.mode), root.uid, root.gid) == (0o1777, 0, 0)
    expected = {b"workspace/" + state.path: state for state in image_of.manifest}
    assert set(found) == set(expected)
    for path, (member, content) in found.items():
        assert _same(expected[path], member, content), path
    for path, content_of in AWKWARD.items():
        mode, data = content_of if isinstance(content_of, tuple) else (FILE, content_of)
        member, content = found[b"workspace/" + path]
        assert (os.fsencode(member.linkname) if mode == SYMLINK else content) == data
        assert bool(member.mode & 0o100) == (mode in (EXECUTABLE, SYMLINK))


def _same(state: FileState, member: tarfile.TarInfo, content: bytes) -> bool:
    kind = {tarfile.REGTYPE: "file", tarfile.SYMTYPE: "symlink", tarfile.DIRTYPE: "directory"}
    data = os.fsencode(member.linkname) if member.issym() else content
    digest = None if member.isdir() else hashlib.sha256(data).hexdigest()
    return (state.kind, state.mode, state.size, state.sha256) == (
        kind[member.type],
        stat.S_IMODE(member.mode),
        len(data),
        digest,
    )


@pytest.mark.engine
def test_only_what_the_engine_lacks_travels(
    client: APIClient, images: Callable[..., SealedImage]
) -> None:
    """All layers the first time; then the tree layer and a few kilobytes; then nothing."""
    first, second = images(b"one"), images(b"two")
    loading = load(first, client)
    assert loading.way == "full"
    assert loading.sent > sum(layer.size for layer in first.layers)
    loading = load(second, client)
    assert loading.way == "hybrid"
    assert loading.fallback is None
    assert second.tree_layer.size < loading.sent < second.tree_layer.size + 16_384
    again = load(second, client)
    assert (again.way, again.sent) == ("present", 0)
    assert again.engine_image == loading.engine_image
    facts = client.inspect_image(loading.engine_image)
    assert facts["RootFS"]["Layers"] == [layer.diff_id for layer in second.layers]
    assert facts["Config"]["WorkingDir"] == "/workspace"
    assert not facts["Config"].get("Entrypoint")
    assert not facts["Config"].get("Volumes")
    assert loading.engine_image in (second.image_id, loading.manifest_digest)
    assert len(client.history(loading.engine_image)) == len(second.layers)


@pytest.mark.engine
def test_a_new_environment_travels_without_the_base(
    client: APIClient, images: Callable[..., SealedImage], workshop: Workshop
) -> None:
    """Where only the base is there, environment and tree are sent and the base is not."""
    bare = images(b"one", environment=False)
    load(bare, client)
    environment = environment_of(layer_of(workshop.store, {b"opt/env/big": os.urandom(100_000)}))
    image = assemble(bare.base, environment, bare.tree_layer)
    loading = load(image, client)
    assert loading.way == "hybrid"
    assert environment.layer is not None
    lacking = environment.layer.size + image.tree_layer.size
    assert lacking < loading.sent < lacking + 32_768


@pytest.mark.engine
def test_a_base_that_was_pruned_is_sent_again(
    client: APIClient, images: Callable[..., SealedImage]
) -> None:
    """Where somebody removed everything of ours, everything is sent."""
    first, second = images(b"one"), images(b"two")
    load(first, client)
    EngineImages(client, Silent()).forget(stack(first))
    loading = load(second, client)
    assert loading.way == "full"
    assert loading.sent > sum(layer.size for layer in second.layers)


@pytest.mark.engine
def test_layers_outlive_the_tree_images_that_used_them(
    client: APIClient, images: Callable[..., SealedImage]
) -> None:
    """Removing the image of a tree leaves base and environment in the engine."""
    first, second = images(b"one"), images(b"two")
    client.remove_image(load(first, client).engine_image, force=True)
    assert load(second, client).way == "hybrid"


@pytest.mark.engine
def test_an_image_that_lost_its_tag_gets_it_back(
    client: APIClient, images: Callable[..., SealedImage]
) -> None:
    """A present image is tagged, so that pruning untagged ones does not take it."""
    image = images(b"one")
    loading = load(image, client)
    client.tag(loading.engine_image, "sealrun-tree", "other")
    client.remove_image(stack(image).reference)
    try:
        assert load(image, client).way == "present"
        assert client.inspect_image(stack(image).reference)["Id"] == loading.engine_image
    finally:
        client.remove_image("sealrun-tree:other")


@pytest.mark.engine
def test_an_engine_that_only_claims_the_base_gets_everything(
    client: APIClient, images: Callable[..., SealedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the thin archive fails, the tag goes and the full one follows; the reason is kept."""
    image = images(b"one")
    lower = foundations(image)[-1]
    find = EngineImages.find

    def claims(self: EngineImages, wanted: Stack) -> Found | None:
        there = Found(lower.image_id, lower.diff_ids, ())
        return there if wanted.diff_ids == lower.diff_ids else find(self, wanted)

    monkeypatch.setattr(EngineImages, "find", claims)
    loading = load(image, client)
    assert loading.way == "full"
    assert loading.fallback
    assert loading.sent > sum(layer.size for layer in image.layers)
    assert client.inspect_image(stack(image).reference)["Id"] == loading.engine_image


@pytest.mark.engine
@pytest.mark.parametrize("damage", [b"SCALAR_LR = 0.3", b"SCALAR_LR"])
def test_a_damaged_layer_of_ours_never_becomes_an_image(
    client: APIClient, images: Callable[..., SealedImage], damage: bytes
) -> None:
    """A byte changed in the store, or a file cut short, is a fault that names the file."""
    image = images(b"SCALAR_LR = 0.5")
    path = image.tree_layer.path
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content.replace(b"SCALAR_LR = 0.5", damage))
    with pytest.raises(StorageFault, match=path.name):
        load(image, client)
    assert EngineImages(client, Silent()).inspect(image.image_id) is None
    path.write_bytes(content)
    assert load(image, client).way == "hybrid"


@pytest.mark.engine
def test_an_engine_checks_our_layers_too(
    client: APIClient, images: Callable[..., SealedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were our own check gone, a changed layer would still be refused, with the engine's words."""
    image = images(b"SCALAR_LR = 0.5")
    load(images(b"other"), client)
    path = image.tree_layer.path
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"SCALAR_LR = 0.5", b"SCALAR_LR = 0.3"))
    for reader in ("chunks", "stored_chunks"):
        name = f"sealrun.image.archive.{reader}"
        monkeypatch.setattr(name, lambda layer: [layer.path.read_bytes()])
    with pytest.raises(EngineError):
        load(image, client)
    assert EngineImages(client, Silent()).inspect(image.image_id) is None


@pytest.mark.engine
def test_a_file_changed_in_the_engines_layers_is_repaired_by_reloading(
    client: APIClient, images: Callable[..., SealedImage]
) -> None:
    """The id says nothing about such a change; after a reload the bytes are right again."""
    mark = os.urandom(16).hex().encode()
    image = images(b"SCALAR_LR = 0.5 " + mark)
    loading = load(image, client)
    root = Path(client.info()["DockerRootDir"])
    files = [f for place in _UNPACKED for f in root.glob(f"{place}/workspace/train.py")]
    (unpacked,) = [file for file in files if mark in file.read_bytes()]
    unpacked.write_bytes(b"SCALAR_LR = 0.3 " + mark)
    path = b"workspace/train.py"
    assert load(image, client).way == "present"
    assert _in_engine(client, loading.engine_image)[path][1] == b"SCALAR_LR = 0.3 " + mark
    again = reload(image, client)
    assert again.way == "full"
    assert again.engine_image == loading.engine_image
    assert _in_engine(client, again.engine_image)[path][1] == b"SCALAR_LR = 0.5 " + mark


#: Where a classic store and a containerd store keep unpacked layers, below the engine's root.
_UNPACKED = (
    "overlay2/*/diff",
    "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs",
)


@pytest.mark.engine
def test_reloading_an_image_that_a_container_uses_is_an_error(
    client: APIClient, images: Callable[..., SealedImage]
) -> None:
    """A reload never pulls an image from under a container; the engine's words say so."""
    image = images(b"one")
    container = client.create_container(load(image, client).engine_image, ["/none"])
    try:
        with pytest.raises(EngineError, match="container"):
            reload(image, client)
    finally:
        client.remove_container(container["Id"])


@pytest.mark.engine
def test_progress_counts_every_byte_that_is_sent(
    client: APIClient, images: Callable[..., SealedImage]
) -> None:
    """What the listener is told adds up to what the record says."""
    listener = _Counting()
    loading = load(images(b"one"), client, progress=listener)
    assert loading.sent == listener.done == listener.total


class _Counting:
    """A listener that adds up what it is told, its own task at the same time."""

    total = done = 0

    def task(self, title: str, total: int | None = None) -> _Counting:
        """Count what is announced."""
        assert title
        self.total += total or 0
        return self

    def advance(self, amount: int) -> None:
        """Count what is done."""
        self.done += amount

    def describe(self, text: str) -> None:
        """Ignore it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End."""


class _FalseEngine(socketserver.ThreadingUnixStreamServer):
    """Speaks enough of the engine's API to break at the right place."""

    daemon_threads = True

    def __init__(self, path: str, answer: list[bytes], status: int, claims: dict[str, Any]) -> None:
        super().__init__(path, _Handler)
        self.answer, self.status, self.claims = answer, status, claims
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: _FalseEngine
    protocol_version = "HTTP/1.1"

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.partition("/images/")[2].removesuffix("/json")
        self.server.requests.append(f"GET {name}")
        if "/images/json" in self.path:
            self._reply(200, b"[]")
            return
        found = self.server.claims.get(name)
        self._reply(200, json.dumps(found).encode()) if found else self._reply(
            404, b'{"message":"no such image"}'
        )

    def do_DELETE(self) -> None:
        self.server.requests.append(
            f"DELETE {self.path.partition('/images/')[2].partition('?')[0]}"
        )
        self._reply(200, b"[]")

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self.server.requests.append("POST")
        if not self.server.answer:
            self.close_connection = True
            self.connection.close()
            return
        self._reply(self.server.status, b"".join(self.server.answer))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _false_engine(
    path: Path, answer: list[bytes], status: int = 200, claims: dict[str, Any] | None = None
) -> Iterator[tuple[APIClient, list[str]]]:
    import docker

    socket = path / "engine.sock"
    with _FalseEngine(str(socket), answer, status, claims or {}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            client = docker.APIClient(base_url=f"unix://{socket}", version="1.41")
            yield client, server.requests
            client.close()
        finally:
            server.shutdown()
            thread.join()
            socket.unlink()


@pytest.fixture
def image(workshop: Workshop) -> SealedImage:
    """Return an image of one base layer and a tree."""
    base = base_of(layer_of(workshop.store, {b"etc/mark": b"base"}))
    return seal(workshop.tree({b"a": b"1"}), base, environment_of(), workshop.trees).image


_LOADED = b'{"stream":"Loaded image: x\\n"}\r\n'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([b'{"errorDetail":{"message":"disk on fire"},"error":"disk on fire"}\r\n'], "on fire"),
        ([_LOADED, b'{"errorDetail":{"message":"late trouble"}}\r\n'], "late trouble"),
        ([b'{"stream":"Error unpacking image x: missing blob\\n"}\r\n', _LOADED], "missing blob"),
        ([b'{"status":"failed to extract layer"}\r\n', _LOADED], "failed to extract"),
        ([b'{"error":"write /x: no space left on device"}\r\n'], "no space left"),
        ([b"Error unpacking image, in plain text\n"], "plain text"),
    ],
)
def test_an_error_in_the_answer_is_an_error_whatever_the_status(
    image: SealedImage, tmp_path: Path, answer: list[bytes], words: str
) -> None:
    """HTTP 200 and a line of success do not hide a line of failure."""
    with (
        _false_engine(tmp_path, answer) as (client, _),
        pytest.raises(EngineError, match=words) as caught,
    ):
        load(image, client)
    if "space" in words:
        assert "Free space" in (caught.value.hint or "")


def test_a_refused_load_carries_the_engines_words(image: SealedImage, tmp_path: Path) -> None:
    """A status of 500 is an engine error with its message."""
    with (
        _false_engine(tmp_path, [b'{"message":"out of order"}'], 500) as (client, _),
        pytest.raises(EngineError, match="out of order"),
    ):
        load(image, client)


def test_an_engine_that_hangs_up_is_an_engine_error(image: SealedImage, tmp_path: Path) -> None:
    """A connection that breaks in the middle of a load is trouble of the engine."""
    with (
        _false_engine(tmp_path, []) as (client, _),
        pytest.raises(EngineError, match="went away") as caught,
    ):
        load(image, client)
    assert caught.value.hint


def test_no_engine_at_all_is_an_engine_error(image: SealedImage, tmp_path: Path) -> None:
    """A socket that nobody listens on is trouble of the engine, without a traceback of requests."""
    import docker

    client = docker.APIClient(base_url=f"unix://{tmp_path}/none.sock", version="1.41")
    with pytest.raises(EngineError, match="went away"):
        load(image, client)


def test_a_silent_loss_is_found(image: SealedImage, tmp_path: Path) -> None:
    """An engine that says it loaded the image and does not show it is an error."""
    with (
        _false_engine(tmp_path, [_LOADED]) as (client, _),
        pytest.raises(EngineError, match="does not have it"),
    ):
        load(image, client)


@pytest.mark.parametrize("lie", ["id", "layers"])
def test_an_image_that_differs_from_ours_is_never_accepted(
    image: SealedImage, tmp_path: Path, lie: str
) -> None:
    """Another id or other layers: the tag is removed, all is sent, then it is an error."""
    wanted, lower = stack(image), foundations(image)[-1]
    shown: dict[str, Any] = {
        "Id": "sha256:" + "0" * 64 if lie == "id" else wanted.image_id,
        "RootFS": {"Layers": list(wanted.diff_ids[: 1 if lie == "layers" else None])},
    }
    there = {"Id": lower.image_id, "RootFS": {"Layers": list(lower.diff_ids)}}
    claims = {wanted.reference: shown, lower.image_id: there}
    with _false_engine(tmp_path, [_LOADED], 200, claims) as (client, requests):
        with pytest.raises(EngineError, match=r"has to be|other layers"):
            load(image, client)
        assert [r for r in requests if not r.startswith("GET")] == [
            "POST",
            f"DELETE {wanted.reference}",
            "POST",
        ]


def test_a_containerd_stores_name_is_accepted(image: SealedImage, tmp_path: Path) -> None:
    """Where the engine names images by manifest, that name is what containers are made from."""
    wanted = stack(image)
    claims = {
        wanted.manifest_digest: {
            "Id": wanted.manifest_digest,
            "RootFS": {"Layers": list(wanted.diff_ids)},
            "RepoTags": [f"docker.io/library/{wanted.reference}"],
        }
    }
    with _false_engine(tmp_path, [_LOADED], 200, claims) as (client, _):
        loading = load(image, client)
    assert (loading.way, loading.engine_image) == ("present", wanted.manifest_digest)
