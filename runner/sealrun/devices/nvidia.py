"""NVIDIA's GPUs, through the driver's own library (NVML) by nvidia-ml-py.

Rules that this module keeps:

- Without the library and without device files there are no GPUs, and nothing heavy is imported.
- Device files without a working library are a fault: the caller has GPUs that we cannot tell apart.
- One question that a driver does not answer leaves one value unknown.
"""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.devices.model import Device, Driver, User, Vendor
from sealrun.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LIBRARY = "libnvidia-ml.so.1"
#: Device files that all GPUs share, and what a container gets of them.
COMMON = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_HINT = (
    "nvidia-smi shows the same error. After an update of the driver restart the machine; in a "
    "container or virtual machine install the user space part of the same driver version. A caller "
    "that shall have no GPU sets CUDA_VISIBLE_DEVICES to the empty string."
)


class Nvidia:
    """The NVIDIA driver of this machine.

    Args:
        dev: where device files stand.
        proc: where the kernel's process files stand.
    """

    vendor: Vendor = "nvidia"

    def __init__(self, dev: Path = Path("/dev"), proc: Path = Path("/proc")) -> None:
        self._dev = dev
        self._proc = proc
        self._nvml: Any = None

    def devices(self) -> Sequence[Device]:
        """Return every GPU and every instance that the driver shows to this process.

        Raises:
            EnvironmentFault: there are device files, but the driver does not answer.
        """
        nvml = self._opened()
        if nvml is None:
            return ()
        found: list[Device] = []
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                found += self._gpu(index, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            raise EnvironmentFault(
                f"the NVIDIA driver does not list its GPUs: {error}", hint=_HINT
            ) from error
        return tuple(found)

    def driver(self) -> Driver:
        """Return the driver's version and the newest CUDA that it serves."""
        nvml = self._opened()
        if nvml is None:
            return Driver(self.vendor)
        version = self._asked("nvmlSystemGetDriverVersion")
        # 1000 * major + 10 * minor (NVML API reference, system queries).
        cuda = self._asked("nvmlSystemGetCudaDriverVersion")
        runtime = None if cuda is None else f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"
        return Driver(self.vendor, version, runtime)

    def users(self, device: Device) -> Sequence[User]:
        """Return the processes that compute or draw on a device, as far as they can be seen."""
        nvml = self._opened()
        if nvml is None:
            return ()
        handle = self._asked("nvmlDeviceGetHandleByUUID", device.uuid)
        if handle is None:
            return ()
        found: dict[int, User] = {}
        for question in (
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetMPSComputeRunningProcesses",
            "nvmlDeviceGetGraphicsRunningProcesses",
        ):
            for process in self._asked(question, handle) or ():
                pid = int(process.pid)
                found.setdefault(pid, User(pid, name_of(pid, self._proc), process.usedGpuMemory))
        return tuple(found.values())

    def _opened(self) -> Any:  # noqa: ANN401 - nvidia-ml-py ships no types
        """Return the binding with its library initialised, or None where there is no driver."""
        if self._nvml is not None:
            return self._nvml
        try:
            ctypes.CDLL(_LIBRARY)
        except OSError as error:
            here = sorted(path.name for path in self._dev.glob("nvidia[0-9]*"))
            if here:
                raise EnvironmentFault(
                    f"this machine has NVIDIA GPUs ({', '.join(here)}), but the driver's library "
                    f"cannot be loaded: {error}",
                    hint=_HINT,
                ) from error
            return None
        nvml: Any = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if any(self._dev.glob("nvidia[0-9]*")):
                raise EnvironmentFault(
                    f"this machine has NVIDIA GPUs, but the driver does not answer: {error}",
                    hint=_HINT,
                ) from error
            # The library of an image or a package, on a machine without the driver.
            return None
        self._nvml = nvml
        return nvml

    def _gpu(self, index: int, handle: Any) -> Iterator[Device]:  # noqa: ANN401 - as above
        nvml = self._nvml
        minor = self._asked("nvmlDeviceGetMinorNumber", handle)
        place = self._asked("nvmlDeviceGetPciInfo", handle)
        mode = self._asked("nvmlDeviceGetMigMode", handle)
        gpu = Device(
            self.vendor,
            _text(nvml.nvmlDeviceGetUUID(handle)),
            index,
            _text(nvml.nvmlDeviceGetName(handle)),
            self._memory(handle),
            "" if place is None else _text(place.busId),
            () if minor is None else (f"/dev/nvidia{minor}",),
            divided=bool(mode and mode[0]),
        )
        yield gpu
        if gpu.divided:
            yield from self._instances(gpu, handle)

    def _instances(self, gpu: Device, handle: Any) -> Iterator[Device]:  # noqa: ANN401 - as above
        nvml = self._nvml
        for slot in range(self._asked("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            # Numbers without an instance are normal: the count is how many there can be.
            one = self._asked("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot)
            if one is None:
                continue
            numbers = (
                self._asked("nvmlDeviceGetGpuInstanceId", one),
                self._asked("nvmlDeviceGetComputeInstanceId", one),
            )
            yield Device(
                self.vendor,
                _text(nvml.nvmlDeviceGetUUID(one)),
                gpu.index,
                _text(self._asked("nvmlDeviceGetName", one) or gpu.name),
                self._memory(one),
                gpu.bus,
                gpu.nodes,
                parent=gpu.uuid,
                instance=None if None in numbers else (int(numbers[0]), int(numbers[1])),
                slot=slot,
            )

    def _memory(self, handle: Any) -> int | None:  # noqa: ANN401 - as above
        found = self._asked("nvmlDeviceGetMemoryInfo", handle)
        return None if found is None else int(found.total)

    def _asked(self, question: str, *arguments: Any) -> Any:  # noqa: ANN401 - as above
        try:
            return getattr(self._nvml, question)(*arguments)
        except self._nvml.NVMLError:
            return None


def name_of(pid: int, proc: Path) -> str | None:
    """Return the name of a process's program (proc(5), comm), None where it cannot be seen."""
    try:
        return (proc / str(pid) / "comm").read_text("utf-8", "replace").rstrip("\n")
    except OSError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
