"""One content, one image: on any machine, from any clone, under any settings."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from _image import (
    AWKWARD,
    Workshop,
    commit,
    committed,
    environment_of,
    git,
    layer_of,
    repository,
)
from sealrun.errors import StorageFault
from sealrun.image.archive import Archive, foundations, stack
from sealrun.image.config import image_config
from sealrun.image.model import PATH, WORKDIR, Layer, Platform
from sealrun.image.seal import assemble, seal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from _image import Content
    from sealrun.image.model import SealedImage


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Return an empty workshop."""
    return Workshop(tmp_path)


#: Computed once. It changes only when the layout of images changes on purpose: then
#: ``tree_layer.FORMAT`` counts up, and older runs keep the image that they name.
TREE_DIFF_ID = "sha256:0ff3f7077e0f3392946c6cceaba2a496ece5cee9bbbe8ca21cf4c000441f3b10"
IMAGE_ID = "sha256:3df61f1e2d52fc07070d64fd5a8fc00fa637165abf73ff51358e636ffcbc7663"


def _sealed(workshop: Workshop) -> SealedImage:
    environment = environment_of(layer_of(workshop.store, {b"opt/env/x": b"y"}), UV_NO_SYNC="1")
    return seal(workshop.tree(AWKWARD), workshop.base(), environment, workshop.trees).image


def test_the_digests_are_those_of_every_other_machine(workshop: Workshop) -> None:
    """A fixed tree, environment and base have the digests that they had when this was written."""
    image = _sealed(workshop)
    assert image.tree_layer.diff_id == TREE_DIFF_ID
    assert image.image_id == IMAGE_ID


_SEAL = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[4], 8))
sys.path.insert(0, sys.argv[3])
from _image import Workshop, committed, environment_of, layer_of
from sealrun.image.seal import seal
workshop = Workshop(Path(sys.argv[2]))
environment = environment_of(layer_of(workshop.store, {b"opt/env/x": b"y"}), UV_NO_SYNC="1")
tree = committed(Path(sys.argv[1]), workshop.root / "spool")
print(seal(tree, workshop.base(), environment, workshop.trees).image.image_id)
"""


@pytest.mark.parametrize(
    ("umask", "prefix", "environment"),
    [
        ("022", [], {}),
        ("077", [], {"TZ": "Asia/Kathmandu"}),
        ("000", [], {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}),
        ("027", [], {"PYTHONHASHSEED": "7", "PYTHONUTF8": "1", "SOURCE_DATE_EPOCH": "1"}),
        ("022", [], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("022", ["unshare", "--user"], {"HOME": "/nonexistent", "USER": "nobody"}),
    ],
)
def test_no_setting_of_a_process_changes_the_image(
    workshop: Workshop, umask: str, prefix: list[str], environment: dict[str, str]
) -> None:
    """Another umask, time zone, locale, hash seed or user, with stores of their own: one id."""
    directory = repository(workshop.root / "repository")
    commit(directory, AWKWARD)
    expected = _sealed(Workshop(workshop.root / "here")).image_id
    here = str(__file__).rpartition("/")[0]
    arguments = [str(directory), str(workshop.root / "there"), here, umask]
    result = subprocess.run(
        [*prefix, sys.executable, "-c", _SEAL, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
    )
    assert result.stdout.strip() == expected


def test_another_clone_another_commit_and_another_object_format_give_the_same_layer(
    workshop: Workshop,
) -> None:
    """Only paths, modes and bytes count: not packs, messages, dates or the hash that git uses."""
    directory = repository(workshop.root / "original")
    commit(directory, AWKWARD)
    bundle = workshop.root / "bundle"
    git(directory, "bundle", "create", "--quiet", str(bundle), "HEAD", "main")
    clone = workshop.root / "clone"
    git(workshop.root, "clone", "--quiet", "--bare", str(bundle), str(clone / ".git"))
    git(clone, "config", "core.bare", "false")
    other = repository(workshop.root / "other")
    commit(other, {b"before": b""}, b"a longer history")
    commit(other, AWKWARD, b"another message")
    modern = repository(workshop.root / "modern", algorithm="sha256")
    commit(modern, AWKWARD)
    found = set()
    for directory_of in (directory, clone, other, modern):
        tree = committed(directory_of, workshop.root / f"spool-{directory_of.name}")
        layers = Workshop(workshop.root / f"store-{directory_of.name}").trees
        found.add(layers.layer(tree).layer.diff_id)
    assert len(found) == 1


def test_whatever_differs_in_content_gives_another_image(workshop: Workshop) -> None:
    """One byte, one mode bit, one name, another environment or base: another id each time."""
    base, bare = workshop.base(), environment_of()
    variants: list[Mapping[bytes, Content]] = [
        {b"a": b"1"},
        {b"a": b"2"},
        {b"b": b"1"},
        {b"a": (b"100755", b"1")},
        {b"a": (b"120000", b"1")},
    ]
    ids = [seal(workshop.tree(v), base, bare, workshop.trees).image.image_id for v in variants]
    tree = workshop.tree(variants[0])
    for other_base, other_environment in (
        (workshop.base(b"other"), bare),
        (base, environment_of(A="b")),
        (base, environment_of(layer_of(workshop.store, {b"x": b""}))),
    ):
        ids.append(seal(tree, other_base, other_environment, workshop.trees).image.image_id)
    assert len(set(ids)) == len(variants) + 3
    assert seal(tree, base, bare, workshop.trees).image.image_id == ids[0]


def test_a_name_of_a_base_is_not_part_of_the_image(workshop: Workshop) -> None:
    """The same layers under another origin are the same image."""
    layer = layer_of(workshop.store, {b"a": b""})
    base = workshop.base()
    renamed = type(base)("reference:x", base.platform, base.layers, "3.12.0", "/usr/bin/p", "musl")
    first = assemble(base, environment_of(), layer)
    assert first.image_id == assemble(renamed, environment_of(), layer).image_id


def test_the_config_holds_what_we_mean_and_nothing_else(workshop: Workshop) -> None:
    """PATH, the environment's variables, the workdir: no entrypoint, volume, label or trigger."""
    image = _sealed(workshop)
    assert image.image_id == "sha256:" + hashlib.sha256(image.config).hexdigest()
    document = json.loads(image.config)
    assert document["config"] == {"Env": [f"PATH={PATH}", "UV_NO_SYNC=1"], "WorkingDir": WORKDIR}
    assert set(document) == {"architecture", "config", "created", "history", "os", "rootfs"}
    assert document["rootfs"]["diff_ids"] == [layer.diff_id for layer in image.layers]
    assert len(document["history"]) == len(image.layers)


@pytest.mark.parametrize("variables", [{"PATH": "/evil"}, {"A=B": ""}, {"": ""}, {"A": "\0"}])
def test_a_variable_that_cannot_be_is_an_error(variables: dict[str, str]) -> None:
    """PATH is ours, and what no process environment can hold is no variable."""
    with pytest.raises(ValueError, match="not a variable"):
        image_config([], [], Platform(), variables)


def test_the_size_of_an_archive_is_known_before_it_is_sent(workshop: Workshop) -> None:
    """Length and bytes agree, for all layers and for the missing ones alone."""
    image = _sealed(workshop)
    for what in (stack(image), *foundations(image)):
        for layers in (what.layers, what.layers[-1:]):
            archive = Archive(what, layers)
            assert sum(len(piece) for piece in archive) == len(archive)


def test_a_layer_that_stands_twice_in_an_image_travels_once(workshop: Workshop) -> None:
    """Equal layers are one blob, in the archive as in the store."""
    layer = layer_of(workshop.store, {b"a": b"x" * 5000})
    image = assemble(workshop.base(), environment_of(layer), layer)
    archive = Archive(stack(image), (layer, layer))
    assert sum(len(piece) for piece in archive) == len(archive)
    assert len(archive) < 2 * layer.size + 20_000


def test_nothing_that_names_the_image_is_sent_before_its_layers(workshop: Workshop) -> None:
    """An archive that breaks off in a layer holds no config, index or manifest."""
    image = _sealed(workshop)
    damaged = Layer(image.tree_layer.diff_id, image.tree_layer.size, workshop.root / "copy")
    content = image.tree_layer.path.read_bytes()
    damaged.path.write_bytes(content.replace(b"SCALAR_LR = 0.5", b"SCALAR_LR = 0.3"))
    sent = b""
    with pytest.raises(StorageFault, match="do not hash"):  # noqa: PT012 - bytes before the fault
        for piece in Archive(stack(image), (damaged,)):
            sent += piece
    assert image.config not in sent
    assert b"manifest.json" not in sent
    assert b"index.json" not in sent
