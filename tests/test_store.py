"""The layer store and the records beside it."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from _image import base_of, environment_of, layer_of
from sealrun.errors import StorageFault
from sealrun.image import packed
from sealrun.image import store as store_module
from sealrun.image.model import Base, Environment, Layer, Package, Platform
from sealrun.image.store import (
    LayerStore,
    Records,
    chunks,
    open_layer,
    plain_file,
    stored_chunks,
    stored_size,
)
from sealrun.state import private


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    """Return an empty store."""
    return LayerStore(private(tmp_path / "layers"))


def _put(store: LayerStore, content: bytes) -> str:
    with store.writer() as writer:
        writer.write(content)
        return writer.commit().diff_id


def _damage(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def test_a_layer_is_named_by_the_hash_of_its_bytes(store: LayerStore) -> None:
    """What was written in pieces is found whole under its sha256."""
    with store.writer() as writer:
        writer.write(b"one ")
        writer.write(bytearray(b"two"))
        layer = writer.commit()
    assert layer.diff_id == "sha256:" + hashlib.sha256(b"one two").hexdigest()
    assert layer.path.name == layer.diff_id.removeprefix("sha256:") + ".gz"
    assert b"".join(chunks(layer)) == b"one two"
    assert store.get(layer.diff_id, 7) == layer


def test_an_abandoned_layer_leaves_nothing(store: LayerStore) -> None:
    """A writer that fails, or is never committed, leaves no file."""
    with store.writer() as writer:
        writer.write(b"half")
    with pytest.raises(TypeError), store.writer() as writer:
        writer.write("half")  # type: ignore[arg-type]
    assert list(store.directory.iterdir()) == []


def test_a_layer_of_another_size_is_never_handed_out(store: LayerStore) -> None:
    """A truncated layer counts as missing, and reading it names the file."""
    diff_id = _put(store, b"content")
    layer = store.get(diff_id, 7)
    assert layer is not None
    whole = layer.path.read_bytes()
    for part in (whole[:-1], whole[:20], b"", whole[1:], whole + b"x", b"x" * len(whole)):
        _damage(layer.path, part)
        assert store.get(diff_id, 7) is None
        with pytest.raises(StorageFault, match=layer.path.name) as caught:
            open_layer(layer)
        assert str(layer.path) in (caught.value.hint or "")
    _damage(layer.path, whole)
    assert store.get(diff_id, 8) is None
    with pytest.raises(StorageFault, match="7 bytes instead of 8"):
        open_layer(Layer(diff_id, 8, layer.path))


def test_a_changed_byte_is_found(store: LayerStore) -> None:
    """Bytes of the right number that hash to something else are damage."""
    layer = store.get(_put(store, b"content"), 7)
    assert layer is not None
    store.verify(layer)
    whole = layer.path.read_bytes()
    for at in range(len(whole)):
        _damage(layer.path, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StorageFault, match=layer.path.name):
            store.verify(layer)
    _damage(layer.path, packed.pack(b"c0ntent") + packed.end(len(packed.pack(b"c0ntent")), 7))
    with pytest.raises(StorageFault, match="do not hash"):
        store.verify(layer)


def test_a_layer_that_is_made_again_at_any_time_is_stored_as_it_is(store: LayerStore) -> None:
    """Cache is not compressed: it is written in each run. Its damage is found all the same."""
    with store.writer(durable=False) as writer:
        writer.write(b"content")
        layer = writer.commit()
    assert layer.path.read_bytes() == b"content"
    assert store.get(layer.diff_id, 7) == layer
    _damage(layer.path, b"c0ntent")
    with pytest.raises(StorageFault, match="do not hash"):
        store.verify(layer)
    _damage(layer.path, b"cont")
    assert store.get(layer.diff_id, 7) is None
    with pytest.raises(StorageFault, match="4 bytes instead of 7"):
        open_layer(layer)


@pytest.mark.parametrize("size", [0, 1, packed.MEMBER - 1, packed.MEMBER, 3 * packed.MEMBER + 5])
def test_a_stored_layer_reads_the_same_from_any_place(store: LayerStore, size: int) -> None:
    """Whole, from the middle, backwards and past its end, and any gzip reader gets the same bytes."""
    content = random.Random(size).randbytes(size // 2)  # noqa: S311 - any bytes that do not shrink
    content += bytes(size - len(content))
    diff_id = _put(store, content)
    layer = store.get(diff_id, size)
    assert layer is not None
    assert b"".join(chunks(layer)) == content
    assert gzip.decompress(layer.path.read_bytes()) == content
    assert b"".join(stored_chunks(layer)) == layer.path.read_bytes()
    assert stored_size(layer) == layer.path.stat().st_size
    with open_layer(layer) as file:
        for at in (size, size // 2, 0, packed.MEMBER - 3, size + 9, 2 * packed.MEMBER + 1):
            file.seek(at)
            assert file.read(5000) == content[at : at + 5000]
        file.seek(-min(7, size), os.SEEK_END)
        assert file.read() == content[-min(7, size) :] if size else True
    with plain_file(layer, store.directory) as path:
        assert path.read_bytes() == content
    assert len(list(store.directory.iterdir())) == 1


def test_a_member_that_unpacks_to_more_than_it_says_is_damage(store: LayerStore) -> None:
    """A file that would fill memory is refused after the bytes that it promises."""
    bomb = bytearray(packed.pack(bytes(1 << 24)))
    bomb[24:32] = (7).to_bytes(8, "little")
    layer = store.get(_put(store, b"content"), 7)
    assert layer is not None
    _damage(layer.path, bytes(bomb) + packed.end(len(bomb), 7))
    assert store.get(layer.diff_id, 7) is not None
    with pytest.raises(StorageFault, match="checksum"):
        store.verify(layer)


def test_storing_a_damaged_layer_again_heals_it(store: LayerStore) -> None:
    """The new bytes take the damaged file's place, whatever its size."""
    for damage in (b"cont", b"c0ntent"):
        diff_id = _put(store, b"content")
        _damage(store.path(diff_id), damage)
        _put(store, b"content")
        layer = store.get(diff_id, 7)
        assert layer is not None
        store.verify(layer)


def test_a_missing_layer_is_a_fault_with_a_path(store: LayerStore) -> None:
    """Reading a layer that is gone says which, and what to do."""
    layer = store.get(_put(store, b"content"), 7)
    assert layer is not None
    store.discard(layer)
    store.discard(layer)
    assert store.get(layer.diff_id, 7) is None
    with pytest.raises(StorageFault, match=layer.path.name) as caught:
        store.verify(layer)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["sha256:../../etc/passwd", "sha256:" + "G" * 64, "", "sha256:ab"])
def test_only_digests_name_layers(store: LayerStore, name: str) -> None:
    """Nothing outside the store can be named."""
    with pytest.raises(StorageFault, match="does not name a layer"):
        store.path(name)


_FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
from sealrun.errors import StorageFault
from sealrun.image.store import LayerStore

directory = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", directory], check=True)
try:
    with LayerStore(directory).writer(expected=4 << 20) as writer:
        for _ in range(4):
            writer.write(os.urandom(1 << 20))
        writer.commit()
except StorageFault as error:
    print(error.message)
    print(error.hint)
    print(sorted(path.name for path in directory.iterdir()))
"""


def test_a_full_disk_is_a_fault_that_tells_needed_and_free_bytes(store: LayerStore) -> None:
    """On a real full file system the fault has both numbers, and no draft stays."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    result = subprocess.run(
        ["unshare", *user, "--mount", sys.executable, "-c", _FULL_DISK, str(store.directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    message, hint, left = result.stdout.splitlines()
    assert "no space left" in message
    assert "needs 4194304 bytes" in message
    assert str(store.directory) in message
    assert "SEALRUN_HOME" in hint
    assert left == "[]"


def test_a_directory_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    """A store whose directory is gone says so."""
    with pytest.raises(StorageFault, match="cannot write a layer"):
        LayerStore(tmp_path / "gone").writer()


def _store_often(directory: str) -> None:
    store = LayerStore(Path(directory))
    for n in range(20):
        _put(store, b"%d" % n * 100_000)


def test_processes_may_store_the_same_layers_at_once(store: LayerStore) -> None:
    """Four writers of the same twenty layers leave twenty whole layers and nothing else."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.map(_store_often, [str(store.directory)] * 4)
    found = list(store.directory.iterdir())
    assert len(found) == 20
    plain = {p.name: gzip.decompress(p.read_bytes()) for p in found}
    assert all(hashlib.sha256(c).hexdigest() + ".gz" == name for name, c in plain.items())


_KILLED = """
import os, signal, sys
from pathlib import Path
from sealrun.image.store import LayerStore

with LayerStore(Path(sys.argv[1])).writer() as writer:
    writer.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_draft_of_a_dead_writer_is_removed_by_the_next_one(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL leaves a draft; the next writer removes it, and never a living writer's."""
    subprocess.run([sys.executable, "-c", _KILLED, str(store.directory)], check=False)
    assert len(list(store.directory.iterdir())) == 1
    monkeypatch.setattr(store_module, "DRAFT_GRACE", -1.0)
    with store.writer() as living:
        living.write(b"alive")
        assert len(list(store.directory.iterdir())) == 1
        _put(store, b"other")
        layer = living.commit()
    store.verify(layer)
    assert len(list(store.directory.iterdir())) == 2


@pytest.fixture
def records(tmp_path: Path, store: LayerStore) -> Records:
    """Return empty records."""
    return Records(private(tmp_path / "records"), store)


def _base(store: LayerStore) -> Base:
    layers = (layer_of(store, {b"a": b"1"}), layer_of(store, {b"b": b"2"}))
    return Base(
        "recipe:debian-python",
        Platform("linux", "arm64"),
        layers,
        "3.11.2",
        "/usr/bin/python3",
        "glibc-2.36",
        (Package("bash", "5.2", "ab" * 32), Package("coreutils", "9.1")),
    )


def test_records_come_back_equal(records: Records, store: LayerStore) -> None:
    """A base and an environment are read back as they were stored, each under its own key."""
    base = _base(store)
    environment = Environment(
        "key", "uv.lock", layer_of(store, {b"c": b"3"}), {"A": "b"}, (Package("torch", "2.9"),)
    )
    bare = environment_of()
    records.put_base("reference:name@sha256:…", base)
    records.put_environment("key", environment)
    records.put_environment("bare", bare)
    assert records.base("reference:name@sha256:…") == base
    assert records.environment("key") == environment
    assert records.environment("bare") == bare
    assert records.base("key") is None
    assert records.environment("reference:name@sha256:…") is None


def test_a_record_whose_layer_is_gone_or_damaged_is_no_record(
    records: Records, store: LayerStore
) -> None:
    """The caller is told to make it again, by None."""
    base = _base(store)
    records.put_base("key", base)
    _damage(base.layers[1].path, b"short")
    assert records.base("key") is None
    store.discard(base.layers[1])
    assert records.base("key") is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"version": 0}',
        b'{"version": 1, "kind": "base", "key": "key", "base": null}',
        b'{"version": 1, "kind": "base", "key": "key", "base": {"layers": 3}}',
        b'{"version": 1, "kind": "base", "key": "other", "base": {}}',
    ],
)
def test_an_unreadable_record_is_no_record(
    records: Records, store: LayerStore, damage: bytes
) -> None:
    """Whatever stands in the file, the caller gets None and no exception."""
    records.put_base("key", _base(store))
    (file,) = records.directory.iterdir()
    file.write_bytes(damage)
    assert records.base("key") is None


@pytest.mark.parametrize("field", ["origin", "platform", "layers", "python", "packages"])
def test_a_record_with_a_field_of_another_type_is_no_record(
    records: Records, store: LayerStore, field: str
) -> None:
    """A field that is missing or not what it has to be makes the record unreadable."""
    records.put_base("key", _base(store))
    (file,) = records.directory.iterdir()
    document = json.loads(file.read_bytes())
    for wrong in (7, {"a": 1}, ["x"]):
        document["base"][field] = wrong
        file.write_text(json.dumps(document))
        assert records.base("key") is None
    del document["base"][field]
    file.write_text(json.dumps(document))
    assert records.base("key") is None


def test_a_record_replaces_an_earlier_one_as_a_whole(records: Records, store: LayerStore) -> None:
    """Storing under the same key again leaves one file, the new one."""
    records.put_base("key", _base(store))
    other = base_of(layer_of(store, {b"d": b"4"}))
    records.put_base("key", other)
    assert records.base("key") == other
    assert len(list(records.directory.iterdir())) == 1
