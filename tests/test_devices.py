"""GPUs: what the caller sees, and how an engine is asked for just that."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sealrun.cli.show import _devices as shown
from sealrun.devices import visible
from sealrun.devices.access import Access, Toolkit, access, remedy, unexpected
from sealrun.devices.assign import described
from sealrun.devices.injected import brought, is_injected, may_be_written
from sealrun.devices.model import Device, Selection
from sealrun.errors import EnvironmentFault, UsageError
from sealrun.ledger import RunEnded, RunOpened, RunProgress, RunRecord
from sealrun.reproduce.sameness import conditions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def green(index: int, **changes: Any) -> Device:  # noqa: ANN401 - fields of Device
    """Return an NVIDIA GPU."""
    base = Device(
        "nvidia",
        f"GPU-{index}000000{index}-aaaa-bbbb-cccc-dddddddddddd",
        index,
        "NVIDIA H100 80GB HBM3",
        80 << 30,
        f"00000000:{index + 1:02X}:00.0",
        (f"/dev/nvidia{index}",),
    )
    return replace(base, **changes)


def instance(gpu: Device, slot: int) -> Device:
    """Return an instance of a divided GPU."""
    return replace(
        gpu,
        uuid=f"MIG-{gpu.index}{slot}345678-aaaa-bbbb-cccc-dddddddddddd",
        divided=False,
        parent=gpu.uuid,
        instance=(slot + 1, 0),
        slot=slot,
        memory=10 << 30,
    )


FOUR = [green(n) for n in range(4)]
DIVIDED = green(0, divided=True)
MIXED = [DIVIDED, instance(DIVIDED, 0), instance(DIVIDED, 1), green(1)]


def seen(devices: Sequence[Device], environ: Mapping[str, str], **more: bool) -> list[str]:
    """Return the labels of the NVIDIA devices that a caller sees."""
    return [d.label for d in visible.nvidia(devices, environ, **more).devices]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2", [2]),
        ("1,0", [1, 0]),
        (" 3 , 1 ", [3, 1]),
        ("0,2,-1,1", [0, 2]),
        ("0,9,1", [0]),
        ("9", []),
        ("0,1,0", []),
        ("0,x,1", [0]),
        ("GPU-1", [1]),
        ("GPU-10000001-aaaa", [1]),
        ("gpu-10000001-aaaa", []),
        ("GPU-", []),
        ("GPU-3,GPU-0", [3, 0]),
        ("GPU-77", []),
        ("99999999999999999999", []),
        ("٣", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(value: str, expected: list[int]) -> None:
    """Numbers, uuids and their beginnings, in order, up to the first that names nothing."""
    assert seen(FOUR, {"CUDA_VISIBLE_DEVICES": value}) == [f"GPU {n}" for n in expected]


def test_without_variables_a_caller_sees_every_gpu() -> None:
    """No variable: all that the driver shows, in its order, and nothing is said to have decided."""
    selection = visible.nvidia(FOUR, {})
    assert selection == Selection(tuple(FOUR))


def test_an_ambiguous_beginning_names_no_gpu() -> None:
    """The beginning of two uuids names neither."""
    twins = [green(0, uuid="GPU-ab1"), green(1, uuid="GPU-ab2")]
    selection = visible.nvidia(twins, {"CUDA_VISIBLE_DEVICES": "GPU-ab"})
    assert selection.devices == ()
    assert "names no GPU" in selection.remarks[0]


def test_numbers_of_different_gpus_are_not_guessed() -> None:
    """Where the fastest GPU is 0 for CUDA and another one for the driver, a human has to say."""
    two = [green(0, name="NVIDIA T400"), green(1)]
    with pytest.raises(UsageError, match="ambiguous") as caught:
        visible.nvidia(two, {"CUDA_VISIBLE_DEVICES": "0"})
    assert "PCI_BUS_ID" in (caught.value.hint or "")
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert seen(two, {"CUDA_VISIBLE_DEVICES": "0", **order}) == ["GPU 0"]
    assert seen(two, {"CUDA_VISIBLE_DEVICES": "GPU-1"}) == ["GPU 1"]
    assert seen(two, {}) == ["GPU 0", "GPU 1"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ["GPU 0 MIG 0"]),
        ("0", ["GPU 0 MIG 0"]),
        ("1", ["GPU 1"]),
        ("MIG-01345678-aaaa-bbbb-cccc-dddddddddddd", ["GPU 0 MIG 1"]),
        ("MIG-01", ["GPU 0 MIG 1"]),
        (f"MIG-{DIVIDED.uuid}/2/0", ["GPU 0 MIG 1"]),
        (f"MIG-{DIVIDED.uuid}/7/0", []),
        (DIVIDED.uuid, ["GPU 0 MIG 0"]),
    ],
)
def test_instances_of_divided_gpus(value: str | None, expected: list[str]) -> None:
    """An instance is named by uuid, old or new; a divided GPU stands for its first instance."""
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert seen(MIXED, environ) == expected


def test_a_divided_gpu_without_instances_is_no_gpu() -> None:
    """MIG mode without an instance: nothing that a program could use."""
    assert seen([DIVIDED], {}) == []
    assert seen([DIVIDED], {"CUDA_VISIBLE_DEVICES": "0"}) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ("none", []),
        ("void", []),
        ("", []),
        ("1,3", [1, 3]),
        (FOUR[2].uuid, [2]),
        ("7", []),
    ],
)
def test_nvidia_visible_devices_narrows(value: str, expected: list[int]) -> None:
    """What a container runtime would be asked for can only take GPUs away."""
    assert seen(FOUR, {"NVIDIA_VISIBLE_DEVICES": value}) == [f"GPU {n}" for n in expected]


def test_both_lists_count_for_themselves() -> None:
    """CUDA counts all that the driver shows; the other list hides, and that is said."""
    environ = {"NVIDIA_VISIBLE_DEVICES": "1,2", "CUDA_VISIBLE_DEVICES": "3,2"}
    selection = visible.nvidia(FOUR, environ)
    assert [d.index for d in selection.devices] == [2]
    assert "hides GPU 3" in selection.remarks[0]


def test_in_a_container_the_runtimes_list_is_done() -> None:
    """``NVIDIA_VISIBLE_DEVICES=3`` of a container with one GPU: that GPU is number 0 in there."""
    environ = {"NVIDIA_VISIBLE_DEVICES": "3"}
    assert seen([green(0)], environ, contained=True) == ["GPU 0"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_JOB_GPUS": "1,2"}, [1, 2]),
        ({"SLURM_JOB_GPUS": "1-2"}, [1, 2]),
        ({"SLURM_JOB_GPUS": "0,1,2", "SLURM_STEP_GPUS": "2"}, [2]),
        ({"SLURM_JOB_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"SLURM_JOB_GPUS": "gpu:2"}, [0, 1, 2, 3]),
        ({"SLURM_JOB_GPUS": "4,5,6,7"}, [0, 1, 2, 3]),
    ],
)
def test_slurm_gives_a_job_its_gpus(environ: dict[str, str], expected: list[int]) -> None:
    """Global numbers, a step's before its job's; nothing where a control group did it already."""
    assert seen(FOUR, environ) == [f"GPU {n}" for n in expected]


def red(index: int) -> Device:
    """Return an AMD GPU."""
    return Device(
        "amd",
        f"GPU-00000000000000a{index}",
        index,
        "AMD Instinct MI300X",
        nodes=(f"/dev/dri/renderD{128 + index}",),
    )


REDS = [red(n) for n in range(4)]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "2,1"}, [2, 1]),
        ({"ROCR_VISIBLE_DEVICES": "2,1", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-00000000000000a3,0"}, [3, 0]),
        ({"HIP_VISIBLE_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "0"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"SLURM_JOB_GPUS": "2"}, [2]),
    ],
)
def test_amds_lists_count_one_after_the_other(environ: dict[str, str], expected: list[int]) -> None:
    """ROCm's list comes first, and HIP's counts what it leaves."""
    assert [d.index for d in visible.amd(REDS, environ).devices] == expected


def test_no_list_ever_adds_a_gpu() -> None:
    """Whatever the lists hold, what is seen is among what the driver shows, each once."""
    words = ["", "0", "3", "4", "-1", "GPU-1", "GPU-", "MIG-01", "all", "void", "0:1", ",", "0,0"]
    for cuda, runtime in itertools.product(words, words):
        environ = {"CUDA_VISIBLE_DEVICES": cuda, "NVIDIA_VISIBLE_DEVICES": runtime}
        for devices in (FOUR, MIXED, []):
            found = visible.nvidia(devices, environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).devices
            assert len({d.uuid for d in found}) == len(found)
            assert set(found) <= set(devices)


# -- how an engine is asked -----------------------------------------------------------------------

WITH = Toolkit(runtimes=frozenset({"runc", "nvidia"}))


def asked(selection: Selection, toolkit: Toolkit = WITH, **environ: str) -> Access:
    """Return how a container gets a selection."""
    found = access(selection, toolkit, {}, environ)
    assert found is not None
    return found


def test_nvidia_gpus_are_asked_for_by_uuid() -> None:
    """In the engine's device request stand the uuids, never a number or a count."""
    chosen = visible.nvidia(FOUR, {"CUDA_VISIBLE_DEVICES": "3,1"})
    (request,) = asked(chosen).requests
    assert request == {
        "Driver": "nvidia",
        "DeviceIDs": [FOUR[3].uuid, FOUR[1].uuid],
        "Capabilities": [["gpu", "compute", "utility"]],
    }


def test_the_container_counts_as_the_caller_does() -> None:
    """The caller's first GPU is the program's first, whatever its number outside."""
    chosen = visible.nvidia(FOUR, {"CUDA_VISIBLE_DEVICES": "3,1"})
    assert asked(chosen).variables == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1,0",
    }
    assert asked(visible.nvidia(FOUR, {})).variables == {}
    mig = visible.nvidia(MIXED, {"CUDA_VISIBLE_DEVICES": "MIG-01"})
    assert asked(mig).variables == {"CUDA_VISIBLE_DEVICES": MIXED[2].uuid}


def test_an_engine_with_cdi_alone_is_asked_in_its_words() -> None:
    """Without NVIDIA's runtime but with its devices in the engine's list: CDI names."""
    names = frozenset(f"nvidia.com/gpu={gpu.uuid}" for gpu in FOUR[:2])
    chosen = Selection((FOUR[1],))
    (request,) = asked(chosen, Toolkit(frozenset({"runc"}), names)).requests
    assert request == {"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={FOUR[1].uuid}"]}


def test_an_engine_without_a_toolkit_is_told_with_the_fix() -> None:
    """Trouble of the machine: which GPU, what is missing, and the very commands."""
    with pytest.raises(EnvironmentFault, match="no NVIDIA Container Toolkit") as caught:
        access(Selection((FOUR[1],)), Toolkit(frozenset({"runc"})), {}, {})
    assert caught.value.status == 125
    assert "nvidia-ctk runtime configure --runtime=docker" in (caught.value.hint or "")


def test_an_engine_elsewhere_may_have_what_it_does_not_list() -> None:
    """A hook that an engine finds on its own path is in none of its lists: it is asked."""
    elsewhere = Toolkit(frozenset({"runc"}), here=False)
    assert asked(Selection((FOUR[0],)), elsewhere).how == ("nvidia",)


def test_amds_gpus_are_passed_as_device_files() -> None:
    """The common file and each GPU's own, with the groups that may open them."""
    groups = {"/dev/kfd": 44, "/dev/dri/renderD129": 109, "/dev/dri/renderD130": 109}
    chosen = visible.amd(REDS, {"ROCR_VISIBLE_DEVICES": "2,1"})
    found = access(chosen, Toolkit(), groups, {})
    assert found is not None
    assert found.files == (
        ("/dev/kfd", "/dev/kfd"),
        ("/dev/dri/renderD130", "/dev/dri/renderD130"),
        ("/dev/dri/renderD129", "/dev/dri/renderD129"),
    )
    assert found.groups == (44, 109)
    assert found.variables == {"HIP_VISIBLE_DEVICES": "1,0"}
    assert not found.injected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (
            'could not select device driver "nvidia" with capabilities: [[gpu]]',
            "nvidia-ctk runtime",
        ),
        ('could not select device driver "cdi" with capabilities: []', "nvidia-ctk runtime"),
        ("unresolvable CDI devices nvidia.com/gpu=GPU-1: unknown", "cdi generate"),
        ("nvidia-container-cli: device error: GPU-x: unknown device: unknown", "nvidia-smi -L"),
        ("nvidia-container-cli: mount error: failed to add device rules: bpf", "no-cgroups"),
        ("nvidia-container-cli: initialization error: load library failed", "nvidia-smi"),
        ("no such image", None),
    ],
)
def test_an_engines_refusal_has_its_remedy(text: str, word: str | None) -> None:
    """Each way in which a container fails to get a GPU says what to do; others say nothing."""
    found = remedy(f"OCI runtime create failed:\n {text}")
    assert (word in (found or "")) if word else found is None


PLAIN = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"]


def test_another_gpus_device_file_is_noticed() -> None:
    """A container that got more than it was to get is not what was asked for."""
    mine = asked(Selection((FOUR[1],)))
    common = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-caps/nvidia-cap1"]
    assert unexpected([*PLAIN, *common, "/dev/nvidia1"], mine) == []
    assert unexpected([*PLAIN, *common, "/dev/nvidia1", "/dev/nvidia0"], mine) == ["/dev/nvidia0"]
    assert unexpected([*PLAIN, "/dev/sda", "/dev/nvidiactl"], None) == [
        "/dev/sda",
        "/dev/nvidiactl",
    ]
    reds = asked(visible.amd(REDS, {"ROCR_VISIBLE_DEVICES": "1"}))
    files = ["/dev/kfd", "/dev/dri/renderD129", "/dev/dri/renderD128", "/dev/nvidia0"]
    assert unexpected([*PLAIN, *files], reds) == files[2:]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15", True),
        ("/usr/lib64/libnvidia-ml.so.550.54.15", True),
        ("/usr/bin/nvidia-smi", True),
        ("/lib/firmware/nvidia/550.54.15/gsp_ga10x.bin", True),
        ("/run/nvidia-persistenced/socket", True),
        ("/dev/nvidia0", True),
        ("/usr/share/vulkan/icd.d/nvidia_icd.json", True),
        ("/workspace/train.py", False),
        ("/usr/lib/python3/site-packages/torch/lib/libtorch.so", False),
        ("/usr/bin/python3", False),
        ("/etc/passwd", False),
        ("/usr/lib/libcuda.so/../../../etc/passwd", False),
        ("/usr/lib/x86_64-linux-gnu/libcudadebugger.so.550.54.15", True),
        ("/usr/local/nvidia/lib64/libnvidia-ptxjitcompiler.so.550.54.15", True),
        ("/opt/env/lib/python3.11/site-packages/nvidia/cuda_runtime/lib/libcudart.so.12", False),
        ("/usr/lib/x86_64-linux-gnu/libcudart.so.12", False),
        ("/usr/lib/python3/dist-packages/nvidia.json", False),
        ("/workspace/nvidia.yaml", False),
        ("/workspace/libnvidia-model.so", False),
        ("/opt/env/bin/nvidia-smi", False),
        ("/home/run/.cache/nvidia.conf", False),
    ],
)
def test_the_toolkits_own_mounts_are_known_by_name(target: str, expected: bool) -> None:  # noqa: FBT001 - a table
    """The driver's files are the toolkit's; any other mount is one that nobody asked for."""
    assert is_injected(target) is expected


def test_digits_that_are_no_numbers_name_nothing() -> None:
    """A superscript is a digit to Unicode, and no GPU's number."""
    for text in ("\u00b2", "\u00b2:\u00b2", "0:\u00b2"):
        assert seen(MIXED, {visible.NVIDIA: text}) == []


def test_a_drivers_file_that_could_be_written_is_none() -> None:
    """Sockets and device files alone are writable; a file with a driver's name elsewhere is not."""
    targets = ("/dev/nvidia0", "/run/nvidia-persistenced/socket")
    assert all(is_injected(target) and may_be_written(target) for target in targets)
    assert not any(may_be_written(t) for t in ("/run/libcuda.so.1", "/dev/libcuda.so.1"))


def test_links_to_the_drivers_libraries_are_the_toolkits(tmp_path: Path) -> None:
    """What hooks make beside the mounts is named; what the image brought is not."""
    libraries = tmp_path / "usr/lib"
    libraries.mkdir(parents=True)
    (libraries / "libcuda.so.550.1").write_text("driver")
    (libraries / "libcuda.so.1").symlink_to("libcuda.so.550.1")
    (libraries / "libcuda.so").symlink_to("libcuda.so.1")
    (libraries / "libz.so").symlink_to("libz.so.1")
    (libraries / "libcudart.so.12").write_text("the image's own")
    configuration = tmp_path / "etc/ld.so.conf.d"
    configuration.mkdir(parents=True)
    (configuration / "00-nvcr-123.conf").write_text("/usr/lib")
    (configuration / "x86_64-linux-gnu.conf").write_text("/usr/lib")
    assert set(brought(tmp_path, ["/workspace", "/usr/lib/libcuda.so.550.1"])) == {
        "/usr/lib/libcuda.so.550.1",
        "/usr/lib/libcuda.so.1",
        "/usr/lib/libcuda.so",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf.d/00-nvcr-123.conf",
    }
    assert brought(tmp_path, ["/workspace"]) == ()


# -- what is shown --------------------------------------------------------------------------------


def test_a_gpu_is_shown_in_a_line() -> None:
    """Each GPU with name, uuid, memory and place; each other process; the drivers."""
    facts = {
        "driver": "nvidia 550.54.15",
        "gpus": ["NVIDIA H100 80GB HBM3 MIG 1g.10gb"],
        "assigned": [described(MIXED[1])],
        "in_use_by": [{"uuid": MIXED[1].uuid, "pid": 7, "name": "python\x1b[2J", "memory": None}],
        "torch": {"version": "2.13.0"},
    }
    lines = list(shown(facts))
    assert [" ".join(line.split()) for line in lines] == [
        f"GPU 0 NVIDIA H100 80GB HBM3, {MIXED[1].uuid}, 10 GiB, at 00000000:01:00.0, instance [1, 0] of {DIVIDED.uuid}",
        f"in use by pid 7, python\\x1b[2J, on {MIXED[1].uuid}",
        "driver nvidia 550.54.15",
        "torch {'version': '2.13.0'}",
    ]
    assert not list(shown({"assigned": "odd", "in_use_by": [1, None]}))


def test_others_on_the_gpus_are_a_condition_of_a_runs_result() -> None:
    """A run beside another process and one alone do not measure the same; without GPUs it is no word."""
    alone = {"assigned": [described(FOUR[0])]}
    for facts, expected in (
        (alone, "none"),
        (alone | {"in_use_by": [{"pid": 7}]}, "some"),
        ({}, None),
    ):
        ended = RunEnded(run="01", outcome="succeeded", device_facts=facts)
        opened = RunOpened(run="01", commit="c" * 40, tree="d" * 40)
        record = RunRecord(
            "01", "", None, 1, "", opened, RunProgress(run="01"), ended, (), None, {}
        )
        assert conditions(record).get("others on the GPUs") == expected
