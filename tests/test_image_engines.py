"""One image on several engines: started for the test, with stores of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _image import AWKWARD, Workshop, engine, environment_of, layer_of
from sealrun.image.archive import Archive, stack
from sealrun.image.load import EngineImages, load
from sealrun.image.seal import seal
from sealrun.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import APIClient

    from sealrun.image.model import SealedImage

#: A mount and a network namespace of its own: a second dockerd in the host's would take over the
#: first one's bridge and rules. A fresh /run hides the first one's containerd.
_SECOND = """
mount -t tmpfs tmpfs /run && exec dockerd --host "unix://$1/engine.sock" \
  --data-root "$1/data" --exec-root /run/second --pidfile "$1/engine.pid" \
  --bridge none --iptables=false --ip6tables=false --containerd-namespace sealrun-second \
  --containerd-plugins-namespace sealrun-second-plugins
"""


@contextmanager
def _second_engine() -> Iterator[APIClient]:
    import docker
    import docker.errors

    # Not below pytest's directory: sun_path holds 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="sealrun-"))
    command = ["unshare", "--mount", "--net", "sh", "-c", _SECOND, "second", str(directory)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        client = docker.APIClient(base_url=f"unix://{directory}/engine.sock", version="1.41")
        try:
            for _ in range(300):
                if process.poll() is not None:
                    break
                try:
                    client.ping()
                    break
                except docker.errors.DockerException:
                    time.sleep(0.1)
                except OSError:
                    time.sleep(0.1)
            else:
                pytest.fail("the second engine does not answer")
            if process.poll() is not None:
                pytest.fail((directory / "log").read_text())
            yield client
        finally:
            client.close()
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            # The engine's own clean-up; what it leaves mounted is gone with its namespace.
            shutil.rmtree(directory)


def _image(workshop: Workshop) -> SealedImage:
    environment = environment_of(layer_of(workshop.store, {b"opt/env/x": os.urandom(16)}), A="b")
    return seal(workshop.tree(AWKWARD), workshop.base(), environment, workshop.trees).image


@pytest.mark.engine
@pytest.mark.soak(sample=True)
def test_two_engines_with_separate_stores_hold_the_same_image(tmp_path: Path) -> None:
    """Each gets the image by itself; id and layers are equal, in both ways of loading."""
    workshop = Workshop(tmp_path)
    image = _image(workshop)
    first = engine()
    with _second_engine() as second:
        here, there = load(image, first), load(image, second)
        try:
            assert (here.way, there.way) == ("full", "full")
            assert here.engine_image == there.engine_image
            shown = [c.inspect_image(here.engine_image)["RootFS"] for c in (first, second)]
            assert shown[0] == shown[1]
            other = workshop.tree({b"train.py": b"other"})
            changed = seal(other, image.base, image.environment, workshop.trees).image
            ways = {load(changed, first).way, load(changed, second).way}
            assert ways == {"hybrid"}
        finally:
            EngineImages(first, Silent()).forget(stack(image))


@pytest.mark.soak
def test_podman_calls_the_image_the_same(tmp_path: Path) -> None:
    """``podman load`` of the full archive gives our id (Debian package podman)."""
    image = _image(Workshop(tmp_path))
    archive = tmp_path / "image.tar"
    with archive.open("wb") as file:
        for piece in Archive(stack(image), image.layers):
            file.write(piece)
    # podman takes no run root of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="sealrun-") as directory:
        podman = ["podman", "--root", f"{directory}/store", "--runroot", f"{directory}/run"]
        loaded = subprocess.run(
            [*podman, "load", "--input", str(archive)], check=False, capture_output=True, text=True
        )
        assert loaded.returncode == 0, loaded.stderr
        try:
            listed = subprocess.run(
                [*podman, "images", "--no-trunc", "--quiet"],
                check=True,
                capture_output=True,
                text=True,
            )
            assert listed.stdout.split() == [image.image_id]
        finally:
            subprocess.run([*podman, "rmi", "--all", "--force"], check=False, capture_output=True)
            mounted = f"{directory}/store/overlay"
            subprocess.run(["umount", mounted], check=False, capture_output=True)
