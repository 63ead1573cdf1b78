"""The image config: written from nothing, so that its digest names the image on any machine.

Rules that this module keeps:

- Nothing of what a base brings is taken over: no entrypoint, command, volume, health check,
  exposed port, label or trigger, and no variable but PATH and what the environment layer needs.
- The bytes follow from layers, platform and variables alone: canonical JSON, one constant date.
- The fields are those of the OCI image specification ("Image Configuration"), which is also what
  Docker calls an image config.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sealrun.image.model import PATH, WORKDIR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sealrun.image.model import Platform

#: ``model.MTIME`` as RFC 3339 writes it.
CREATED = "1980-01-01T00:00:00Z"


def canonical(document: object) -> bytes:
    """Return JSON with sorted keys, no spaces and ASCII alone: one document, one byte string."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def image_config(
    diff_ids: Sequence[str],
    descriptions: Sequence[str],
    platform: Platform,
    variables: Mapping[str, str],
) -> bytes:
    """Return the config of an image.

    Args:
        diff_ids: of its layers, from the bottom up.
        descriptions: what ``docker history`` shows for each layer.
        platform: what it runs on.
        variables: of the environment layer.

    Raises:
        ValueError: a variable's name or value cannot stand in a process environment, or is PATH.
    """
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value or name == "PATH":
            raise ValueError(f"not a variable of an environment layer: {name!r}")
    env = {**variables, "PATH": PATH}
    return canonical(
        {
            "architecture": platform.architecture,
            "config": {
                "Env": [f"{name}={env[name]}" for name in sorted(env)],
                "WorkingDir": WORKDIR,
            },
            "created": CREATED,
            "history": [
                {"created": CREATED, "created_by": text}
                for text, _ in zip(descriptions, diff_ids, strict=True)
            ],
            "os": platform.os,
            "rootfs": {"diff_ids": list(diff_ids), "type": "layers"},
        }
    )
