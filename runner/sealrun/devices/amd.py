"""AMD's GPUs, through the kernel's own files (amdgpu's KFD topology in sysfs).

Rules that this module keeps:

- No library: the numbers are the kernel's (``/sys/class/kfd/kfd/topology/nodes``), in the order in
  which ROCm's runtime counts GPUs.
- A GPU that this process may not open is not seen, as for a program started here.
- A file that is missing or odd leaves one value unknown.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.devices.model import Device, Driver, User, Vendor
from sealrun.devices.nvidia import name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The device file that all GPUs share.
KFD = "/dev/kfd"
_NODES = "class/kfd/kfd/topology/nodes"
#: Kinds of memory bank that are the GPU's own (``linux/kfd_sysfs.h``: public and private).
_OWN_MEMORY = {1, 2}


class Amd:
    """The AMD driver of this machine.

    Args:
        sys: where sysfs stands.
        dev: where device files stand.
        proc: where the kernel's process files stand.
    """

    vendor: Vendor = "amd"

    def __init__(
        self,
        sys: Path = Path("/sys"),
        dev: Path = Path("/dev"),
        proc: Path = Path("/proc"),
    ) -> None:
        self._sys = sys
        self._dev = dev
        self._proc = proc

    def devices(self) -> Sequence[Device]:
        """Return every GPU that the driver shows and this process may open."""
        if not (self._dev / "kfd").exists():
            return ()
        found: list[Device] = []
        for node in sorted(_listed(self._sys / _NODES), key=_number):
            values = _properties(node / "properties")
            # A node without SIMDs is a processor.
            if values.get("simd_count"):
                minor = values.get("drm_render_minor", 0)
                render = self._dev / "dri" / f"renderD{minor}"
                found.append(self._device(node, values, len(found), render))
        # Parts of a divided GPU share its number on some kernels; each is a device here, by the same
        # name for everybody, whichever of them a caller may open.
        times = Counter(device.uuid for device in found)
        seen = [device for device in found if os.access(device.nodes[0], os.R_OK | os.W_OK)]
        return tuple(
            replace(
                device, index=index, uuid=_apart(device) if times[device.uuid] > 1 else device.uuid
            )
            for index, device in enumerate(seen)
        )

    def _device(self, node: Path, values: Mapping[str, int], index: int, render: Path) -> Device:
        unique, location = values.get("unique_id", 0), values.get("location_id", 0)
        # Bus, device and function as one number; the domain apart (``kfd_topology.c``).
        bus = (
            f"{values.get('domain', 0):04x}:{location >> 8 & 0xFF:02x}:"
            f"{location >> 3 & 0x1F:02x}.{location & 7}"
        )
        card = self._sys / "class/drm" / render.name / "device"
        return Device(
            self.vendor,
            # Cards without a number of their own are told apart by their place.
            f"GPU-{unique:016x}" if unique else f"GPU-{bus}",
            index,
            _line(card / "product_name") or _line(node / "name") or "AMD GPU",
            _memory(node / "mem_banks"),
            bus,
            (str(render),),
        )

    def driver(self) -> Driver:
        """Return the version of the kernel's module; ROCm itself is in the image."""
        return Driver(self.vendor, _line(self._sys / "module/amdgpu/version"))

    def users(self, device: Device) -> Sequence[User]:
        """Return the processes that compute on a device (``/sys/class/kfd/kfd/proc``)."""
        gpu = self._kernel_number(device)
        found: list[User] = []
        for process in _listed(self._sys / "class/kfd/kfd/proc"):
            used = _line(process / f"vram_{gpu}")
            if gpu is not None and process.name.isdigit() and used and used.isdigit():
                pid = int(process.name)
                if int(used):
                    found.append(User(pid, name_of(pid, self._proc), int(used)))
        return tuple(found)

    def _kernel_number(self, device: Device) -> int | None:
        for node in _listed(self._sys / _NODES):
            minor = _properties(node / "properties").get("drm_render_minor", 0)
            if device.nodes and device.nodes[0].endswith(f"/renderD{minor}"):
                number = _line(node / "gpu_id") or ""
                return int(number) if number.isdigit() else None
        return None


def _apart(device: Device) -> str:
    return f"{device.uuid}-{device.nodes[0].rpartition('/')[2]}"


def _number(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else 1 << 30, path.name)


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _line(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace").partition("\n")[0].strip() or None
    except OSError:
        return None


def _properties(file: Path) -> dict[str, int]:
    try:
        text = file.read_text("ascii", "replace")
    except OSError:
        return {}
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004 - name and value


def _memory(banks: Path) -> int | None:
    sizes = [
        values.get("size_in_bytes", 0)
        for values in (_properties(bank / "properties") for bank in _listed(banks))
        if values.get("heap_type") in _OWN_MEMORY
    ]
    return sum(sizes) or None
