"""The devices of one run: seen, asked for, waited for, and put on record.

Rules that this module keeps:

- What the engine cannot give is told before anybody waits.
- A device is free when its lock is ours *and* no container of a run has it: a controller that was
  killed lets go of the lock some milliseconds before its container ends.
- Who else is on a device is asked when it is ours and nothing of ours is on it yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun import state
from sealrun.devices import lease, visible
from sealrun.devices.access import LABEL, Access, Toolkit, access
from sealrun.devices.amd import Amd
from sealrun.devices.model import Selection
from sealrun.devices.nvidia import Nvidia
from sealrun.errors import EngineError
from sealrun.reasons import Reason
from sealrun.verdict import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from sealrun.devices.model import Device, Driver, Provider, User
    from sealrun.engine import Engine
    from sealrun.progress import Listener

#: Seconds that a dead controller's container may outlive it before that is trouble.
_GONE_WITHIN = 60.0
#: Seconds in which a driver forgets the processes of a container that ended.
_FORGOTTEN_WITHIN = 3.0
_MARKS = ("/.dockerenv", "/run/.containerenv")
_HOOKS = ("nvidia-container-runtime-hook", "nvidia-cdi-hook")


@dataclass(frozen=True)
class Seen:
    """The devices that the caller sees, and the drivers that said so."""

    selection: Selection
    providers: Mapping[str, Provider]

    def drivers(self) -> list[Driver]:
        """Return what the drivers of the selected devices say about themselves."""
        vendors = dict.fromkeys(str(device.vendor) for device in self.selection.devices)
        return [self.providers[vendor].driver() for vendor in vendors]


@dataclass(frozen=True)
class Assigned:
    """The devices that are this run's until its record is closed.

    Attributes:
        access: None for a run without devices.
        facts: for the record.
        findings: what the verdict has to cite.
        waited: another run had one of them first.
    """

    access: Access | None = None
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    findings: tuple[Finding, ...] = ()
    waited: bool = False

    @property
    def uuids(self) -> tuple[str, ...]:
        """What names the devices, in the order in which the program counts them."""
        return () if self.access is None else tuple(device.uuid for device in self.access.devices)


NOTHING = Assigned()


def providers() -> tuple[Provider, ...]:
    """Return the drivers that are asked."""
    return (Nvidia(), Amd())


def look(environ: Mapping[str, str], asked: Sequence[Provider] | None = None) -> Seen:
    """Return the devices that the caller sees.

    Args:
        environ: the caller's variables.
        asked: the drivers; None asks those of this machine.

    Raises:
        EnvironmentFault: there are GPUs whose driver does not answer.
        UsageError: the caller's variables are ambiguous on this machine.
    """
    known = tuple(asked or providers())
    contained = any(Path(mark).exists() for mark in _MARKS)
    found: list[Selection] = []
    for provider in known:
        lists = visible.lists_of(provider.vendor, environ)
        if any(environ[name].strip() in {"", "-1"} for name in lists):
            # Asked to see none: no driver is woken for that.
            continue
        devices = provider.devices()
        if not devices:
            continue
        if provider.vendor == "nvidia":
            found.append(visible.nvidia(devices, environ, contained=contained))
        else:
            found.append(visible.amd(devices, environ))
    return Seen(_joined(found), {provider.vendor: provider for provider in known})


def _joined(found: Sequence[Selection]) -> Selection:
    because: dict[str, str] = {}
    for one in found:
        because |= one.because
    return Selection(
        tuple(device for one in found for device in one.devices),
        any(one.ordered for one in found),
        because,
        tuple(remark for one in found for remark in one.remarks),
    )


@contextlib.contextmanager
def assigned(
    engine: Engine,
    run: str,
    listener: Listener,
    before_waiting: Callable[[], object],
    *,
    environ: Mapping[str, str] | None = None,
) -> Generator[Assigned]:
    """Hold the devices that the caller sees; wait for those that another run has.

    Args:
        engine: what will run the container.
        run: the run's id, told to others who wait.
        listener: who hears how long it takes.
        before_waiting: called once, if another run has one of them: to let go of what others need.
        environ: the caller's variables; None for this process's.

    Raises:
        EnvironmentFault: a GPU that the caller sees cannot be given to a container.
        UsageError: which GPUs the caller sees depends on what only CUDA knows.
        StorageFault: the leases cannot be used.
        EngineError: a container without a controller keeps a device.
    """
    variables = os.environ if environ is None else environ
    seen = look(variables)
    selection = seen.selection
    for remark in selection.remarks:
        listener.say(f"GPU: {remark}")
    if not selection.devices:
        yield Assigned(facts={"remarks": list(selection.remarks)} if selection.remarks else {})
        return
    asked = access(selection, toolkit(engine), _groups(selection.devices), variables)
    labels = {device.uuid: device.label for device in selection.devices}
    with contextlib.ExitStack() as stack:
        told = _Told(labels, listener, stack, before_waiting)
        stack.enter_context(
            lease.held(list(labels), state.leases(), lease.Holder(os.getpid(), run), told.waiting)
        )
        told.over()
        _await_containers(engine, labels)
        users = _users(seen, selection.devices, patient=told.waited)
        facts = facts_of(seen, asked, users)
        yield Assigned(
            asked and replace(asked, facts=facts),
            facts,
            tuple(_findings(selection.devices, users)),
            waited=told.waited,
        )


class _Told:
    """Tells the user where in the line a run stands: at once, at each change, and as progress."""

    def __init__(
        self,
        labels: Mapping[str, str],
        listener: Listener,
        stack: contextlib.ExitStack,
        before_waiting: Callable[[], object],
    ) -> None:
        self._before_waiting = before_waiting
        self._labels = labels
        self._listener = listener
        self._stack = stack.enter_context(contextlib.ExitStack())
        self._said: lease.Place | None = None
        self._task: Any = None
        self.waited = False

    def waiting(self, place: lease.Place) -> None:
        """Take a look at the line."""
        label = self._labels[place.key]
        text = standing(place)
        if not self.waited:
            self.waited = True
            self._before_waiting()
        if self._said is None or self._said.key != place.key:
            self.over()
            self._listener.say(f"waiting for {label} ({text[0]}): {text[1]}")
            title = f"waiting for {label}"
            self._task = self._stack.enter_context(self._listener.task(title))
        self._said = place
        self._task.describe(f"{text[0]}: {text[1]}")

    def over(self) -> None:
        """End what is being told."""
        self._stack.close()


def standing(place: lease.Place) -> tuple[str, str]:
    """Return who has a device and where in the line for it a run stands, in words."""
    who = str(place.holder) if place.holder else "held by another process"
    number = place.position
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return who, f"{number}{ending or 'th'} in the queue"


def toolkit(engine: Engine) -> Toolkit:
    """Return what an engine says that it can do about GPUs.

    Asked without a version: an engine tells of its CDI devices only to newer clients than
    docker-py (Engine API 1.50, ``DiscoveredDevices``).

    Raises:
        EngineError: the engine does not answer.
    """
    client = engine.client
    try:
        url = client._url("/info", versioned_api=False)  # noqa: SLF001 - no public way
        answer: dict[str, Any] = client.get(url).json()
    except Exception as error:
        raise EngineError(
            f"the engine did not say what it can do about GPUs: {error}",
            hint="`sealrun engine status` and `sealrun doctor` say more.",
        ) from error
    return Toolkit(
        frozenset(answer.get("Runtimes") or ()),
        frozenset(
            str(one.get("ID", "")).removeprefix("cdi=")
            for one in answer.get("DiscoveredDevices") or ()
        ),
        hook=any(shutil.which(name) for name in _HOOKS),
        here=engine.endpoint.startswith("unix://"),
    )


def _groups(devices: Iterable[Device]) -> dict[str, int]:
    found: dict[str, int] = {}
    for device in devices:
        if device.vendor != "amd":
            continue
        render = Path(device.nodes[0])
        for path in (render, render.parent.parent / "kfd"):
            with contextlib.suppress(OSError):
                found[str(path)] = path.stat().st_gid
    return found


def _await_containers(engine: Engine, labels: Mapping[str, str]) -> None:
    """Wait until no container of an earlier run has one of these devices."""
    deadline = time.monotonic() + _GONE_WITHIN
    while True:
        try:
            running = engine.client.containers(filters={"label": LABEL})
        except Exception as error:
            raise EngineError(f"the engine did not list its containers: {error}") from error
        having = [
            (one, uuid)
            for one in running
            for uuid in str((one.get("Labels") or {}).get(LABEL, "")).split(",")
            if uuid in labels
        ]
        if not having:
            return
        if time.monotonic() > deadline:
            one, uuid = having[0]
            name = str((one.get("Names") or ["?"])[0]).lstrip("/")
            raise EngineError(
                f"the container {name} has {labels[uuid]}, and no run that it belongs to is alive",
                hint=f"A run in its repository clears it, or: docker rm -f {name}",
            )
        time.sleep(lease.LOOK_EVERY)


def _users(seen: Seen, devices: Sequence[Device], *, patient: bool) -> dict[str, tuple[User, ...]]:
    deadline = time.monotonic() + (_FORGOTTEN_WITHIN if patient else 0)
    while True:
        found = {d.uuid: tuple(seen.providers[d.vendor].users(d)) for d in devices}
        if not any(found.values()) or time.monotonic() >= deadline:
            return found
        time.sleep(lease.LOOK_EVERY)


def _findings(
    devices: Sequence[Device], users: Mapping[str, tuple[User, ...]]
) -> Iterable[Finding]:
    for device in devices:
        for user in users[device.uuid]:
            held = "" if user.memory is None else f", {user.memory / 2**30:.1f} GiB"
            yield Finding(
                Reason.GPU_SHARED,
                f"{device.label} was in use at the start: pid {user.pid} "
                f"({user.name or 'name not known'}{held})",
            )


def facts_of(
    seen: Seen, asked: Access | None, users: Mapping[str, tuple[User, ...]]
) -> dict[str, object]:
    """Return what the record says about the devices of a run.

    Returns:
        ``driver``, ``runtime``, ``gpus`` (names), ``assigned`` (each device), ``access`` (how the
        engine was asked), ``chosen_by`` (the caller's variables) and ``in_use_by``; what is not
        known is not there.
    """
    selection = seen.selection
    drivers = seen.drivers()
    found: dict[str, object] = {
        "driver": ", ".join(f"{d.vendor} {d.version}" for d in drivers if d.version),
        "runtime": ", ".join(d.runtime for d in drivers if d.runtime),
        "gpus": [device.name for device in selection.devices],
        "assigned": [described(device) for device in selection.devices],
        "access": ", ".join(asked.how) if asked else None,
        "chosen_by": dict(selection.because),
        "in_use_by": [
            {"uuid": uuid, "pid": user.pid, "name": user.name, "memory": user.memory}
            for uuid, some in users.items()
            for user in some
        ],
        "remarks": list(selection.remarks),
    }
    return {name: value for name, value in found.items() if value}


def described(device: Device) -> dict[str, object]:
    """Return what the record says about one device; what is not known is not there."""
    said = {
        "uuid": device.uuid,
        "vendor": device.vendor,
        "index": device.index,
        "name": device.name,
        "memory": device.memory,
        "bus": device.bus or None,
        "mig_of": device.parent,
        "mig": None if device.instance is None else list(device.instance),
    }
    return {name: value for name, value in said.items() if value is not None}
