"""Finds the engine that runs containers, checks what its paths mean, starts a private one.

Rules that this package keeps:

- An engine that answers is used as it is; nothing of it is configured, restarted or repaired.
- No engine is used before a nonce, read back through it, has shown what its paths mean.
- What we start is ours alone: data, sockets, bridge, container namespace; stopping it stops
  nothing else.
- docker-py is imported only when a client is asked for: finding an engine does without it.
"""

from sealrun.engine.find import Engine, Survey, connect, survey
from sealrun.engine.mapping import PathMapping

__all__ = ["Engine", "PathMapping", "Survey", "connect", "survey"]
