"""What compiled code is good for: whatever decides whether it may run, and runs as it was written.

Rules that this module keeps:

- Pure: facts go in, a digest comes out. Two keys are equal only where all of it is the same.
- The repository counts: what one repository's code compiled is never run in another's.
- Of the tree counts what is neither Python nor prose, and so does the data. In an image every file
  has the same time, so that builders which compare times would take a changed source for the one
  that they have compiled.
- Python does not count: what compilers make of it they find by its content, and a seed that only its
  own commit could use would be of no use.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sealrun.data import Dataset
    from sealrun.devices.access import Access
    from sealrun.image.model import SealedImage
    from sealrun.ledger import HostFacts
    from sealrun.policy import Policy
    from sealrun.tree import CommittedTree

#: Counts up when another part begins to count.
_VERSION = 1
#: Ends of the names of files that no builder compares by time.
_NOT_BUILT = (b".py", b".md")


def parts(
    repository_id: str,
    tree: CommittedTree,
    datasets: Sequence[Dataset],
    image: SealedImage,
    policy: Policy,
    host: HostFacts,
    devices: Access | None,
) -> dict[str, object]:
    """Return what decides whether compiled code is valid, by name, as JSON types.

    Args:
        datasets: what is mounted from outside the repository.
        host: the machine that runs it.
        devices: the GPUs that a container gets.
    """
    facts = {} if devices is None else devices.facts
    return {
        "version": _VERSION,
        "repository": repository_id,
        "sources": _sources(tree),
        "data": sorted([dataset.target, dataset.digest] for dataset in datasets),
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


def _sources(tree: CommittedTree) -> str:
    files = (
        b"%s %o %s" % (entry.oid.encode(), entry.mode, entry.path)
        for entry in tree.entries
        if not entry.path.endswith(_NOT_BUILT)
    )
    return hashlib.sha256(b"\0".join(files)).hexdigest()


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
