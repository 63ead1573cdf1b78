"""Which devices the caller sees: the variables of drivers and schedulers, read as they read them.

Rules that this module keeps:

- Pure: the driver's devices and the caller's variables go in, a ``Selection`` comes out.
- What a program started here would see is the answer, oddities included: a list ends at its first
  entry that names nothing (CUDA C++ Programming Guide, environment variables), and one that names
  a device twice names none.
- A variable can only take devices away. What it names and this machine lacks is said.
- Where the driver's order and the program's may differ, nothing is guessed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sealrun.devices.model import Selection
from sealrun.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sealrun.devices.model import Device, Vendor

CUDA, CUDA_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
NVIDIA = "NVIDIA_VISIBLE_DEVICES"
ROCR = "ROCR_VISIBLE_DEVICES"
#: Read by the HIP runtime, in this order; the last is taken for portability (ROCm documentation,
#: "GPU isolation techniques").
HIP = ("HIP_VISIBLE_DEVICES", CUDA)
#: By which a program counts its GPUs.
COUNTS = (CUDA_ORDER, ROCR, *HIP)
#: Global numbers of a job's GPUs (srun(1), sbatch(1)); a step has its own.
SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_LARGEST = 4096
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/(\d+)/(\d+)")


def nvidia(
    devices: Sequence[Device], environ: Mapping[str, str], *, contained: bool = False
) -> Selection:
    """Return the NVIDIA devices that the caller sees.

    Args:
        devices: as the driver shows them, instances of divided GPUs included.
        environ: the caller's variables.
        contained: the caller is in a container itself: what ``NVIDIA_VISIBLE_DEVICES`` asked its
            runtime for is already so, and the numbers in it are the host's.

    Raises:
        UsageError: GPUs of different kinds are named by numbers that depend on their speed.
    """
    because: dict[str, str] = {}
    remarks: list[str] = []
    seen = list(devices)
    if NVIDIA in environ and not contained:
        shown = _runtime(environ[NVIDIA], seen)
        if shown is not None:
            because[NVIDIA] = environ[NVIDIA]
            seen = shown
    if CUDA not in environ:
        seen = _scheduled(seen, environ, because)
        return Selection(_usable(seen), because=because)
    text = environ[CUDA]
    because[CUDA] = text
    # A program here counts all that the driver shows, whatever a container runtime would hide.
    _check_order(text, devices, environ)
    named = _listed(text, devices, _cuda_entry, CUDA, remarks)
    allowed = {device.uuid for device in seen}
    remarks += [
        f"{NVIDIA}={environ.get(NVIDIA)} hides {device.label}, which {CUDA} names"
        for device in named
        if device.uuid not in allowed
    ]
    kept = tuple(device for device in named if device.uuid in allowed)
    return Selection(kept, ordered=True, because=because, remarks=tuple(remarks))


def amd(devices: Sequence[Device], environ: Mapping[str, str]) -> Selection:
    """Return the AMD devices that the caller sees.

    ``ROCR_VISIBLE_DEVICES`` comes first, and HIP counts what it leaves.
    """
    because: dict[str, str] = {}
    remarks: list[str] = []
    seen = list(devices)
    lists = lists_of("amd", environ)
    if not lists:
        seen = _scheduled(seen, environ, because)
    for name in lists:
        because[name] = environ[name]
        seen = _listed(environ[name], seen, _position, name, remarks)
    return Selection(tuple(seen), bool(lists), because, tuple(remarks))


def lists_of(vendor: Vendor, environ: Mapping[str, str]) -> list[str]:
    """Return the variables that are set and that a vendor's programs read, in their order."""
    names = (CUDA,) if vendor == "nvidia" else (ROCR, _first(HIP, environ))
    return [name for name in names if name and name in environ]


def _first(names: Sequence[str], environ: Mapping[str, str]) -> str | None:
    return next((name for name in names if name in environ), None)


def _listed(
    text: str,
    devices: Sequence[Device],
    entry: Callable[[str, Sequence[Device]], Device | None],
    variable: str,
    remarks: list[str],
) -> list[Device]:
    """Return what a list names, up to its first entry that names nothing."""
    found: list[Device] = []
    for word in (part.strip() for part in text[:_LARGEST].split(",")):
        device = entry(word, devices)
        if device is None:
            # These are how a list is ended, or emptied, on purpose.
            if word not in {"", "-1", "NoDevFiles", "none"}:
                remarks.append(f"{variable}: {word!r} names no GPU that is seen here")
            break
        found.append(device)
    if len({device.uuid for device in found}) < len(found):
        remarks.append(f"{variable} names a GPU twice, which leaves a program none")
        return []
    return found


def _cuda_entry(word: str, devices: Sequence[Device]) -> Device | None:
    gpus = [device for device in devices if device.parent is None]
    if word.isascii() and word.isdigit():
        at = int(word)
        return _program(gpus[at], devices) if at < len(gpus) else None
    return _by_uuid(word, devices)


def _by_uuid(word: str, devices: Sequence[Device]) -> Device | None:
    old = _OLD_MIG.fullmatch(word)
    if old:
        numbers = (int(old[2]), int(old[3]))
        same = [d for d in devices if d.parent == old[1] and d.instance == numbers]
        return same[0] if same else None
    if not word.startswith(("GPU-", "MIG-")) or word in {"GPU-", "MIG-"}:
        return None
    # Enough digits from the beginning will do, as long as they fit one device only.
    fitting = [d for d in devices if d.uuid.lower().startswith(word.lower())]
    return _program(fitting[0], devices) if len(fitting) == 1 else None


def _program(gpu: Device, devices: Sequence[Device]) -> Device | None:
    """Return what a program gets of a GPU: itself, or the first instance of a divided one."""
    if not gpu.divided:
        return gpu
    return next((d for d in devices if d.parent == gpu.uuid), None)


def _usable(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return what a program uses of all that it sees.

    Where there is an instance of a divided GPU, CUDA shows one instance and nothing else (MIG User
    Guide, "CUDA device enumeration").
    """
    instances = [device for device in devices if device.parent is not None]
    if instances:
        return (instances[0],)
    return tuple(device for device in devices if not device.divided)


def _runtime(text: str, devices: Sequence[Device]) -> list[Device] | None:
    """Return what NVIDIA's container runtime would show; None for everything.

    ``GPU:INSTANCE`` numbers an instance of a divided GPU; a divided GPU stands for its instances.
    """
    words = [word.strip() for word in text[:_LARGEST].split(",")]
    if words == ["all"]:
        return None
    found: list[Device] = []
    for word in words:
        number, _, slot = word.partition(":")
        for device in devices:
            chosen = (
                (device.slot == int(slot) and device.index == int(number))
                if slot.isdecimal() and number.isdecimal()
                else word in {str(device.index), device.uuid, device.parent}
            )
            if chosen and device not in found:
                found.append(device)
    return found


def _scheduled(
    devices: list[Device], environ: Mapping[str, str], because: dict[str, str]
) -> list[Device]:
    """Return what Slurm gave the caller's job, where it did not hide the rest itself."""
    variable = _first(SLURM, environ)
    if variable is None:
        return devices
    numbers = _numbers(environ[variable])
    gpus = [device for device in devices if device.parent is None]
    if numbers is None or len(gpus) <= len(numbers):
        # Confined by its control group: what is seen is the job's, counted anew from nought.
        return devices
    because[variable] = environ[variable]
    mine = {gpu.uuid for gpu in gpus if _number(gpu) in numbers}
    return [device for device in devices if mine & {device.uuid, device.parent}]


def _number(gpu: Device) -> int:
    """Return a GPU's number in its device file, which is what Slurm counts by (gres.conf(5))."""
    for node in gpu.nodes:
        found = re.fullmatch(r"/dev/nvidia(\d+)", node)
        if found:
            return int(found[1])
    return gpu.index


def _numbers(text: str) -> frozenset[int] | None:
    found: set[int] = set()
    for word in text[:_LARGEST].split(","):
        span = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", word)
        if span is None:
            return None
        found.update(range(int(span[1]), int(span[2] or span[1]) + 1))
    return frozenset(found)


def _position(word: str, devices: Sequence[Device]) -> Device | None:
    if word.isascii() and word.isdigit():
        return devices[int(word)] if int(word) < len(devices) else None
    return _by_uuid(word, devices)


def _check_order(text: str, devices: Sequence[Device], environ: Mapping[str, str]) -> None:
    numbered = any(word.strip().isdecimal() for word in text.split(","))
    kinds = {device.name for device in devices if device.parent is None}
    if not numbered or len(kinds) <= 1 or environ.get(CUDA_ORDER) == "PCI_BUS_ID":
        return
    raise UsageError(
        f"{CUDA}={text} is ambiguous: there are {len(kinds)} kinds of GPU here, and CUDA numbers "
        "the fastest first, the driver by their slots",
        hint=f"Set {CUDA_ORDER}=PCI_BUS_ID, or name the GPUs by UUID (nvidia-smi -L lists them).",
    )
