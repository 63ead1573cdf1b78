"""Carries out every check, in the order in which a reader wants to know.

Rules that this module keeps:

- Outside a repository the checks that need one are one skipped row each, with the reason.
- A check that breaks is a failed row with its error; the others still run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.doctor import alarm, containers, machine, mirror, repository, rewriters, watching
from sealrun.doctor.model import Check, Diagnosis, Grade, summarise
from sealrun.doctor.situations import judge_machine
from sealrun.doctor.surroundings import Surroundings
from sealrun.errors import SealrunError
from sealrun.git import Repository
from sealrun.state import repository_id
from sealrun.tree import Spool, read_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: The rows that need a repository, by the name that a skipped one gets.
_NEEDS_REPOSITORY = (
    "file system: workspace",
    "inotify",
    "git configuration",
    "mirror",
    "data",
    "rewriters",
)


def examine(places: Places, directory: Path) -> Diagnosis:
    """Look at this machine and at the repository around a directory.

    Args:
        places: where sealrun keeps its things.
        directory: usually the current one; need not be in a repository.
    """
    engine, rows = containers.engine(places)
    checks = [judge_machine(Surroundings.here(), engine), *rows]
    for family in (
        lambda: machine.disks(places, engine),
        lambda: watching.state(places),
        machine.writers,
        machine.programs,
        lambda: machine.gpus(engine),
        repository.git_version,
        lambda: alarm.told(places),
    ):
        checks += _carried_out(family)
    try:
        found = Repository.find(directory)
    except SealrunError as error:
        checks += [Check(name, Grade.SKIPPED, error.message) for name in _NEEDS_REPOSITORY]
        return Diagnosis(summarise(tuple(checks), in_repository=False), tuple(checks))
    checks += _carried_out(lambda: watching.workspace(found.workspace))
    checks += _carried_out(lambda: repository.configuration(found))
    checks += _carried_out(lambda: mirror.mirrored(places, found))
    checks += _of_commit(places, found)
    return Diagnosis(summarise(tuple(checks), in_repository=True), tuple(checks))


def _of_commit(places: Places, found: Repository) -> list[Check]:
    try:
        tree = _tree(places, found)
    except SealrunError as error:
        return [
            Check("commit", Grade.FAIL, error.message, error.hint),
            *(Check(name, Grade.SKIPPED, "no commit to look at") for name in ("data", "rewriters")),
        ]
    return [
        *_carried_out(lambda: repository.data(tree)),
        *_carried_out(lambda: rewriters.triggers(found, tree)),
        *_carried_out(lambda: rewriters.dry_runs(places, found, tree)),
    ]


def _tree(places: Places, found: Repository) -> CommittedTree:
    commit = found.resolve()
    # A repository that sealrun never ran in gets no id from a mere look at it.
    identity = repository_id(found.common_dir, create=False) or "unnamed"
    return read_commit(found, commit, Spool(places.spool(identity), found.algorithm))


def _carried_out(family: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        return list(family())
    except SealrunError as error:
        return [Check("check", Grade.FAIL, error.message, error.hint)]
    except OSError as error:
        return [Check("check", Grade.FAIL, f"could not be carried out: {error}")]
