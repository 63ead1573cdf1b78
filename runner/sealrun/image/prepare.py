"""Base, Python and environment of a commit: found in the store, or made where somebody waits for it.

Rules that this module keeps:

- ``run`` only looks; ``warm`` makes. Where nobody is there to wait, what is missing is a
  ``ColdStart`` within seconds.
- What was made once is data: it is found again by what it is made from, never by time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.errors import ColdStart
from sealrun.image import base as bases
from sealrun.image import environment as environments
from sealrun.image import interpreter

if TYPE_CHECKING:
    from sealrun.engine import Engine
    from sealrun.image.model import Base, Environment
    from sealrun.policy import ImagePolicy
    from sealrun.progress import Progress
    from sealrun.state import Places
    from sealrun.tree import CommittedTree


def prepare(
    tree: CommittedTree,
    policy: ImagePolicy,
    places: Places,
    engine: Engine,
    progress: Progress,
    *,
    make: bool,
) -> tuple[Base, Environment]:
    """Return the base and the environment that a commit asks for.

    Args:
        make: whether what is missing may be made now.

    Raises:
        ColdStart: something is missing and may not be made now.
        SealRefused: the base cannot satisfy what the commit asks for.
        EnvironmentFault: it could not be made.
    """
    platform = bases.host_platform()
    base = bases.find_base(policy.base, tree, places, platform)
    if base is None:
        if not make:
            raise _cold(f"the base {policy.base!r} is not here yet")
        base = bases.make_base(policy.base, tree, places, platform, engine.client, progress)
    base = _with_python(tree, policy, base, places, engine, progress, make=make)
    plan = environments.plan(tree, policy, base)
    environment = environments.find_environment(plan, places)
    if environment is None:
        if not make:
            raise _cold(f"the environment of {plan.source or 'this commit'} is not here yet")
        from sealrun.image.provision import make_environment

        environment = make_environment(plan, base, places, progress, engine.client)
    return base, environment


def _with_python(
    tree: CommittedTree,
    policy: ImagePolicy,
    base: Base,
    places: Places,
    engine: Engine,
    progress: Progress,
    *,
    make: bool,
) -> Base:
    """Return the base with the Python that the commit asks for."""
    wish = interpreter.wanted(tree, policy, base)
    if wish is None:
        return base
    found = interpreter.find(wish, places)
    if found is None:
        if not make:
            raise _cold(f"{wish.reason}; another one is not here yet")
        found = interpreter.make(wish, places, engine.client, progress)
    return found


def _cold(what: str) -> ColdStart:
    return ColdStart(
        what, hint="Run sealrun warm once; it makes base and environment, with progress."
    )
