"""What is guarded, what to do, what the sandbox allows; each value knows its origin.

Rules that this module keeps:

- No IO: text and bytes come in, frozen models go out.
- Unknown keys and impossible values are errors that name the line and the nearest key.
- Precedence is shipped < commit < command line, and the command line may only tighten.
- A commit is judged by the approved policy, also when it brings another: else it could answer for
  itself.
- A policy is identified by the bytes that a human can approve: those of ``sealrun.toml`` in the
  commit (none: the shipped ``standard``).
- Every loosening against ``standard`` can be listed, so that it goes on record.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sealrun.errors import PolicyError, UsageError
from sealrun.reasons import Reason, Severity
from sealrun.sandbox.protocol import Limits
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sealrun.tree import CommittedTree, Entry

#: The policy's place in a commit; the pins of tags stand beside it.
POLICY_FILE = b"sealrun.toml"
PINS_FILE = b"sealrun.lock"
#: Git's mode of a file that is not executable.
_PLAIN = 0o100644

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_size(value: object) -> object:
    """Turn ``8GiB``, ``500MB`` or a number into bytes; leave anything else to the model."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = match[2].lower()
        return int(float(match[1]) * (_UNITS | _BINARY)[unit])
    return value


def parse_duration(value: object) -> object:
    """Turn ``600s``, ``10min`` or a number into seconds; leave anything else to the model."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[(match[2] or "s").lower()]
    return value


#: An engine takes sizes as signed 64-bit integers (Engine API, HostConfig).
_LARGEST = 2**63 - 1
#: Less memory no container gets (moby, daemon_unix.go: linuxMinMemory).
_LEAST_MEMORY = 6 << 20

Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, le=_LARGEST)]
Memory = Annotated[int, BeforeValidator(parse_size), Field(ge=_LEAST_MEMORY, le=_LARGEST)]
Cpus = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, allow_inf_nan=False)]


#: Programs that write into workspaces on their own account. One started by the agent's own hook is
#: the classic culprit, so descent from the agent does not excuse them.
FOREIGN_TOOLS = (
    *("autoflake", "autopep8", "black", "blacken-docs", "docformatter", "isort", "pyupgrade"),
    *("ruff", "usort", "yapf", "pre-commit", "biome", "dprint", "eslint", "prettier"),
    *("clang-format", "gofmt", "goimports", "rustfmt", "shfmt", "taplo"),
    *("rsync", "rclone", "syncthing", "unison", "lsyncd", "mutagen", "osync"),
)


class Level(StrEnum):
    """How findings are answered, from the mildest to the hardest."""

    AUDIT = "audit"
    STANDARD = "standard"
    STRICT = "strict"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImagePolicy(_Section):
    """``[image]``: what the container's root is made of."""

    base: str = Field(default="debian-python", description="recipe, reference, or dockerfile:PATH")
    environment: str = Field(
        default="auto", description="auto, none, or the lock's path in the commit"
    )
    build_sdists: bool = Field(default=False, description="build source distributions, contained")


class SandboxPolicy(_Section):
    """``[sandbox]``: what the container may do and use."""

    network: Literal["none", "bridge"] = Field(
        default="none", description="none, or the engine's bridge"
    )
    workdir: Literal["new-files", "read-only"] = Field(
        default="new-files", description="whether new files may be made beside the committed ones"
    )
    seccomp: Literal["sealrun", "engine"] = Field(
        default="sealrun", description="system call filter"
    )
    gpus: Literal["caller", "none"] = Field(
        default="caller", description="GPUs: those the caller sees"
    )
    caches: Literal["fresh", "warmed"] = Field(
        default="fresh",
        description="fresh: compile caches begin empty; warmed: with a copy of what the last "
        "'sealrun warm -- COMMAND' compiled",
    )
    memory: Memory | None = Field(
        default=None, description="bytes; without it as much as the caller has"
    )
    cpus: Cpus | None = Field(default=None, description="CPU time per wall time")
    # The init is a process and holds descriptors: with less it could not start an experiment.
    pids: Annotated[int, Field(ge=2, le=_LARGEST)] = Field(
        default=4096, description="processes and threads"
    )
    open_files: Annotated[int, Field(ge=16, le=_LARGEST)] = Field(
        default=65536, description="descriptors a process"
    )
    file_size: Size | None = Field(default=None, description="bytes of one file")
    shm: Size = Field(default=1 << 30, description="bytes of /dev/shm")
    tmp: Size = Field(default=4 << 30, description="bytes of each scratch file system")
    outputs: Size = Field(default=10 << 30, description="bytes of new files in all")
    variables: dict[str, str] = Field(
        default_factory=dict[str, str], description="environment variables with their values"
    )
    pass_variables: tuple[str, ...] = Field(
        default=(),
        description="names of variables whose values are taken from the caller, on record",
    )

    def limits(self) -> Limits:
        """Return what the sandbox is asked to enforce."""
        return Limits(
            memory=self.memory,
            cpus=self.cpus,
            pids=self.pids,
            file_size=self.file_size,
            open_files=self.open_files,
            shm=self.shm,
            tmp=self.tmp,
            outputs=self.outputs,
        )


class LimitsPolicy(_Section):
    """``[limits]``: when a run is ended."""

    deadline: Duration | None = Field(
        default=None, description="seconds of the process; none by default"
    )
    grace: Duration = Field(default=10.0, description="seconds between SIGTERM and SIGKILL")
    log: Size = Field(default=256 << 20, description="bytes of output that are kept")


class MetricPolicy(_Section):
    """``[metric]``: the number that an experiment prints about itself."""

    name: str = Field(
        default="val_bpb", description="its name: the last line 'NAME: NUMBER' counts"
    )
    direction: Literal["minimize", "maximize"] = Field(
        default="minimize", description="what is better"
    )
    pattern: str | None = Field(
        default=None, description="regular expression with one group, by line"
    )
    file: str | None = Field(
        default=None, description="a JSON file below /out instead of the output"
    )
    key: str | None = Field(
        default=None, description="dotted key in that file; without it, the name"
    )

    @model_validator(mode="after")
    def _one_source(self) -> MetricPolicy:
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"pattern needs one group, it has {groups}")
            if self.file is not None:
                raise ValueError("pattern and file exclude each other")
        if self.file is not None and (self.file.startswith("/") or ".." in self.file.split("/")):
            raise ValueError("file must be relative to /out")
        return self


class GuardPolicy(_Section):
    """``[guard]``: what may not change without a human."""

    protected: tuple[str, ...] = Field(
        default=(), description="patterns of paths that only a human may change, e.g. prepare.py"
    )
    foreign: tuple[str, ...] = Field(
        default=FOREIGN_TOOLS,
        description="programs that are foreign whoever starts them: formatters, sync tools",
    )


class DeterminismPolicy(_Section):
    """``[determinism]``: what is set so that a run repeats."""

    mode: Literal["record", "seeded", "strict"] = Field(
        default="record",
        description="record: only note what decides numbers; seeded: set seeds and thread counts "
        "too; strict: also ask libraries for their repeatable algorithms, whatever they cost",
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = Field(
        default=0, description="what random, numpy and torch begin with, and Python's hashes"
    )
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="threads of numeric libraries; without it one a usable CPU"
    )


class DataPolicy(_Section):
    """``[[data]]``: a directory or file outside the repository, mounted read-only."""

    source: str = Field(description="path on the host; ~ is the caller's home")
    target: str | None = Field(
        default=None, description="path in the container; else the same below HOME"
    )

    @field_validator("source")
    @classmethod
    def _same_everywhere(cls, source: str) -> str:
        # Whatever directory a run is started in, its data must be the same.
        if not source.startswith(("/", "~")):
            raise ValueError("source must be an absolute path, or begin with ~")
        return source


#: A name on a hub: no "..", no "--" (which separates names in the client's cache), no path.
_HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(
    r"(?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9_])?"
)
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]


class _Fetch(_Section):
    token: _Variable | None = Field(
        default=None,
        description="name of the caller's variable whose value opens the server to the download; "
        "it never enters a container or the record",
    )


class HubFetch(_Fetch):
    """``[[fetch]]`` of ``kind = "hub"``: a repository of a model hub, found by its client offline."""

    kind: Literal["hub"] = Field(description="hub")
    repository: str = Field(description="ORGANISATION/NAME on the hub")
    type: Literal["model", "dataset", "space", "kernel"] = Field(
        default="model", description="model, dataset, space or kernel"
    )
    revision: str = Field(
        default="main", max_length=200, description="commit, or a branch or tag, resolved once"
    )
    allow: tuple[str, ...] = Field(
        default=(), description="patterns of the files wanted, as the client's allow_patterns"
    )

    @field_validator("repository")
    @classmethod
    def _on_a_hub(cls, repository: str) -> str:
        parts = repository.split("/")
        if len(parts) > 2 or not all(_HUB_NAME.fullmatch(part) for part in parts):  # noqa: PLR2004 - organisation and name
            raise ValueError("repository must be ORGANISATION/NAME as on the hub")
        return repository

    @field_validator("revision")
    @classmethod
    def _one_revision(cls, revision: str) -> str:
        if not _REVISION.fullmatch(revision):
            raise ValueError("revision must be a commit, a branch or a tag")
        return revision


class _PlacedFetch(_Fetch):
    url: str = Field(max_length=4096, description="where it is downloaded from")
    target: str | None = Field(
        default=None, description="path in the container; ~ is its HOME; else /data/NAME"
    )
    limit: Size = Field(default=64 << 30, description="bytes of the largest file that may come")


class UrlFetch(_PlacedFetch):
    """``[[fetch]]`` of ``kind = "url"``: one file, known by its hash."""

    kind: Literal["url"] = Field(description="url")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file, hexadecimal")

    @field_validator("url")
    @classmethod
    def _a_file(cls, url: str) -> str:
        return _checked_url(url, ("https", "http"))


class GitFetch(_PlacedFetch):
    """``[[fetch]]`` of ``kind = "git"``: the files of one commit of another repository."""

    kind: Literal["git"] = Field(description="git")
    commit: str = Field(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$", description="full id")

    @field_validator("url")
    @classmethod
    def _a_repository(cls, url: str) -> str:
        return _checked_url(url, ("https", "http", "file"))


def _checked_url(url: str, schemes: tuple[str, ...]) -> str:
    parts = urlsplit(url)
    if parts.scheme not in schemes or not (parts.netloc or parts.scheme == "file"):
        raise ValueError(f"url must begin with {' or '.join(f'{s}://' for s in schemes)}")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("url must hold no password and no fragment; token names a variable")
    if not url.isprintable() or " " in url:
        raise ValueError("url holds a space or a control character")
    return url


FetchPolicy = Annotated[HubFetch | UrlFetch | GitFetch, Field(discriminator="kind")]
#: The models of ``[[fetch]]``, by kind.
FETCHES: Mapping[str, type[_Fetch]] = {"hub": HubFetch, "url": UrlFetch, "git": GitFetch}


class Policy(_Section):
    """All that a policy says."""

    level: Level = Field(default=Level.STANDARD, description="how findings are answered")
    image: ImagePolicy = ImagePolicy()
    sandbox: SandboxPolicy = SandboxPolicy()
    limits: LimitsPolicy = LimitsPolicy()
    metric: MetricPolicy = MetricPolicy()
    guard: GuardPolicy = GuardPolicy()
    determinism: DeterminismPolicy = DeterminismPolicy()
    data: tuple[DataPolicy, ...] = Field(default=(), description="data mounts")
    fetch: tuple[FetchPolicy, ...] = Field(
        default=(), description="downloads that sealrun warm makes and runs find offline"
    )

    @field_validator("fetch")
    @classmethod
    def _each_once(cls, fetch: tuple[FetchPolicy, ...]) -> tuple[FetchPolicy, ...]:
        # The client's cache has one directory for a repository, whatever the revision.
        named = [(one.type, one.repository) for one in fetch if isinstance(one, HubFetch)]
        if len(named) != len(set(named)):
            raise ValueError("a repository of a hub is fetched once, at one revision")
        return fetch

    def react(self, reason: Reason, severity: Severity) -> Severity:
        """Return what a finding does under this policy's level (DESIGN section 5)."""
        if severity is Severity.NOTE:
            return severity
        if self.level is Level.AUDIT:
            return severity if reason in _IMPOSSIBLE else _milder(severity)
        if self.level is Level.STRICT:
            return Severity.REFUSE if severity is Severity.REFUSE else Severity.ABORT
        return severity


#: Not a matter of taste: there is nothing to record in, or nothing that could be run.
_IMPOSSIBLE = frozenset({Reason.LEDGER_MISSING, Reason.NOT_SEALABLE})


def _milder(severity: Severity) -> Severity:
    return Severity.FLAG if severity in (Severity.ABORT, Severity.REFUSE) else severity


@dataclass(frozen=True)
class EffectivePolicy:
    """A policy with the origin of each value.

    Attributes:
        origins: dotted key to where its value comes from, e.g. ``sealrun.toml:12``.
        digest: sha256 of the committed policy's bytes; that is what gets approved.
        committed: whether the commit holds a policy.
    """

    policy: Policy
    origins: Mapping[str, str]
    digest: str
    committed: bool

    def values(self) -> dict[str, Any]:
        """Return each value under its dotted key, as JSON types."""
        return dict(_flatten(self.policy.model_dump(mode="json")))

    def loosened(self) -> tuple[str, ...]:
        """Return each setting that is weaker than the shipped one, as a sentence."""
        return tuple(_loosenings(self.policy))


NO_POLICY = hashlib.sha256(b"").hexdigest()


def shipped_policy(name: str) -> EffectivePolicy:
    """Return a shipped policy: ``audit``, ``standard`` or ``strict``."""
    text = f'extends = "{name}"\n'
    found = load(text.encode(), source=f"{name} (shipped)")
    return EffectivePolicy(found.policy, found.origins, NO_POLICY, committed=False)


def committed_policy(tree: CommittedTree) -> EffectivePolicy:
    """Return the policy of a commit, or the shipped ``standard`` where it holds none.

    Raises:
        PolicyError: it does not validate.
    """
    entry = tree.get(POLICY_FILE)
    if entry is None:
        return shipped_policy("standard")
    return load(tree.read(entry), source=f"{POLICY_FILE.decode()} of {tree.commit[:7]}")


def load(content: bytes, *, source: str) -> EffectivePolicy:
    """Read a policy file.

    Args:
        source: how messages name it.

    Raises:
        PolicyError: bad TOML, an unknown key, an impossible value; the message names the line.
    """
    document, text = _parse(content, source)
    layers = _ancestry(document, text, source)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, content_of, values in layers:
        _merge(merged, values)
        for key, _ in _flatten(values):
            line = _line_of(content_of, key)
            origins[key] = f"{name}:{line}" if line and "(shipped)" not in name else name
    try:
        policy = Policy.model_validate(merged)
    except ValidationError as error:
        raise _invalid(error, text, source) from error
    for key, _ in _flatten(policy.model_dump(mode="json")):
        origins.setdefault(key, "built in")
    return EffectivePolicy(policy, origins, hashlib.sha256(content).hexdigest(), committed=True)


def _parse(content: bytes, source: str) -> tuple[dict[str, Any], str]:
    try:
        text = content.decode("utf-8")
        return tomllib.loads(text), text
    except UnicodeDecodeError as error:
        raise PolicyError(f"{source}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{source}: {error}", hint="The file is TOML (toml.io).") from error


_Layer = tuple[str, str, dict[str, Any]]


def _ancestry(document: dict[str, Any], text: str, source: str) -> list[_Layer]:
    parent = document.pop("extends", "standard")
    names = [level.value for level in Level]
    if parent not in names:
        raise PolicyError(
            f"{source}:{_line_of(text, 'extends')}: extends = {parent!r} is no shipped policy",
            hint=f"Use one of {', '.join(names)}.",
        )
    layers: list[_Layer] = [(source, text, document)]
    while True:
        file = shipped("policies", f"{parent}.toml")
        text = file.read_text("utf-8")
        values = tomllib.loads(text)
        grandparent = values.pop("extends", None)
        layers.insert(0, (f"{parent} (shipped)", text, values))
        if grandparent is None:
            return layers
        parent = grandparent


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _line_of(text: str, dotted: str) -> int | None:
    """Return the line of a key: tomllib keeps no positions, so sections are followed by hand."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
            section = header[1] + "."
            if dotted in (header[1], section):
                return number
        elif (pair := re.match(r"\s*([\w.\"-]+)\s*=", line)) and section + pair[1].strip(
            '"'
        ) == dotted:
            return number
    return None


def _invalid(error: ValidationError, text: str, source: str) -> PolicyError:
    import difflib

    lines: list[str] = []
    hint = "sealrun policy check FILE validates a policy before it is committed."
    for problem in error.errors():
        place = [str(part) for part in problem["loc"] if not isinstance(part, int)]
        if place[:1] == ["fetch"]:
            # Between the section and the key stands which of the union's models it was read as.
            place[1:2] = []
        dotted = ".".join(place)
        line = _line_of(text, dotted) or _line_of(text, place[0]) if place else None
        where = f"{source}:{line}" if line else source
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(dotted, keys(), n=1, cutoff=0.4)
            lines.append(f"{where}: unknown key {dotted}")
            if near:
                hint = f"The nearest key is {near[0]}."
        else:
            lines.append(f"{where}: {dotted}: {problem['msg']}")
    return PolicyError("; ".join(lines), hint=hint)


def keys() -> tuple[str, ...]:
    """Return every dotted key that a policy may hold."""
    return tuple(dict.fromkeys(key for key, _, _ in describe()))


def describe() -> tuple[tuple[str, str, Any], ...]:
    """Return each dotted key with its description and default, for help and the reference."""
    rows: list[tuple[str, str, Any]] = [
        ("extends", "audit, standard or strict: what this policy builds on", "standard"),
        ("level", "how findings are answered", "standard"),
    ]
    sections: tuple[tuple[str, type[_Section]], ...] = (
        ("image", ImagePolicy),
        ("sandbox", SandboxPolicy),
        ("limits", LimitsPolicy),
        ("metric", MetricPolicy),
        ("guard", GuardPolicy),
        ("determinism", DeterminismPolicy),
        ("data", DataPolicy),
        *(("fetch", model) for model in FETCHES.values()),
    )
    for name, model in sections:
        for key, info in model.model_fields.items():
            default = None if info.is_required() else info.get_default(call_default_factory=True)
            rows.append((f"{name}.{key}", info.description or "", default))
    return tuple(rows)


def _loosenings(policy: Policy) -> Iterator[str]:
    box = policy.sandbox
    if policy.level is Level.AUDIT:
        yield "level: findings are recorded, nothing is refused or aborted"
    if box.network != "none":
        yield f"sandbox.network: {box.network} instead of none"
    if box.seccomp != "sealrun":
        yield "sandbox.seccomp: the engine's own profile instead of sealrun's"
    if box.caches != "fresh":
        yield "sandbox.caches: runs execute what an earlier command compiled"
    if box.pass_variables:
        yield f"sandbox.pass_variables: {', '.join(box.pass_variables)} come from the caller"
    shipped_box = SandboxPolicy()
    for key in ("pids", "open_files", "shm", "tmp", "outputs"):
        value, standard = getattr(box, key), getattr(shipped_box, key)
        if value > standard:
            yield f"sandbox.{key}: {value} instead of {standard}"
    own = [tool for tool in FOREIGN_TOOLS if tool not in policy.guard.foreign]
    if own:
        yield f"guard.foreign: {', '.join(own)} may be the loop's own"
    if policy.image.build_sdists:
        yield "image.build_sdists: source distributions run their build code"


@dataclass(frozen=True)
class Tightening:
    """What the command line asks for on top of the policy."""

    level: Level | None = None
    deadline: float | None = None
    memory: int | None = None
    cpus: float | None = None


def tighten(effective: EffectivePolicy, asked: Tightening) -> EffectivePolicy:
    """Apply the command line, which may only tighten.

    Raises:
        UsageError: an option would loosen the approved policy.
    """
    policy = effective.policy
    origins = dict(effective.origins)
    order = list(Level)
    changes: dict[str, Any] = policy.model_dump()

    def check(option: str, key: str, asked: float, held: float | None) -> None:
        if held is not None and asked > held:
            raise UsageError(
                f"{option} {asked:g} is looser than the policy's {key} = {held:g}",
                hint="Options may only tighten; the policy is a human's to change.",
            )
        origins[key] = option

    if asked.level is not None:
        if order.index(asked.level) < order.index(policy.level):
            raise UsageError(
                f"--policy {asked.level} is looser than the policy's level {policy.level}",
                hint="Options may only tighten; the policy is a human's to change.",
            )
        changes["level"] = asked.level
        origins["level"] = "--policy"
    if asked.deadline is not None:
        check("--deadline", "limits.deadline", asked.deadline, policy.limits.deadline)
        changes["limits"]["deadline"] = asked.deadline
    if asked.memory is not None:
        check("--memory", "sandbox.memory", asked.memory, policy.sandbox.memory)
        changes["sandbox"]["memory"] = asked.memory
    if asked.cpus is not None:
        check("--cpus", "sandbox.cpus", asked.cpus, policy.sandbox.cpus)
        changes["sandbox"]["cpus"] = asked.cpus
    try:
        tightened = Policy.model_validate(changes)
    except ValidationError as error:
        first = error.errors()[0]
        option = origins[".".join(map(str, first["loc"]))]
        raise UsageError(
            f"{option} asks for what no experiment can run with: {first['msg']}",
            hint="Ask for more, or leave the option out.",
        ) from error
    return EffectivePolicy(tightened, origins, effective.digest, effective.committed)


def approved_policy(digest: str, values: Mapping[str, Any]) -> EffectivePolicy:
    """Return the policy that a human approved, from the values that were recorded then.

    Args:
        digest: of the approved policy's bytes.
        values: as ``EffectivePolicy.values`` gave them.

    Raises:
        PolicyError: this version cannot read them.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if not name:
            nested[section] = value
            continue
        into = nested.setdefault(section, {})
        # One table lies deeper: the variables, whose names are the policy's own.
        name, _, variable = name.partition(".")
        if variable:
            into.setdefault(name, {})[variable] = value
        else:
            into[name] = value
    try:
        policy = Policy.model_validate(nested)
    except ValidationError as error:
        raise PolicyError(
            f"the approved policy {digest[:12]} on record cannot be read by this version: {error}",
            hint="Use the version that recorded it; the owner of this loop can approve anew.",
        ) from error
    origins = dict.fromkeys(values, "approved")
    return EffectivePolicy(policy, origins, digest, committed=True)


@dataclass(frozen=True)
class Approvable:
    """What a human approves: the policy's bytes and the blob of each protected path.

    Attributes:
        policy: sha256 of the committed policy; ``NO_POLICY`` where there is none.
        protected: path (as text, surrogates escaped) to blob id, with its mode where that is not a
            plain file's.
        patterns: the protected patterns that were in force.
    """

    policy: str
    protected: Mapping[str, str] = field(default_factory=dict[str, str])
    patterns: tuple[str, ...] = ()


def approvable(
    tree: CommittedTree, effective: EffectivePolicy, more: tuple[str, ...] = ()
) -> Approvable:
    """Return what a commit asks a human to approve.

    Args:
        more: patterns of the approved policy, so that a commit cannot drop its own protection.
    """
    patterns = tuple(sorted({*effective.policy.guard.protected, *more, PINS_FILE.decode()}))
    protected = {
        name: _state(entry)
        for entry in tree.entries
        if is_protected(name := entry.path.decode("utf-8", "surrogateescape"), patterns)
    }
    return Approvable(effective.digest, protected, patterns)


def _state(entry: Entry) -> str:
    # The blob of a symlink is its target: the same bytes as a file are another thing.
    return entry.oid if entry.mode == _PLAIN else f"{entry.oid} {entry.mode:o}"


def is_protected(path: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a path matches a pattern; a pattern that names a directory covers all below."""
    return any(
        fnmatch.fnmatchcase(path, pattern) or path.startswith(pattern.rstrip("/") + "/")
        for pattern in patterns
    )


def changed(approved: Approvable, candidate: Approvable) -> tuple[Reason, ...]:
    """Return why a candidate needs a human: policy changed, protected files changed, both."""
    reasons: list[Reason] = []
    if approved.policy != candidate.policy:
        reasons.append(Reason.POLICY_CHANGED)
    if changed_paths(approved, candidate):
        reasons.append(Reason.PROTECTED_CHANGED)
    return tuple(reasons)


def changed_paths(approved: Approvable, candidate: Approvable) -> tuple[str, ...]:
    """Return the protected paths whose blob differs, is new, or is gone."""
    names = approved.protected.keys() | candidate.protected.keys()
    return tuple(
        sorted(n for n in names if approved.protected.get(n) != candidate.protected.get(n))
    )
