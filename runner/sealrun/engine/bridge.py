"""The private engine's own bridge, and the packet rules that give it a way out.

Rules that this module keeps:

- A second engine that is told to manage packet rules rewrites the first one's chains, and one that
  is told to have no bridge deletes ``docker0``: so ours does neither, and the bridge and rules made
  here carry our name and are removed by it.
- The subnet overlaps no route and no address of this machine.
- Containers behind the bridge cannot open connections to those of other engines.
- Forwarding is switched on only where it is off, with the same precaution that Docker takes (the
  FORWARD policy becomes DROP); what was changed is returned, so that it can be put back.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
#: Private ranges (RFC 1918) that Docker's default pools (172.17-31, 192.168) leave alone.
_POOL = ipaddress.IPv4Network("10.213.0.0/16")


@dataclass(frozen=True)
class Bridge:
    """A bridge that we made, and what we changed for it.

    Attributes:
        address: ours on it, with the prefix length: ``10.213.0.1/24``.
        way_out: containers can reach the network through it.
        forwarding_changed: ``ip_forward`` was off and we switched it on.
        policy_changed: FORWARD's policy was ACCEPT and we made it DROP.
    """

    name: str
    address: str
    way_out: bool
    forwarding_changed: bool
    policy_changed: bool

    def record(self) -> dict[str, Any]:
        """Return the fields, for the engine's record file."""
        return asdict(self)


def choose_subnet(taken: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """Return a /24 that overlaps none of the given networks.

    Raises:
        EngineUnavailable: every one of the 256 is taken.
    """
    used = list(taken)
    for subnet in _POOL.subnets(new_prefix=24):
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise EngineUnavailable(
        f"no free network for the private engine's bridge: all of {_POOL} is in use",
        hint="Free a /24 of it, or use an engine of your own (DOCKER_HOST).",
    )


def parse_networks(routes: str, addresses: str) -> list[ipaddress.IPv4Network]:
    """Return the networks in the output of ``ip -j route`` and ``ip -j addr``.

    The default route overlaps everything and says nothing; it is left out.
    """
    found: list[ipaddress.IPv4Network] = []
    for route in json.loads(routes or "[]"):
        destination = route.get("dst", "default")
        if destination != "default":
            found.append(ipaddress.IPv4Network(destination, strict=False))
    for link in json.loads(addresses or "[]"):
        found += [
            ipaddress.IPv4Network(f"{entry['local']}/{entry['prefixlen']}", strict=False)
            for entry in link.get("addr_info", ())
            if entry.get("family") == "inet"
        ]
    return found


def make_bridge(name: str) -> Bridge:
    """Make the bridge, its address and its rules; one left over by a crash is replaced.

    Raises:
        EngineUnavailable: the kernel or our privileges do not allow it.
    """
    remove_bridge(name, None)
    routes = _run("ip", "-j", "-4", "route", "show", "table", "all", "type", "unicast")
    subnet = choose_subnet(parse_networks(routes, _run("ip", "-j", "-4", "addr")))
    address = f"{next(subnet.hosts())}/{subnet.prefixlen}"
    try:
        _run("ip", "link", "add", name, "type", "bridge")
        _run("ip", "addr", "add", address, "dev", name)
        _run("ip", "link", "set", name, "up")
    except EngineUnavailable:
        _try("ip", "link", "delete", name)
        raise
    forwarding_changed = policy_changed = False
    way_out = all(_try("iptables", "-w", *rule) for rule in _rules("-A", name, str(subnet)))
    if way_out and _FORWARDING.read_text().strip() == "0":
        policy_changed = "-P FORWARD ACCEPT" in _run("iptables", "-w", "-S", "FORWARD")
        if policy_changed:
            _run("iptables", "-w", "-P", "FORWARD", "DROP")
        _FORWARDING.write_text("1\n")
        forwarding_changed = True
    return Bridge(name, address, way_out, forwarding_changed, policy_changed)


def remove_bridge(name: str, made: Bridge | None) -> None:
    """Remove the bridge and every rule that names it; safe to repeat.

    Args:
        name: of the bridge.
        made: what was changed when it was made, put back unless another engine's bridge is there
            by now, which relies on forwarding.
    """
    if shutil.which("iptables"):
        for table in ("nat", "filter"):
            listed = _output("iptables", "-w", "-t", table, "-S")
            for line in listed.splitlines():
                words = [word.strip('"') for word in line.split()]
                if words[:1] == ["-A"] and _comment(name) in words:
                    _try("iptables", "-w", "-t", table, "-D", *words[1:])
    if Path("/sys/class/net", name).exists():
        _run("ip", "link", "delete", name)
    if made is None or Path("/sys/class/net/docker0").exists():
        return
    if made.policy_changed:
        _try("iptables", "-w", "-P", "FORWARD", "ACCEPT")
    if made.forwarding_changed:
        _FORWARDING.write_text("0\n")


def _comment(name: str) -> str:
    return f"engine-of-{name}"


def _rules(action: str, name: str, subnet: str) -> list[list[str]]:
    mark = ["-m", "comment", "--comment", _comment(name)]
    forward = [action, "FORWARD", *mark]
    answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    outward = ["-s", subnet, "!", "-o", name]
    return [
        ["-t", "nat", action, "POSTROUTING", *mark, *outward, "-j", "MASQUERADE"],
        # docker0, and br-… of Docker's user-defined networks: other engines' containers.
        [*forward, "-i", name, "-o", "docker+", "-j", "DROP"],
        [*forward, "-i", name, "-o", "br-+", "-j", "DROP"],
        [*forward, "-i", name, "!", "-o", name, "-j", "ACCEPT"],
        [*forward, "-o", name, *answers, "-j", "ACCEPT"],
        [*forward, "-o", name, "!", "-i", name, "-j", "DROP"],
    ]


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"cannot set up the engine's bridge: {error}") from error
    if done.returncode != 0:
        raise EngineUnavailable(
            f"cannot set up the engine's bridge: {' '.join(command)}: {done.stderr.strip()}",
            hint="This machine lets nobody make network devices (a container without NET_ADMIN?)."
            " Use an engine from outside: mount its socket, or set DOCKER_HOST.",
        )
    return done.stdout


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout


def _try(*command: str) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
