"""Techniques that nobody wrote down: composed from a seed, found like the others.

``SEALRUN_SEED`` repeats a run of these tests; without it each run has a seed of its own, which a
failure names.
"""

from __future__ import annotations

import os
import secrets

import pytest

from mutations.generator import HIDINGS, PATHS, WRITERS, compose
from mutations.rehearsal import Rehearsals

SEED = int(os.environ.get("SEALRUN_SEED") or secrets.randbelow(1 << 32))
#: Techniques in ordinary tests, and at full size.
FEW, MANY = 25, 500


def _all_are_found(count: int) -> None:
    rehearsals = Rehearsals()
    techniques = compose(SEED, count)
    lacking = {one.name: rehearsals.of(one).missing for one in techniques}
    assert {name: lacks for name, lacks in lacking.items() if lacks} == {}, f"SEALRUN_SEED={SEED}"
    wrong = {one.name: rehearsals.of(one).misnamed for one in techniques}
    assert {name: text for name, text in wrong.items() if text} == {}, f"SEALRUN_SEED={SEED}"
    share = rehearsals.share(techniques)
    print(f"SEALRUN_SEED={SEED}\n{share.words}")  # noqa: T201 - pytest -rP shows who was not named
    assert share.enough, f"SEALRUN_SEED={SEED}\n{share.words}"


def test_a_few_composed_techniques_are_found() -> None:
    """Each of a few techniques composed at random is found, whatever its parts."""
    _all_are_found(FEW)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_composed_techniques_are_found() -> None:
    """Each of many techniques composed at random is found, and 95 of 100 writers are named."""
    _all_are_found(MANY)


def test_the_same_seed_composes_the_same() -> None:
    """A seed repeats what it composed, and in many techniques every part occurs."""
    many = compose(7, MANY)
    assert many == compose(7, MANY)
    text = "\n".join(one.name for one in many)
    parts = [*(w.name for w in WRITERS), *(h.name for h in HIDINGS)]
    parts += [path.decode("latin-1") for path in PATHS.values()]
    assert [part for part in parts if part not in text] == []
