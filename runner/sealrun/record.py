"""From a run under way to the events of its record.

Rules: pure but for facts about the machine; every value that the record needs is turned into the
ledger's words here and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sealrun import __version__, facts
from sealrun.data import sha256_of, walk
from sealrun.findings import text
from sealrun.git import RUN_REFS
from sealrun.ledger import (
    Because,
    Coverage,
    DataFacts,
    EngineFacts,
    Judgement,
    LayerFacts,
    LoadingFacts,
    MetricFacts,
    OutputFile,
    Pin,
    PolicyFacts,
    RunOpened,
    RunProgress,
    utc,
)
from sealrun.secrets.withheld import withheld
from sealrun.verdict import severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sealrun.data import Dataset
    from sealrun.engine import Engine
    from sealrun.git import Repository
    from sealrun.guard.mutations import Report
    from sealrun.image.model import Environment, Loading, SealedImage
    from sealrun.metric import Metric
    from sealrun.policy import EffectivePolicy, Policy
    from sealrun.sandbox.protocol import FileState, Request
    from sealrun.tree import CommittedTree
    from sealrun.verdict import Verdict

#: The only level so far: it guards against accidents, tools and other users.
PROTECTION = "same-user"
#: How strong the isolation of the only back end is.
TIER = "container"
#: Outputs listed in the record; more are counted.
OUTPUTS_LISTED = 1000


def pin(run_id: str, commit: str) -> Pin:
    """Return the event of a commit kept from garbage collection."""
    return Pin(run=run_id, ref=RUN_REFS + run_id, commit=commit)


def opened(
    run_id: str,
    argv: Sequence[str],
    repository: Repository,
    tree: CommittedTree,
    policy: EffectivePolicy,
    *,
    revision: str,
    idea: str | None,
) -> RunOpened:
    """Return the event that opens a run."""
    return RunOpened(
        run=run_id,
        commit=tree.commit,
        tree=tree.tree,
        revision=revision,
        ref=repository.branch,
        workspace=str(repository.workspace),
        command=tuple(argv),
        idea=tree.subject if idea is None else idea,
        idea_source="subject" if idea is None else "message",
        policy=PolicyFacts(
            digest=policy.digest,
            values=policy.values(),
            origins=dict(policy.origins),
            loosened=policy.loosened(),
        ),
        host=facts.host(),
        protection=PROTECTION,
        tier=TIER,
        controller=facts.controller(),
        version=__version__,
    )


def engine_facts(engine: Engine) -> EngineFacts:
    """Return what the record says about an engine."""
    return EngineFacts(
        name="docker",
        version=engine.version,
        api=engine.api_version,
        endpoint=engine.endpoint,
        store=engine.store,
        details={"private": engine.private, "rootless": engine.rootless},
    )


def inventory(environment: Environment) -> str:
    """Return one digest over an environment's packages."""
    rows = [[p.name, p.version, p.sha256] for p in environment.packages]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def sealed(
    run_id: str,
    engine: Engine,
    image: SealedImage,
    loading: Loading,
    request: Request,
    datasets: Sequence[Dataset],
    timings: Mapping[str, float],
    passed: Sequence[str] = (),
) -> RunProgress:
    """Return the event of an image that was sealed and loaded.

    Args:
        passed: names of variables that came from the caller: what looks like a key among them is
            named and not kept.
    """
    middle = image.environment.layer
    roles = ["base"] * len(image.base.layers) + (["environment"] if middle else []) + ["tree"]
    return RunProgress(
        run=run_id,
        step="sealed",
        image_id=image.image_id,
        base=image.base.origin,
        environment=image.environment.key,
        environment_source=image.environment.source,
        inventory=inventory(image.environment),
        layers=tuple(
            LayerFacts(role=role, diff_id=layer.diff_id, size=layer.size)
            for role, layer in zip(roles, image.layers, strict=True)
        ),
        loading=LoadingFacts(
            way=loading.way,
            sent=loading.sent,
            engine_image=loading.engine_image,
            manifest_digest=loading.manifest_digest,
            fallback=loading.fallback,
        ),
        init=request.init_digest,
        variables=withheld(request.environment, passed),
        engine=engine_facts(engine),
        data=tuple(
            DataFacts(
                source=str(dataset.source),
                target=dataset.target,
                digest=dataset.digest,
                files=len(dataset.files),
                hashed=dataset.hashed,
            )
            for dataset in datasets
        ),
        device_facts=request.devices.facts if request.devices else None,
        timings=dict(timings),
    )


def judgement(verdict: Verdict, policy: Policy) -> Judgement:
    """Return a verdict in the ledger's words."""
    return Judgement(
        kind=verdict.kind,
        reasons=tuple(
            Because(
                code=finding.reason,
                severity=severity(finding, policy),
                detail=finding.detail or None,
                paths=(finding.path,) if finding.path else (),
            )
            for finding in verdict.reasons
        ),
    )


def metric_facts(metric: Metric | None) -> MetricFacts | None:
    """Return a metric in the ledger's words."""
    if metric is None:
        return None
    return MetricFacts(
        name=metric.name,
        value=metric.value,
        direction=metric.direction,
        source=metric.source,
        problem=metric.problem,
    )


def coverage(report: Report | None, verified: Sequence[str], missing: Sequence[str]) -> Coverage:
    """Return what was verified and observed, in sentences."""
    if report is None:
        return Coverage(
            complete=False,
            verified=tuple(verified),
            missing=(*missing, "the guard has made no report"),
        )
    watched = report.coverage
    gaps = tuple(gap.text for gap in watched.gaps)
    spent = watched.until.monotonic - watched.since.monotonic
    observed = [
        f"{watched.watches} of {watched.directories} directories watched for {spent:.1f} s",
    ]
    if watched.hard_linked:
        observed.append(f"{watched.hard_linked} files have other names too: compared, not observed")
    return Coverage(
        complete=not gaps,
        since=_utc(watched.watching_since.wall),
        verified=tuple(verified),
        observed=tuple(observed),
        missing=(*gaps, *missing),
    )


def outputs(new: Sequence[FileState], out: Path, limit: int) -> tuple[OutputFile, ...]:
    """Return what the experiment left: new files of the workdir, and files below ``/out``.

    Args:
        new: what was copied out of the workdir.
        out: the host's directory behind ``/out``.
        limit: bytes that are hashed in all. Files that take no more than that on the disk can be
            larger by their holes, which cost their maker nothing and would cost us days.
    """
    listed = [
        OutputFile(path=f"workdir/{text(f.path)}", size=f.size, sha256=f.sha256, kind=f.kind)
        for f in new
        if f.kind != "directory"
    ]
    with contextlib.suppress(OSError):
        for path, identity in itertools.islice(walk(out), OUTPUTS_LISTED):
            digest = None
            if identity.size <= limit:
                limit -= identity.size
                digest = sha256_of(out / os.fsdecode(path))
            listed.append(OutputFile(path=f"out/{text(path)}", size=identity.size, sha256=digest))
    return tuple(listed[:OUTPUTS_LISTED])


def limits(policy: Policy) -> dict[str, object]:
    """Return the limits in force by name; None means as the caller."""
    return {"deadline": policy.limits.deadline, **dataclasses.asdict(policy.sandbox.limits())}


def _utc(wall: float) -> str:
    return utc(datetime.fromtimestamp(wall, UTC))
