"""What compiled code is good for: whatever decides whether it may run at all.

Rules that this module keeps:

- Pure: facts go in, a digest comes out. Two keys are equal only where all of it is the same.
- The repository counts: what one repository's code compiled is never run in another's.
- The tree does not count: compilers know their own sources, and a seed that only its own commit
  could use would be of no use.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.devices.access import Access
    from sealrun.image.model import SealedImage
    from sealrun.ledger import HostFacts
    from sealrun.policy import Policy

#: Counts up when another part begins to count.
_VERSION = 1


def parts(
    repository_id: str, image: SealedImage, policy: Policy, host: HostFacts, devices: Access | None
) -> dict[str, object]:
    """Return what decides whether compiled code is valid, by name, as JSON types.

    Args:
        host: the machine that runs it.
        devices: the GPUs that a container gets.
    """
    facts = {} if devices is None else devices.facts
    return {
        "version": _VERSION,
        "repository": repository_id,
        # Base, interpreter and environment; the last layer is the tree.
        "layers": [layer.diff_id for layer in image.layers[:-1]],
        "architecture": host.architecture,
        "cpu": host.cpu_model,
        "instruction_sets": _listed(host.details.get("instruction_sets")),
        "gpus": sorted({str(name) for name in _listed(facts.get("gpus"))}),
        "driver": facts.get("driver"),
        "runtime": facts.get("runtime"),
        # Flags of compilers are given this way.
        "variables": dict(policy.sandbox.variables),
        "determinism": policy.determinism.mode,
    }


def digest(named: Mapping[str, object]) -> str:
    """Return the sha256 of a key's parts, hexadecimal."""
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
