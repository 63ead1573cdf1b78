"""Devices as the drivers of this machine name them, and who uses them.

Rules that this module keeps:

- No IO; every value is what a driver said, None where it did not.
- A device is known by its ``uuid``: indices differ between jobs, containers and boots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Vendor = Literal["nvidia", "amd"]


@dataclass(frozen=True)
class Device:
    """One GPU, or one instance of a divided GPU (MIG).

    Attributes:
        uuid: the driver's own, e.g. ``GPU-…`` or ``MIG-…``.
        index: the driver's number of the GPU, for people; an instance has its GPU's.
        memory: bytes in all.
        bus: PCI address; orders GPUs as ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` does.
        nodes: device files that belong to this GPU alone.
        divided: a GPU in MIG mode, which programs use only through its instances.
        parent: of an instance: the uuid of its GPU.
        instance: of an instance: the numbers of its GPU instance and compute instance.
        slot: of an instance: its number among its GPU's, as ``nvidia-smi -L`` counts.
    """

    vendor: Vendor
    uuid: str
    index: int
    name: str
    memory: int | None = None
    bus: str = ""
    nodes: tuple[str, ...] = ()
    divided: bool = False
    parent: str | None = None
    instance: tuple[int, int] | None = None
    slot: int | None = None

    @property
    def label(self) -> str:
        """What a person calls it: ``GPU 0``, ``GPU 0 MIG 1``."""
        return f"GPU {self.index}" if self.slot is None else f"GPU {self.index} MIG {self.slot}"


@dataclass(frozen=True)
class User:
    """A process that uses a device.

    Attributes:
        pid: as this process sees pids.
        name: of its program, None where it cannot be seen.
        memory: bytes on the device, None where the driver does not say.
    """

    pid: int
    name: str | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Driver:
    """What a driver says about itself.

    Attributes:
        version: e.g. ``550.54.15``.
        runtime: newest version of its programming interface that it serves, e.g. ``CUDA 12.4``.
    """

    vendor: Vendor
    version: str | None = None
    runtime: str | None = None


@dataclass(frozen=True)
class Selection:
    """The devices that the caller sees.

    Attributes:
        devices: in the caller's order.
        ordered: the caller named them, so a program's first device is the first of these.
        because: the variables that decided, with their values; empty where none did.
        remarks: what a variable asked for and did not get, as a sentence each.
    """

    devices: tuple[Device, ...] = ()
    ordered: bool = False
    because: Mapping[str, str] = field(default_factory=dict[str, str])
    remarks: tuple[str, ...] = ()


class Provider(Protocol):
    """One vendor's driver on this machine."""

    vendor: Vendor

    def devices(self) -> Sequence[Device]:
        """Return every device that the driver shows to this process; none where it has no driver.

        Raises:
            EnvironmentFault: there are device files, but the driver does not answer.
        """
        ...

    def driver(self) -> Driver:
        """Return what the driver says about itself."""
        ...

    def users(self, device: Device) -> Sequence[User]:
        """Return the processes that use a device now, as far as this process can see them."""
        ...
