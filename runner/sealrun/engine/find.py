"""Finds the engine to use, and hands out its client.

Rules that this module keeps:

- The first candidate that answers is the engine; a named one that does not answer is an error
  that names it.
- An engine that speaks no API 1.41 is refused, not tried.
- ``connect`` raises unless the paths are known to mean what we think; ``survey`` raises nothing
  about engines and tells what was found and why.
- A probe's result is cached per engine, boot, mount namespace, directories and mapping: whatever
  could change the answer is in the key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.engine import answer, endpoints
from sealrun.engine.mapping import VARIABLE, PathMapping
from sealrun.engine.private import Private
from sealrun.errors import EngineUnavailable
from sealrun.guard.filesystem import boot_id
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.engine.answer import Answer
    from sealrun.engine.endpoints import Candidate
    from sealrun.engine.probe import Probe
    from sealrun.state import Places

#: The oldest API that has everything we need (Engine 20.10).
OLDEST_API = (1, 41)
#: Seconds that a call may take before the engine counts as hanging.
CALL_TIMEOUT = 60.0


@dataclass(frozen=True)
class Engine:
    """An engine that answers, and whose paths are known.

    Attributes:
        endpoint: ``unix:///path`` or ``tcp://host:port``.
        source: why this one.
        version: of the engine, e.g. ``20.10.24+dfsg1``.
        api_version: the newest that it speaks, e.g. ``1.41``.
        store: ``classic``, or ``containerd``, which names images by manifest digest.
        cgroup_version: ``1`` or ``2``.
        private: ``sealrun engine up`` started it.
        root: its data directory, in its own words.
        podman: it is podman, which speaks Docker's API.
        system: what it runs on, in its own words, e.g. ``Docker Desktop``.
        unenforced: the limits that it cannot enforce: of ``memory``, ``processes``, ``CPU time``.
        mapping: what our paths are called there.
    """

    id: str
    endpoint: str
    source: str
    version: str
    api_version: str
    store: str
    driver: str
    rootless: bool
    cgroup_version: str
    private: bool
    root: str
    podman: bool
    system: str
    unenforced: tuple[str, ...]
    mapping: PathMapping
    tls: endpoints.Tls | None = None

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - docker-py ships no types
        """docker-py's low-level ``APIClient``; imported and opened when first asked for."""
        return self.open_client()

    def open_client(self, timeout: float = CALL_TIMEOUT) -> Any:  # noqa: ANN401 - docker-py ships no types
        """Return a client of its own, for another thread or another patience.

        Args:
            timeout: seconds without a byte from the engine after which a call fails.
        """
        import docker.constants

        newest: str = docker.constants.DEFAULT_DOCKER_API_VERSION
        spoken = min(_version(self.api_version), _version(newest))
        return answer.open_client(self.endpoint, self.tls, ".".join(map(str, spoken)), timeout)


@dataclass(frozen=True)
class Attempt:
    """A candidate that was asked; ``problem`` is why it is not the engine, or None."""

    candidate: Candidate
    problem: str | None


@dataclass(frozen=True)
class Survey:
    """What was found on this machine.

    Attributes:
        attempts: every candidate that was asked, in order.
        engine: the one to use, or None.
        probe: what the probe of its paths found, or None where there is no engine to use.
        error: why no run could use an engine now, or None.
    """

    attempts: tuple[Attempt, ...]
    engine: Engine | None
    probe: Probe | None
    error: EngineUnavailable | None


def connect(places: Places, environment: Mapping[str, str] | None = None) -> Engine:
    """Return the engine to use, its paths checked.

    Args:
        places: where our directories are; the engine must be able to mount from them.
        environment: the caller's variables; this process's by default.

    Raises:
        EngineUnavailable: no engine answers, it is too old, or its paths are not ours.
        UsageError: the declared path mapping is malformed.
    """
    found = survey(places, environment)
    if found.error is not None:
        raise found.error
    if found.engine is None:
        raise _nobody(found.attempts)
    return found.engine


def survey(
    places: Places, environment: Mapping[str, str] | None = None, *, fresh: bool = False
) -> Survey:
    """Look for an engine and probe it; trouble with engines is in the result, not raised.

    Args:
        places: where our directories are.
        environment: the caller's variables; this process's by default.
        fresh: probe again, even if the result is known.

    Raises:
        UsageError: the declared path mapping is malformed.
    """
    variables = os.environ if environment is None else environment
    mapping = PathMapping.parse(variables.get(VARIABLE, ""))
    attempts: list[Attempt] = []
    try:
        engine = _first(places, variables, mapping, attempts)
        if engine is None:
            return Survey(tuple(attempts), None, None, _nobody(tuple(attempts)))
    except EngineUnavailable as error:
        return Survey(tuple(attempts), None, None, error)
    if engine.podman:
        return Survey(tuple(attempts), engine, None, _podman(engine))
    probe = _probe(engine, places, fresh=fresh)
    return Survey(tuple(attempts), engine, probe, _objection(engine, probe))


def _first(
    places: Places,
    variables: Mapping[str, str],
    mapping: PathMapping,
    attempts: list[Attempt],
) -> Engine | None:
    home = Path(variables.get("HOME") or Path.home())
    for candidate in endpoints.candidates(variables, home, Private.of(places).socket):
        try:
            said = answer.ask(candidate)
        except answer.NoAnswer as error:
            attempts.append(Attempt(candidate, str(error)))
            if candidate.named:
                raise EngineUnavailable(
                    f"no engine at {candidate.endpoint}, which {candidate.source} names: {error}",
                    hint="Start that engine, or name another one (DOCKER_HOST, docker context use).",
                ) from error
            continue
        if _version(said.api_version) < OLDEST_API:
            problem = f"speaks API {said.api_version}; 1.41 is needed"
            attempts.append(Attempt(candidate, problem))
            raise EngineUnavailable(
                f"the engine at {candidate.endpoint} (version {said.version}) {problem}",
                hint="Update it to Docker Engine 20.10 or newer.",
            )
        attempts.append(Attempt(candidate, None))
        return _engine(candidate, said, mapping)
    return None


def _engine(candidate: Candidate, said: Answer, mapping: PathMapping) -> Engine:
    return Engine(
        id=said.id,
        endpoint=candidate.endpoint,
        source=candidate.source,
        version=said.version,
        api_version=said.api_version,
        store=said.store,
        driver=said.driver,
        rootless=said.rootless,
        cgroup_version=said.cgroup_version,
        private=candidate.private,
        root=said.root,
        podman=said.podman,
        system=said.system,
        unenforced=said.unenforced,
        mapping=mapping,
        tls=candidate.tls,
    )


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        return (0,)


def _nobody(attempts: tuple[Attempt, ...]) -> EngineUnavailable:
    for attempt in attempts:
        if attempt.problem == "permission denied" and not attempt.candidate.private:
            return EngineUnavailable(
                f"an engine listens at {attempt.candidate.endpoint}, but you may not use it",
                hint="Ask an administrator: sudo usermod -aG docker YOUR_NAME, then log in again."
                " Membership gives root's power on this machine.",
            )
    asked = "; ".join(f"{a.candidate.endpoint}: {a.problem}" for a in attempts)
    return EngineUnavailable(
        f"no container engine answers ({asked})",
        hint="`sealrun engine up` starts one, or says exactly what to do here.",
    )


def _podman(engine: Engine) -> EngineUnavailable:
    return EngineUnavailable(
        f"the engine at {engine.endpoint} is podman {engine.version}, by which runs are not served: its"
        " Docker API takes no system call filter as text and no owner of a tmpfs, and tells of other"
        " events than Docker, so that interference with a container would go unseen",
        hint="Use Docker Engine 20.10 or newer: `sealrun engine up` as root, or rootless Docker.",
    )


def _objection(engine: Engine, probe: Probe) -> EngineUnavailable | None:
    if probe.agrees:
        return None
    if probe.trouble is not None:
        return EngineUnavailable(
            f"the engine at {engine.endpoint} could not be probed: {probe.trouble}",
            hint="Repair or restart that engine; `sealrun engine status` probes it again.",
        )
    place = probe.different[0]
    if not _utf8(place):
        return EngineUnavailable(
            f"no engine can be told of our {place!r}: that name is not UTF-8",
            hint="Set SEALRUN_HOME to a directory whose path is UTF-8.",
        )
    if engine.mapping.rules:
        try:
            outside = engine.mapping.translate(Path(place))
        except EngineUnavailable as uncovered:
            return uncovered
        return EngineUnavailable(
            f"the declared path mapping does not hold: what is {place} to us is not {outside} to"
            f" the engine at {engine.endpoint}",
            hint=f"Correct {VARIABLE}: each pair is a directory as seen here, a colon, and the same"
            " directory as the engine's host sees it.",
        )
    return EngineUnavailable(
        f"paths do not mean the same to us and to the engine at {engine.endpoint}: it does not see"
        f" our {place}",
        hint="If sealrun runs in a container beside the engine's socket, mount its directories at"
        f" the same paths, or declare them: {VARIABLE}=/inside:/outside[,…].",
    )


def _utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _probe(engine: Engine, places: Places, *, fresh: bool) -> Probe:
    from sealrun.engine.probe import Probe, run_probe

    directories = (private(places.data), private(places.state))
    file = private(places.cache / "engine") / f"{_probe_key(engine, directories)}.json"
    if not fresh:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(file.read_bytes())
            if known["agrees"] is True:
                return Probe(tuple(map(str, directories)), (), None, cached=True)
    probe = run_probe(engine, directories)
    if probe.agrees:
        # Only agreement is remembered: what is wrong gets repaired, and must then be seen at once.
        draft = file.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            draft.write_text(json.dumps({"agrees": True}), "ascii")
            draft.replace(file)
    else:
        file.unlink(missing_ok=True)
    return probe


def _probe_key(engine: Engine, directories: tuple[Path, ...]) -> str:
    try:
        namespace = str(Path("/proc/self/ns/mnt").readlink())
    except OSError:
        namespace = ""
    parts = (engine.id, engine.endpoint, boot_id(), namespace, str(engine.mapping))
    told = json.dumps([*parts, *map(str, directories)])
    return hashlib.sha256(told.encode()).hexdigest()[:32]
