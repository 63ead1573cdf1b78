"""How an engine is asked to give devices to a container.

Rules that this module keeps:

- Pure: devices and what an engine said go in, its own words come out.
- A device is asked for by uuid or by its very device file, never by a number or by "all".
- What the container's programs count is set so that their first device is the caller's first.
- Every way in which a container can fail to get a GPU has its remedy here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sealrun.devices.amd import KFD
from sealrun.devices.nvidia import COMMON
from sealrun.devices.visible import CUDA, CUDA_ORDER, HIP
from sealrun.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sealrun.devices.model import Device, Selection

#: Names of devices in the Container Device Interface, before the uuid.
CDI_KIND = "nvidia.com/gpu"
#: Label of a container that has devices: their uuids, separated by commas.
LABEL = "sealrun.devices"
#: Seen with engines that can give no GPU to a container, and what each needs.
_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r'could not select device driver "(?:nvidia|cdi)"|unknown or invalid runtime name: nvidia',
        (
            "Install the NVIDIA Container Toolkit (package nvidia-container-toolkit), then, as root: "
            "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
        ),
    ),
    (
        r"unresolvable CDI devices",
        (
            "The list of devices is older than the GPUs. As root: "
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        ),
    ),
    (
        r"nvidia-container-cli: .*(?:driver/library version mismatch|load library failed)",
        (
            "The driver was updated under way, or its user space part is missing. Restart the machine, "
            "or install it; nvidia-smi has to work first."
        ),
    ),
    (
        r"nvidia-container-cli: .*(?:unknown device|device error)",
        (
            "The engine runs where other GPUs are seen than here. nvidia-smi -L, here and where the "
            "engine runs, lists them."
        ),
    ),
    (
        r"nvidia-container-cli: .*(?:cgroup|bpf|permission denied)",
        (
            "A rootless engine may not change device rules: set no-cgroups = true in "
            "/etc/nvidia-container-runtime/config.toml."
        ),
    ),
)
_TOOLKIT = _REMEDIES[0][1]


@dataclass(frozen=True)
class Toolkit:
    """What an engine can do about GPUs.

    Attributes:
        runtimes: names of its OCI runtimes.
        cdi: devices that it found in the Container Device Interface's files.
        hook: a hook of NVIDIA's is on this host's path; the engine's, if it runs here.
        here: whether the engine runs on this host.
    """

    runtimes: frozenset[str] = frozenset()
    cdi: frozenset[str] = frozenset()
    hook: bool = False
    here: bool = True


@dataclass(frozen=True)
class Access:
    """The devices of one container, in its engine's words.

    Attributes:
        devices: in the order in which the container's programs count them.
        requests: bodies of the engine's device requests (Engine API, ``DeviceRequest``).
        files: device files to pass: path on the host, path in the container.
        groups: numeric groups that may open them.
        variables: environment that makes programs count as the caller does.
        how: for people: ``nvidia``, ``cdi``, ``device files``.
        facts: for the record, about these devices and who else uses them.
    """

    devices: tuple[Device, ...]
    requests: tuple[Mapping[str, Any], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    groups: tuple[int, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    how: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def injected(self) -> bool:
        """Whether a toolkit mounts files of the driver into the container."""
        return bool(self.requests)

    def entries(self) -> list[dict[str, str]]:
        """Return the device files in the engine's words (Engine API, ``DeviceMapping``)."""
        return [
            {"PathOnHost": source, "PathInContainer": target, "CgroupPermissions": "rw"}
            for source, target in self.files
        ]


def access(
    selection: Selection,
    toolkit: Toolkit,
    groups: Mapping[str, int],
    environ: Mapping[str, str],
) -> Access | None:
    """Return how a container gets the selected devices; None for no devices.

    Args:
        selection: of one vendor or of both.
        toolkit: what the engine can do.
        groups: numeric group of each device file that is passed.
        environ: the caller's variables.

    Raises:
        EnvironmentFault: the engine cannot give NVIDIA's GPUs to containers.
    """
    green = tuple(d for d in selection.devices if d.vendor == "nvidia")
    red = tuple(d for d in selection.devices if d.vendor == "amd")
    if not green and not red:
        return None
    requests: tuple[Mapping[str, Any], ...] = (_request(green, toolkit),) if green else ()
    how = [str(request["Driver"]) for request in requests]
    files: tuple[tuple[str, str], ...] = ()
    if red:
        how.append("device files")
        # The host's path may be another one (a test's); in the container it is the usual one.
        sources = [_beside(red[0].nodes[0], KFD), *(device.nodes[0] for device in red)]
        files = tuple((path, _usual(path)) for path in sources)
    variables = _cuda_variables(green, environ, ordered=selection.ordered)
    if red and selection.ordered:
        variables[HIP[0]] = ",".join(map(str, _ranks(red)))
    return Access(
        (*green, *red),
        requests,
        files,
        tuple(sorted({groups[path] for path, _ in files if groups.get(path)})),
        variables,
        tuple(how),
    )


def _request(devices: Sequence[Device], toolkit: Toolkit) -> Mapping[str, Any]:
    names = [f"{CDI_KIND}={device.uuid}" for device in devices]
    if "nvidia" not in toolkit.runtimes and toolkit.cdi.issuperset(names):
        return {"Driver": "cdi", "DeviceIDs": names}
    if "nvidia" not in toolkit.runtimes and toolkit.here and not toolkit.hook:
        found = ", ".join(sorted(toolkit.runtimes)) or "none"
        raise EnvironmentFault(
            f"{devices[0].label} ({devices[0].name}) cannot be given to containers: the engine has no "
            f"NVIDIA Container Toolkit (its runtimes: {found})",
            hint=_TOOLKIT,
        )
    return {
        "Driver": "nvidia",
        "DeviceIDs": [device.uuid for device in devices],
        "Capabilities": [["gpu", "compute", "utility"]],
    }


def _cuda_variables(
    devices: Sequence[Device], environ: Mapping[str, str], *, ordered: bool
) -> dict[str, str]:
    if not devices:
        return {}
    if not ordered:
        return {CUDA_ORDER: environ[CUDA_ORDER]} if CUDA_ORDER in environ else {}
    if any(device.parent for device in devices):
        return {CUDA: ",".join(device.uuid for device in devices)}
    # Numbers, as programs parse them; by slot, so that they mean the same in the container.
    return {CUDA_ORDER: "PCI_BUS_ID", CUDA: ",".join(map(str, _ranks(devices)))}


def _ranks(devices: Sequence[Device]) -> list[int]:
    """Return each device's number among these, in the driver's order."""
    order = sorted(device.index for device in devices)
    return [order.index(device.index) for device in devices]


def _beside(render: str, kfd: str) -> str:
    return f"{render.rpartition('/dri/')[0]}/{kfd.rpartition('/')[2]}"


def _usual(path: str) -> str:
    name = path.rpartition("/")[2]
    return f"/dev/dri/{name}" if name.startswith("renderD") else f"/dev/{name}"


def remedy(text: str) -> str | None:
    """Return what to do about an engine's refusal that is about GPUs; None for any other."""
    flat = " ".join(text.split())
    return next((words for pattern, words in _REMEDIES if re.search(pattern, flat)), None)


def unexpected(nodes: Sequence[str], asked: Access | None) -> list[str]:
    """Return device files of a container that nobody asked for.

    Args:
        nodes: device files below ``/dev`` of the container, absolute, as it sees them.
        asked: what it was to get.
    """
    allowed = set(_ENGINES)
    if asked is not None:
        allowed.update(target for _, target in asked.files)
        if asked.injected:
            allowed.update(f"/dev/{name}" for name in COMMON)
            allowed.update(n for d in asked.devices if d.vendor == "nvidia" for n in d.nodes)
            unnumbered = [d for d in asked.devices if d.vendor == "nvidia" and not d.nodes]
            nodes = [n for n in nodes if not _shared(n) and not (unnumbered and "nvidia" in n)]
    return [node for node in nodes if node not in allowed]


#: What an engine makes in every container (OCI runtime specification, default devices), and the
#: terminals of devpts.
_ENGINES = tuple(
    f"/dev/{name}"
    for name in ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx")
)
#: Of NVIDIA's driver and no single GPU's: capabilities of instances, links between GPUs; on
#: Windows' kernel the one device of its own.
_SHARED = re.compile(
    r"/dev/(?:nvidia-caps(?:-imex-channels)?/[a-z0-9-]+|nvidia-nvswitch(?:ctl|\d+)|nvidia-nvlink|dxg)"
)


def _shared(node: str) -> bool:
    return _SHARED.fullmatch(node) is not None
