"""Pure: what one ``[[fetch]]`` entry means for one commit.

Rules that this module keeps:

- No IO but reading ``sealrun.lock`` out of the commit's verified bytes.
- The place in the container follows from the policy alone: where a hub's client looks for its
  cache is decided by the variables that the policy gives to the container.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sealrun.data import CONTAINER_HOME
from sealrun.errors import Refused, SealRefused
from sealrun.policy import PINS_FILE, HubFetch, UrlFetch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.policy import GitFetch, Policy
    from sealrun.tree import CommittedTree

#: A full commit id of a hub: git's, SHA-1.
COMMIT = re.compile(r"[0-9a-f]{40}")
_PIN = re.compile(r"(?P<commit>[0-9a-f]{40})(?: sha256:(?P<digest>[0-9a-f]{64}))?")
_TABLE = "fetch"
#: What decides where a hub's client looks, the strongest first.
_PLACES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


@dataclass(frozen=True)
class Pin:
    """What ``sealrun.lock`` binds a branch or tag of a hub to.

    Attributes:
        commit: full id.
        digest: sha256 over the item's manifest, hexadecimal; None where only the commit is bound.
    """

    commit: str
    digest: str | None = None


@dataclass(frozen=True)
class Wanted:
    """One entry of a policy, read together with the commit.

    Attributes:
        entry: as the policy has it.
        label: how messages name it, e.g. ``hub model org/name@main``.
        target: absolute path in the container.
        pin: what the commit binds it to; None where it does not.
    """

    entry: HubFetch | UrlFetch | GitFetch
    label: str
    target: str
    pin: Pin | None = None

    @property
    def key(self) -> str:
        """What the item is kept under."""
        entry = self.entry
        if isinstance(entry, HubFetch):
            patterns = "".join(f"\n{pattern}" for pattern in sorted(set(entry.allow)))
            pinned = self.pin.commit if self.pin else entry.revision
            # The name of the revision counts beside the commit: it becomes a ref of the item.
            return f"{pin_name(entry)} {pinned}{patterns}"
        if isinstance(entry, UrlFetch):
            return f"url:{entry.sha256}:{file_name(entry.url)}"
        return f"git:{entry.commit}"


def wanted(policy: Policy, tree: CommittedTree) -> tuple[Wanted, ...]:
    """Read a policy's ``[[fetch]]`` together with the commit.

    Raises:
        Refused: two entries would stand at one place, or the caller decides where one stands.
        SealRefused: the pins in the commit cannot be used.
    """
    if not policy.fetch:
        return ()
    _check_places(policy)
    bound = pins(tree)
    found = tuple(_one(entry, bound, policy.sandbox.variables) for entry in policy.fetch)
    seen: dict[str, str] = {}
    for one in found:
        if one.target in seen:
            raise Refused(
                f"{one.label} and {seen[one.target]} would both stand at {one.target}",
                hint="Give one of them another target under [[fetch]].",
            )
        seen[one.target] = one.label
    return found


def _check_places(policy: Policy) -> None:
    taken = [name for name in policy.sandbox.pass_variables if name in _PLACES]
    if taken and any(isinstance(entry, HubFetch) for entry in policy.fetch):
        raise Refused(
            f"the policy takes {', '.join(taken)} from the caller, so that nobody knows where the "
            "container's client will look for what is fetched",
            hint="Write it with its value under [sandbox.variables] instead of pass_variables.",
        )


def _one(
    entry: HubFetch | UrlFetch | GitFetch,
    bound: Mapping[str, Pin],
    variables: Mapping[str, str],
) -> Wanted:
    if isinstance(entry, HubFetch):
        label = f"hub {entry.type} {entry.repository}@{entry.revision}"
        pin = bound.get(pin_name(entry))
        return Wanted(entry, label, f"{hub_cache(variables)}/{folder(entry)}", pin)
    name = file_name(entry.url)
    target = entry.target or f"/data/{name.removesuffix('.git')}"
    # The query may be a signature: messages and records do without it.
    parts = urlsplit(entry.url)
    shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
    if isinstance(entry, UrlFetch):
        return Wanted(entry, f"url {shown}", target)
    return Wanted(entry, f"git {shown}@{entry.commit[:12]}", target)


def pin_name(entry: HubFetch) -> str:
    """Return how ``sealrun.lock`` names an entry: ``model/org/name@main``."""
    return f"{entry.type}/{entry.repository}@{entry.revision}"


def file_name(url: str) -> str:
    """Return the last part of a URL's path, as a file may be called; ``download`` where none."""
    name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:200] or "download"


def folder(entry: HubFetch) -> str:
    """Return the name of a repository's directory in a hub client's cache.

    Source: huggingface_hub, guide "Understand caching": ``models--org--name``.
    """
    return "--".join((f"{entry.type}s", *entry.repository.split("/")))


def hub_cache(variables: Mapping[str, str]) -> str:
    """Return where a hub's client looks in a container that has these variables.

    Source: huggingface_hub, reference "Environment variables": HF_HUB_CACHE, else below HF_HOME,
    else below XDG_CACHE_HOME, else below ``~/.cache``.
    """
    cache = variables.get("XDG_CACHE_HOME", "~/.cache")
    home = variables.get("HF_HOME", f"{cache}/huggingface")
    found = variables.get("HF_HUB_CACHE", f"{home}/hub")
    return re.sub(r"^~(?=/|$)", CONTAINER_HOME, found).rstrip("/")


def pins(tree: CommittedTree) -> dict[str, Pin]:
    """Return what the commit's ``sealrun.lock`` pins downloads to: its table ``[fetch]``.

    Raises:
        SealRefused: it is malformed, or a pin is no full commit.
    """
    entry = tree.get(PINS_FILE)
    if entry is None:
        return {}
    name = PINS_FILE.decode()
    try:
        table: dict[str, object] = tomllib.loads(tree.read(entry).decode("utf-8")).get(_TABLE, {})
        lines = {str(key): str(value) for key, value in table.items()}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise SealRefused(f"{name} is not readable: {error}") from error
    found: dict[str, Pin] = {}
    for key, value in lines.items():
        match = _PIN.fullmatch(value)
        if match is None:
            raise SealRefused(
                f"{name} pins {key} to {value}, which is no full commit",
                hint='A line of [fetch] reads "model/org/name@main" = "COMMIT sha256:DIGEST", as '
                "sealrun warm prints it.",
            )
        found[key] = Pin(match["commit"], match["digest"])
    return found


def pin_line(entry: HubFetch, commit: str, digest: str) -> str:
    """Return the line of ``[fetch]`` in ``sealrun.lock`` that binds an entry."""
    return f'"{pin_name(entry)}" = "{commit} sha256:{digest}"'
