"""Verify 2 of what a commit stands on: base and environment in a container, against their layers."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _image import Workshop, base_of, environment_of
from _sandbox import Bench, bench
from sealrun.errors import ImageGone
from sealrun.image import tar
from sealrun.image.archive import stack
from sealrun.image.load import EngineImages, created, load
from sealrun.image.seal import Sealed, seal
from sealrun.progress import Silent
from sealrun.sandbox.check import ContainerCheck
from sealrun.sandbox.contents import Witnesses
from sealrun.sandbox.docker import DockerSandbox
from sealrun.sandbox.protocol import Mount

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sealrun.image.model import Layer
    from sealrun.image.store import LayerStore
    from sealrun.sandbox.docker import DockerContainer
    from sealrun.sandbox.protocol import Request

pytestmark = pytest.mark.engine

#: Where a classic store and a containerd store keep unpacked layers, below the engine's root.
_UNPACKED = (
    "overlay2/*/diff",
    "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs",
)
BY_CONTENT = "in the container: base and environment, by content, set equality"


def _layer(store: LayerStore, mark: bytes, *directories: bytes) -> Layer:
    """Write a layer of nested directories with a file in the last one."""
    with store.writer() as writer:
        for directory in directories:
            writer.write(tar.header(directory, tar.DIRECTORY, 0o755))
        writer.write(tar.header(directories[-1] + b"/mark", tar.FILE, 0o644, len(mark)))
        writer.write(mark + tar.padding(len(mark)) + tar.END)
        return writer.commit()


@dataclass
class Shown:
    """An image that no other test has in the engine, and what was once verified of it."""

    bench: Bench
    sealed: Sealed
    name: str
    witnesses: Witnesses
    mark: bytes

    def looked_at(self, *mounts: str) -> tuple[list[tuple[str, str]], list[str]]:
        """Return what verify 2 finds in a new container, and how it says that it looked."""
        there = tuple(Mount(self.bench.out, mount) for mount in mounts)
        out = Mount(self.bench.out, "/out", read_only=False)
        request = self.bench.request("none", image=self.name, mounts=(out, *there))
        container = DockerSandbox(self.bench.api, owner="test").create(request)
        try:
            check = ContainerCheck(
                container, self.sealed.image, self.sealed.manifest, mounts, self.witnesses
            )
            with closing(check):
                found = check.before(Silent())
        finally:
            container.remove()
        return [(one.path, one.what) for one in found], check.verified

    def unpacked(self, path: str) -> Path:
        """Return where the engine keeps a file of the image."""
        root = Path(self.bench.api.info()["DockerRootDir"])
        files = [file for place in _UNPACKED for file in root.glob(f"{place}/{path}")]
        (found,) = [file for file in files if file.read_bytes() == self.mark]
        return found


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    """An image of a base, an environment and a commit; the engine forgets it afterwards."""
    mark = os.urandom(16).hex().encode()
    workshop = Workshop(tmp_path / "workshop")
    base = base_of(_layer(workshop.store, mark, b"usr", b"usr/lib"))
    environment = environment_of(_layer(workshop.store, mark, b"opt", b"opt/env"))
    sealed = seal(workshop.tree({b"train.py": mark}), base, environment, workshop.trees)
    made = bench(tmp_path)
    name = load(sealed.image, made.api).engine_image
    witnesses = Witnesses(made.places.bases, "ENGINE")
    try:
        yield Shown(made, sealed, name, witnesses, mark)
    finally:
        EngineImages(made.api, Silent()).forget(stack(sealed.image))


@contextmanager
def _put_back(file: Path) -> Generator[None]:
    """Undo whatever is done to a file, its times too."""
    content, before = file.read_bytes(), file.stat()
    yield
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_first_by_content_then_by_what_was_listed(shown: Shown) -> None:
    """Each set of mounts is compared by content at its first use, and by its listing from then on."""
    for mounts in ((), ("/usr/lib/data",)):
        found, verified = shown.looked_at(*mounts)
        assert (found, verified[-1]) == ([], BY_CONTENT), mounts
    for mounts in ((), ("/usr/lib/data",)):
        found, verified = shown.looked_at(*mounts)
        assert found == []
        assert "by inode, size and ctime" in verified[-1], mounts


def test_what_was_changed_below_the_commit_is_found(shown: Shown) -> None:
    """In base and environment, of the same size and with its time put back, whatever was verified."""
    assert shown.looked_at()[0] == []
    # What was found once is not taken for verified, nor for another set of mounts.
    for path, mounts in (("usr/lib/mark", ()), ("opt/env/mark", ("/data",))):
        file = shown.unpacked(path)
        changed = [(f"/{path}", "changed")]
        with _put_back(file):
            before = file.stat()
            file.write_bytes(shown.mark[::-1])
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert shown.looked_at()[0] == changed
            assert shown.looked_at(*mounts)[0] == changed
    found, verified = shown.looked_at()
    assert (found, verified[-1]) == ([], BY_CONTENT), "put back, but not as it was listed"


def test_what_came_or_went_below_the_commit_is_found(shown: Shown) -> None:
    """A file more, a file less and another mode are each a finding."""
    assert shown.looked_at()[0] == []
    file = shown.unpacked("opt/env/mark")
    (file.parent / "extra.py").write_text("import os\n")
    assert shown.looked_at()[0] == [("/opt/env/extra.py", "extra")]
    (file.parent / "extra.py").unlink()
    file.chmod(0o755)
    assert shown.looked_at()[0] == [("/opt/env/mark", "changed")]
    file.unlink()
    assert shown.looked_at()[0] == [("/opt/env/mark", "missing")]


def test_an_image_that_is_gone_again_is_loaded_again(shown: Shown) -> None:
    """Whoever repairs a layer removes the images of others that have it, between load and create."""
    left = 1

    class Late(DockerSandbox):
        def create(self, request: Request) -> DockerContainer:
            nonlocal left
            left -= 1
            if left >= 0:
                EngineImages(shown.bench.api, Silent()).forget(stack(shown.sealed.image))
            return super().create(request)

    out = Mount(shown.bench.out, "/out", read_only=False)
    request = shown.bench.request("none", image=shown.name, mounts=(out,))
    asked = Late(shown.bench.api, owner="test"), request, shown.sealed.image, shown.bench.api
    created(*asked, Silent()).remove()
    assert left == -1
    left = 2
    with pytest.raises(ImageGone) as gone:
        created(*asked, Silent())
    assert "who removes this engine's images" in (gone.value.hint or "")
    assert left == 0
