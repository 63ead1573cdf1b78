"""The container init: how it is compiled, shipped and placed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sealrun.errors import EnvironmentFault
from sealrun.sandbox.init import ARCHITECTURES, NAME, place, place_init
from sealrun.shipped import shipped

SOURCES = shipped("images", "init")
#: e_machine of an ELF header (elf(5)).
MACHINES = {"amd64": 62, "arm64": 183}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.soak
def test_compiling_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    """The binary depends on source and compiler alone, not on directory, user or time."""
    for name in ("init.c", "build.py"):
        shutil.copy(SOURCES / name, tmp_path / name)
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run(
        [sys.executable, tmp_path / "build.py"],
        check=True,
        env=environment,
        umask=0o077,
        capture_output=True,
    )
    for architecture in MACHINES:
        made = tmp_path / "build" / architecture / NAME
        assert _digest(made) == _digest(SOURCES / "build" / architecture / NAME)
        assert {path.name for path in made.parent.iterdir()} == {NAME}


@pytest.mark.parametrize("architecture", sorted(MACHINES))
def test_binary_is_static_and_small(architecture: str) -> None:
    """Each architecture has its own static binary, without names of the machine that made it."""
    content = (SOURCES / "build" / architecture / NAME).read_bytes()
    assert content[:4] == b"\x7fELF"
    assert int.from_bytes(content[18:20], "little") == MACHINES[architecture]
    assert b"ld-musl" not in content
    assert b"ld-linux" not in content
    assert os.fsencode(Path.home()) + b"/" not in content
    assert len(content) < 100_000


def test_init_refuses_to_be_anything_but_the_first_process() -> None:
    """Outside a container, where its SIGKILL to all would reach a whole machine, it does nothing."""
    architecture = ARCHITECTURES[os.uname().machine]
    done = subprocess.run(
        [SOURCES / "build" / architecture / NAME, "split", "64", "--", "true"],
        input=b"",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 125
    assert done.stdout == b""
    assert b"first process" in done.stderr


def test_changed_copy_is_replaced(tmp_path: Path) -> None:
    """A placed init that was changed since is put right before it is used again."""
    init = place_init(tmp_path, "x86_64")
    assert init.digest == _digest(init.path) == _digest(SOURCES / "build/amd64" / NAME)
    assert init.path.stat().st_mode & 0o7777 == 0o555
    for spoil in (
        lambda: init.path.write_bytes(b"#!/bin/sh\n"),
        lambda: init.path.chmod(0o000),
        init.path.unlink,
        lambda: _relink(init.path, "/bin/true"),
    ):
        init.path.parent.joinpath(NAME).chmod(0o755)
        spoil()
        again = place_init(tmp_path, "amd64")
        assert again == init
        assert _digest(init.path) == init.digest
        assert init.path.stat().st_mode & 0o7777 == 0o555
        assert not init.path.is_symlink()
    assert [path.name for path in init.path.parent.iterdir()] == [NAME]


def test_unknown_architecture_is_named() -> None:
    """A machine that we have no init for gets an error that names it."""
    with pytest.raises(EnvironmentFault, match="riscv64"):
        place_init(Path("/nonexistent"), "riscv64")


def test_files_of_other_content_stand_apart(tmp_path: Path) -> None:
    """Placing is by content: equal content shares a directory, other content gets its own."""
    first = place(tmp_path, {"passwd": b"a", "group": b"b"})
    assert place(tmp_path, {"group": b"b", "passwd": b"a"}) == first
    assert place(tmp_path, {"passwd": b"b", "group": b"b"}) != first
