"""sealrun in a container of its own, beside an engine that knows its files by other paths."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from _base import shared_base, shared_cache
from _git import Repo
from sealrun.engine import connect
from sealrun.image import recipe
from sealrun.shipped import shipped
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sealrun.engine import Engine

_TOP = shipped("Dockerfile").parent
_PACKAGES = "ca-certificates,git,mmdebstrap,python3,python3-venv"
_PATIENCE = 240


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The engine of this machine."""
    home = tmp_path_factory.mktemp("engine")
    return connect(Places(home / "state", home / "data", home / "cache", home / "runtime"))


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with sealrun, built from the Dockerfile without network."""
    client = engine.open_client(timeout=_PATIENCE)
    base = _base(client)
    context = tmp_path_factory.mktemp("context")
    wheel = _wheels(context)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(_TOP / "Dockerfile", "Dockerfile")
        archive.add(context, ".")
    packed.seek(0)
    tag = f"sealrun-test-own:{os.getpid()}"
    said = list(
        client.build(
            fileobj=packed,
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            decode=True,
            network_mode="none",
            buildargs={
                "BASE": base,
                "SOURCE": wheel,
                "PIP_FIND_LINKS": "/source/wheels",
                "PIP_NO_INDEX": "1",
            },
        )
    )
    assert "error" not in said[-1], "".join(m.get("stream", "") for m in said[-30:]) + str(said[-1])
    yield tag
    client.remove_image(tag, force=True)


def _base(client: Any) -> str:  # noqa: ANN401 - docker-py ships no types
    """Return a Debian with what the Dockerfile wants, made by mmdebstrap once a machine."""
    key = hashlib.sha256(_PACKAGES.encode()).hexdigest()[:12]
    tag = f"sealrun-test-debian:{key}"
    if client.images(tag):
        return tag
    file = shared_cache() / f"debian-{key}.tar"
    if not file.exists():
        draft = file.with_suffix(f".{os.getpid()}.tar")
        options = [f"--aptopt={option}" for option in recipe.apt_options()]
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=apt", f"--mode={recipe.mode()}"),
                *(f"--include={_PACKAGES}", '--aptopt=APT::Install-Recommends "false"'),
                *(*options, "bookworm", str(draft), *recipe.mirrors("bookworm")),
            ],
            check=True,
        )
        draft.replace(file)
    name, _, version = tag.partition(":")
    client.import_image_from_file(str(file), repository=name, tag=version)
    return tag


def _wheels(context: Path) -> str:
    """Put sealrun's wheel and all that it needs into a folder; return the wheel's path in it."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    folder = context / "wheels"
    # What builds it is in the dev group: an environment for the build alone would take a compiler's
    # unpacking, most of a minute of a core.
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(_TOP)], check=True)
    (wheel,) = folder.glob("sealrun-*.whl")
    wanted = ["--only-binary=:all:", "--python-version=3.11", "--dest", str(folder)]
    subprocess.run([*pip, "download", *wanted, str(wheel)], check=True)
    return f"wheels/{wheel.name}"


class Inside:
    """Runs sealrun in a container whose paths differ from its host's."""

    def __init__(self, engine: Engine, image: str, outside: Path) -> None:
        self.client = engine.open_client(timeout=_PATIENCE)
        self.socket = engine.endpoint.removeprefix("unix://")
        self.image, self.outside = image, outside

    def __call__(
        self, *arguments: str, mapped: bool, directory: str = "/inside"
    ) -> tuple[int, str, str]:
        """Return exit status, standard output and standard error of a sealrun command."""
        variables = {"SEALRUN_HOME": "/inside/home"}
        if mapped:
            variables["SEALRUN_PATH_MAP"] = f"/inside:{self.outside}"
        body = {
            "Image": self.image,
            "Cmd": list(arguments),
            "WorkingDir": directory,
            "Env": [f"{key}={value}" for key, value in variables.items()],
            "HostConfig": {
                "NetworkMode": "none",
                "Binds": [f"{self.outside}:/inside", f"{self.socket}:/var/run/docker.sock"],
            },
        }
        container = self.client.create_container_from_config(body, None)["Id"]
        try:
            self.client.start(container)
            status = self.client.wait(container)["StatusCode"]
            output, errors = (
                self.client.logs(container, stdout=out, stderr=not out).decode()
                for out in (True, False)
            )
            return int(status), output, errors
        finally:
            self.client.remove_container(container, force=True, v=True)


@pytest.fixture
def inside(engine: Engine, image: str, tmp_path: Path) -> Inside:
    """A directory that is /inside to sealrun and something else to the engine."""
    outside = tmp_path / "outside"
    outside.mkdir()
    return Inside(engine, image, outside)


@pytest.mark.engine
def test_other_paths_without_a_mapping_are_refused(inside: Inside) -> None:
    """A mounted socket whose host knows our files by other names is refused, with the remedy."""
    status, output, errors = inside("engine", "status", "--json", mapped=False)
    document = json.loads(output)
    assert status == 125
    assert document["usable"] is False
    assert document["probe"]["different"]
    assert "SEALRUN_PATH_MAP=/inside:/outside" in document["hint"]
    assert "[sealrun] error: paths do not mean the same" in errors


@pytest.mark.engine
def test_declared_mapping_is_probed_and_used(inside: Inside) -> None:
    """With the mapping declared the nonce is read back, and the engine is used."""
    status, output, errors = inside("engine", "status", "--json", mapped=True)
    assert status == 0, errors
    document = json.loads(output)
    assert document["usable"] is True
    assert document["probe"]["agrees"] is True
    assert document["engine"]["mapping"] == f"/inside:{inside.outside}"


@pytest.mark.engine
def test_a_run_from_inside_a_container(inside: Inside) -> None:
    """A commit in a mounted repository runs through the mounted socket, and is judged."""
    repo = Repo.create(inside.outside)
    repo.commit({"train.py": "print('val_bpb: 0.9979')\n"})
    home = inside.outside / "home"
    shared_base(Places(home / "state", home / "data", home / "cache", home / "runtime"))
    at = "/inside/repo"
    status, _, errors = inside("warm", mapped=True, directory=at)
    assert status == 0, errors
    command = ("run", "--result-file", "/inside/result.json", "--", "python3", "train.py")
    status, output, errors = inside(*command, mapped=True, directory=at)
    assert status == 0, errors
    assert output == "val_bpb: 0.9979\n"
    result = json.loads((inside.outside / "result.json").read_text())
    assert result["outcome"] == "succeeded", result
