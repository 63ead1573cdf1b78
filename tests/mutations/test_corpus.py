"""Every technique of the corpus is found, its bytes are kept, and its writer is named.

These tests need root in the first pid namespace, and the programs that ``.ci/setup tests`` installs.
"""

from __future__ import annotations

import pytest

from mutations.corpus import TECHNIQUES
from mutations.rehearsal import Rehearsals, rehearse_watched
from mutations.technique import By, Technique

#: Runs of the whole corpus at full size.
REPETITIONS = 5
_MARKS = {"engine": (pytest.mark.engine,), "npm": (pytest.mark.soak,), "": ()}
_HERE = [one for one in TECHNIQUES if not one.needs]
#: A technique that raises an event of its own on a tracked file.
_EVENTS = [one for one in _HERE if one.by_event]


@pytest.fixture(scope="module")
def rehearsals() -> Rehearsals:
    """The results of this module's techniques."""
    return Rehearsals()


@pytest.mark.parametrize(
    "technique",
    [pytest.param(one, id=one.name, marks=_MARKS[one.needs]) for one in TECHNIQUES],
)
def test_each_technique_is_found(rehearsals: Rehearsals, technique: Technique) -> None:
    """Every detector that states a technique finds it, its bytes are kept, and no wrong name is given."""
    result = rehearsals.of(technique)
    assert result.missing == ()
    assert result.misnamed is None


@pytest.mark.timeout(0)  # alone it runs the whole corpus
def test_writers_are_named(rehearsals: Rehearsals) -> None:
    """Of the techniques that raise an event, 95 of 100 have their writer named for certain."""
    share = rehearsals.share(_EVENTS)
    print(share.words)  # noqa: T201 - pytest -rP shows who was not named
    assert share.enough, share.words


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_each_repetition_holds(repetition: int) -> None:
    """Each time that the whole corpus runs, all is found and 95 of 100 writers are named."""
    rehearsals = Rehearsals()
    lacking = {one.name: rehearsals.of(one).missing for one in _HERE}
    assert {name: missing for name, missing in lacking.items() if missing} == {}, repetition
    share = rehearsals.share(_EVENTS)
    print(share.words)  # noqa: T201 - as above
    assert share.enough, share.words


@pytest.mark.soak
@pytest.mark.parametrize("technique", [pytest.param(one, id=one.name) for one in _HERE])
def test_the_watch_finds_each_technique(technique: Technique) -> None:
    """The stand-alone watch tells of each technique, whatever it is, and misnames nobody."""
    result = rehearse_watched(technique)
    assert result.missing == ()
    assert result.misnamed is None


def test_the_corpus_is_what_it_says() -> None:
    """There are at least 60 techniques, no two of one name, and every detector has some."""
    assert len(TECHNIQUES) >= 60
    assert len({one.name for one in TECHNIQUES}) == len(TECHNIQUES)
    assert {by for one in TECHNIQUES for by in one.found} == set(By)
