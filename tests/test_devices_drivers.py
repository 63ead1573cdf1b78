"""What drivers say: the real nvidia-ml-py on a compiled stand-in, and the kernel's files of AMD."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _devices import fake_amd, fake_nvml
from sealrun.devices import visible
from sealrun.devices.amd import Amd
from sealrun.devices.assign import look
from sealrun.devices.nvidia import Nvidia

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNNER = Path(__file__).parents[1] / "runner"
_LOOK = """
import json, os, sys
from dataclasses import asdict
from pathlib import Path
from sealrun.devices.assign import look
from sealrun.devices.nvidia import Nvidia
from sealrun.errors import SealrunError
nvidia = Nvidia(Path(sys.argv[1]))
try:
    seen = look(os.environ, (nvidia,))
except SealrunError as error:
    print(json.dumps({"error": error.message, "hint": error.hint, "status": error.status}))
    raise SystemExit
print(json.dumps({
    "devices": [asdict(d) for d in seen.selection.devices],
    "labels": [d.label for d in seen.selection.devices],
    "users": {d.label: [asdict(u) for u in nvidia.users(d)] for d in seen.selection.devices},
    "driver": asdict(nvidia.driver()) if seen.selection.devices else None,
    "heavy": "pynvml" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The stand-in for the driver's library, as variables that make a program find it."""
    return fake_nvml(tmp_path_factory.mktemp("nvml"))


def asked(environ: Mapping[str, str], dev: Path) -> dict[str, Any]:
    """Return what a process with these variables finds out."""
    inherited = {k: v for k, v in os.environ.items() if "VISIBLE_DEVICES" not in k}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, str(dev)],
        env=inherited | {"PYTHONPATH": str(RUNNER)} | dict(environ),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_driver_is_asked_for_everything(library: dict[str, str], tmp_path: Path) -> None:
    """Each GPU by uuid, with name, memory, place and device file; the driver and its CUDA."""
    found = asked(library | {"FAKE_GPUS": "2"}, tmp_path)
    assert found["devices"][1] == {
        "vendor": "nvidia",
        "uuid": "GPU-10000000-1111-2222-3333-444444444444",
        "index": 1,
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 80 << 30,
        "bus": "00000000:02:00.0",
        "nodes": ["/dev/nvidia1"],
        "divided": False,
        "parent": None,
        "instance": None,
        "slot": None,
    }
    assert found["driver"] == {"vendor": "nvidia", "version": "550.54.15", "runtime": "CUDA 12.4"}
    assert found["users"] == {"GPU 0": [], "GPU 1": []}


def test_instances_are_told_apart(library: dict[str, str], tmp_path: Path) -> None:
    """Instances of a divided GPU have uuids, numbers and memory of their own."""
    environ = library | {"FAKE_GPUS": "2", "FAKE_MIG": "1"}
    uuid = "MIG-11000000-1111-2222-3333-444444444444"
    found = asked(environ | {"CUDA_VISIBLE_DEVICES": uuid}, tmp_path)
    (device,) = found["devices"]
    assert found["labels"] == ["GPU 1 MIG 1"]
    assert (device["uuid"], device["memory"], device["instance"]) == (uuid, 10 << 30, [8, 0])
    assert device["parent"] == "GPU-10000000-1111-2222-3333-444444444444"
    assert asked(environ, tmp_path)["labels"] == ["GPU 1 MIG 0"]


@pytest.mark.parametrize("variable", ["FAKE_USER", "FAKE_MPS", "FAKE_DRAWS"])
def test_who_uses_a_gpu_is_named(library: dict[str, str], tmp_path: Path, variable: str) -> None:
    """Processes that compute, share by MPS or draw are told, with their program's name."""
    found = asked(library | {"FAKE_GPUS": "2", variable: f"1:{os.getpid()}"}, tmp_path)
    name = Path("/proc/self/comm").read_text().strip()
    user = {"pid": os.getpid(), "name": name, "memory": 3 << 30}
    assert found["users"] == {"GPU 0": [], "GPU 1": [user]}


def test_a_driver_without_instances_is_an_old_one(library: dict[str, str], tmp_path: Path) -> None:
    """What a driver does not know stays unknown; the rest is told."""
    assert asked(library | {"FAKE_GPUS": "1", "FAKE_OLD": "1"}, tmp_path)["labels"] == ["GPU 0"]


def test_a_driver_that_does_not_answer_is_a_fault(library: dict[str, str], tmp_path: Path) -> None:
    """Device files without a working driver: 125 and what to do, never a run on the CPU."""
    (tmp_path / "nvidia0").touch()
    found = asked(library | {"FAKE_GPUS": "1", "FAKE_INIT": "18"}, tmp_path)
    assert found["status"] == 125
    assert "does not answer" in found["error"]
    assert "restart the machine" in found["hint"]
    without = asked({}, tmp_path)
    assert "nvidia0" in without["error"]
    assert "cannot be loaded" in without["error"]


def test_a_library_without_a_driver_is_no_gpu(library: dict[str, str], tmp_path: Path) -> None:
    """The library of a package, on a machine without GPUs: the caller sees none."""
    assert asked(library | {"FAKE_GPUS": "1", "FAKE_INIT": "9"}, tmp_path)["devices"] == []


def test_without_gpus_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """Neither where there is no library, nor where the caller wants to see none."""
    assert asked({}, tmp_path)["heavy"] is False


def test_a_caller_who_hides_its_gpus_wakes_no_driver(
    library: dict[str, str], tmp_path: Path
) -> None:
    """An empty ``CUDA_VISIBLE_DEVICES`` is a run without GPUs, even beside a broken driver."""
    (tmp_path / "nvidia0").touch()
    for value in ("", "-1"):
        environ = library | {"FAKE_GPUS": "1", "FAKE_INIT": "18", "CUDA_VISIBLE_DEVICES": value}
        found = asked(environ, tmp_path)
        assert found.get("devices") == [], found


# -- AMD ------------------------------------------------------------------------------------------


def test_amds_gpus_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    """GPUs in the order of the kernel's nodes, with number, memory, place and device file."""
    fake = fake_amd(tmp_path, gpus=11)
    devices = Amd(fake.sys, fake.dev, fake.proc).devices()
    assert [d.index for d in devices] == list(range(11))
    assert [d.nodes[0].rpartition("/")[2] for d in devices] == [
        f"renderD{128 + n}" for n in range(11)
    ]
    first = devices[0]
    assert (first.uuid, first.name) == (fake.uuid(0), "aqua vanjaram")
    assert (first.memory, first.bus) == (206141652992, "0000:c3:00.0")


def test_a_gpu_that_may_not_be_opened_is_not_seen(tmp_path: Path) -> None:
    """Without its device file a GPU is none, for us as for a program."""
    fake = fake_amd(tmp_path, gpus=3)
    (fake.dev / "dri/renderD129").unlink()
    found = Amd(fake.sys, fake.dev, fake.proc).devices()
    assert [(d.index, d.nodes[0][-3:]) for d in found] == [(0, "128"), (1, "130")]
    assert Amd(fake.sys, tmp_path / "nothing", fake.proc).devices() == ()


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": ""}, [1]),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"}, []),
        ({"CUDA_VISIBLE_DEVICES": " -1 "}, []),
        ({"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "0"}, []),
    ],
)
def test_the_list_that_programs_read_decides(
    tmp_path: Path, environ: dict[str, str], seen: list[int]
) -> None:
    """HIP's own variable comes before CUDA's, also where one of them is empty."""
    fake = fake_amd(tmp_path)
    found = look(environ, (Amd(fake.sys, fake.dev, fake.proc),)).selection.devices
    assert [device.index for device in found] == seen


def test_amds_users_are_those_with_memory_on_the_gpu(tmp_path: Path) -> None:
    """A process with memory on a GPU is told for that GPU, by the kernel's number of it."""
    fake = fake_amd(tmp_path)
    provider = Amd(fake.sys, fake.dev, fake.proc)
    one = fake.sys / "class/kfd/kfd/proc/4711"
    one.mkdir(parents=True)
    (one / "vram_1001").write_text("1048576\n")
    (one / "vram_1000").write_text("0\n")
    comm = fake.proc / "4711/comm"
    comm.parent.mkdir(parents=True)
    comm.write_text("python3\n")
    seen = look({"HIP_VISIBLE_DEVICES": "1,0"}, (provider, Nvidia(tmp_path)))
    users = [[(u.pid, u.name, u.memory) for u in provider.users(d)] for d in seen.selection.devices]
    assert users == [[(4711, "python3", 1048576)], []]
    assert provider.driver().version == "6.8.5"


def test_parts_of_a_divided_gpu_are_devices_of_their_own(tmp_path: Path) -> None:
    """Where parts share a number each is told apart, by the same name for whoever sees it alone."""
    fake = fake_amd(tmp_path, gpus=3)
    for node in (1, 2):
        file = fake.sys / f"class/kfd/kfd/topology/nodes/{node}/properties"
        file.write_text(file.read_text().replace(str(fake.number + node - 1), "77"))
    driver = Amd(fake.sys, fake.dev, fake.proc)
    one, two, other = driver.devices()
    assert len({one.uuid, two.uuid, other.uuid}) == 3
    assert other.uuid == f"GPU-{fake.number + 2:016x}"
    chosen = visible.amd((one, two, other), {"ROCR_VISIBLE_DEVICES": "0,1"})
    assert chosen.devices == (one, two)
    (fake.dev / "dri/renderD128").unlink()
    assert [device.uuid for device in driver.devices()] == [two.uuid, other.uuid]
