"""What kind of repository this is, from the files that it holds.

Rules that this module keeps:

- Pure: names and bytes come in, a ``Shape`` goes out. Nothing of the repository is imported or run.
- What cannot be told is None and gets said, never guessed: a metric with the wrong direction would
  turn a ratchet round.
- A cache below the home that other programs share is never proposed as data: it may hold tokens.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What karpathy/autoresearch calls its three files (program.md, "In-scope files").
PROGRAM, TRAIN, PREPARE = "program.md", "train.py", "prepare.py"
#: Where its prepare.py keeps data and tokenizer.
_DATA = "~/.cache/autoresearch"
#: Seconds after which its program.md says to kill a run.
_TEN_MINUTES = 600
#: In the order in which an environment takes them (``image.environment``).
LOCKS = ("pylock.toml", "uv.lock", "requirements.txt")
_PROJECT = "pyproject.toml"
#: Since then the client asks the hub for kernels, before it asked for models.
_KERNELS_OF_THEIR_OWN = (0, 14)
#: Caches of programs, not of one repository; some keep their user's tokens beside the data.
_SHARED = frozenset(
    ("huggingface", "torch", "pip", "uv", "wandb", "kaggle", "modal", "triton", "matplotlib")
)

_GREP = re.compile(r"""grep\s+(?:-\w+\s+)*["']?\^([A-Za-z_][A-Za-z0-9_]*)\s*:""")
_BUDGET = re.compile(r"^TIME_BUDGET\s*=\s*(\d+)", re.MULTILINE)
_COMPILES = re.compile(
    rb"\btorch\.compile\b|^[ \t]*from[ \t]+torch[ \t]+import\b[^\n]*\bcompile\b|"
    rb"\bcpp_extension\b|^[ \t]*(?:import|from)[ \t]+triton\b",
    re.MULTILINE,
)
#: In a lock of any form: Triton compiles its launchers, whatever the code calls.
_TRITON = re.compile(r'^(?:name = "triton"|triton==)', re.MULTILINE)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOWER = re.compile(r"\blow(?:er|est)\b|\bminimi[sz]", re.IGNORECASE)
_HIGHER = re.compile(r"\bhigh(?:er|est)\b|\bmaximi[sz]", re.IGNORECASE)


class Kind(Enum):
    """The shapes that are told apart; the value is what a user reads."""

    AUTORESEARCH = "an autoresearch repository"
    UV = "a uv project"
    PYLOCK = "a Python project with a pylock.toml"
    REQUIREMENTS = "a Python project with requirements"
    SCRIPT = "Python without a lock"
    OTHER = "no Python"


@dataclass(frozen=True)
class Found:
    """What was looked at in the working directory.

    Attributes:
        paths: of files that git knows or would add, relative to the top.
        contents: of those that were read: the small ones at the top, and Python sources.
    """

    paths: frozenset[str]
    contents: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    def text(self, path: str) -> str:
        """Return a file as text, whatever bytes it holds; empty where it was not read."""
        return self.contents.get(path, b"").decode("utf-8", "replace")


@dataclass(frozen=True)
class Metric:
    """The number that the loop greps for: its name, and ``minimize`` or ``maximize`` if known."""

    name: str
    direction: str | None


@dataclass(frozen=True)
class Kernel:
    """A hub repository with executable code, which a run would fetch at import.

    Attributes:
        repository: ORGANISATION/NAME.
        type: what the hub's client asks for: ``model``, or ``kernel`` since kernels 0.14.
        allow: patterns of the builds that fit the locked torch; empty where no lock names one.
        revision: None where the code names none.
    """

    repository: str
    type: str
    allow: tuple[str, ...] = ()
    revision: str | None = None


@dataclass(frozen=True)
class Shape:
    """What a repository is.

    Attributes:
        lock: the file that its environment comes from.
        script: what is probably run; None where several could be.
        metric: None where nothing names one.
        deadline: seconds; None where nothing asks for one.
        data: directories outside, as ``~/…``.
        protected: files that judge a run.
        compiles: whether a run needs a compiler.
        kernels: executable code that is fetched from a hub while it runs.
    """

    kind: Kind
    lock: str | None = None
    script: str | None = None
    metric: Metric | None = None
    deadline: float | None = None
    data: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    compiles: bool = False
    kernels: tuple[Kernel, ...] = ()


def recognise(found: Found) -> Shape:
    """Return what a repository is."""
    lock = next((name for name in LOCKS if name in found.paths), None)
    kind = _kind(found, lock)
    sources = {path: text for path, text in found.contents.items() if path.endswith(".py")}
    compiles = any(_COMPILES.search(text) for text in sources.values())
    compiles = compiles or bool(_TRITON.search(found.text(lock or "")))
    protected = tuple(path for path in (lock,) if path)
    if kind is not Kind.AUTORESEARCH:
        return Shape(kind, lock, _script(found, kind), protected=protected, compiles=compiles)
    budget = _BUDGET.search(found.text(PREPARE)) or _BUDGET.search(found.text(TRAIN))
    # Four digits are an hour and more; what is longer is no budget of seconds.
    seconds = int(budget[1]) if budget and len(budget[1]) <= 6 else 0  # noqa: PLR2004
    return Shape(
        kind,
        lock,
        TRAIN,
        metric=metric_of(found.text(PROGRAM)),
        deadline=max(_TEN_MINUTES, 2 * seconds),
        data=home_caches(found.contents.get(PREPARE, b"")) or (_DATA,),
        protected=(PREPARE, *protected),
        compiles=compiles,
        kernels=kernels(found.contents.get(TRAIN, b""), found.text(lock or "")),
    )


def _kind(found: Found, lock: str | None) -> Kind:
    ours = {PROGRAM, TRAIN, PREPARE} <= found.paths
    if ours and (metric_of(found.text(PROGRAM)) or "val_bpb" in found.text(TRAIN)):
        return Kind.AUTORESEARCH
    if lock == "pylock.toml":
        return Kind.PYLOCK
    if _PROJECT in found.paths and lock != "requirements.txt":
        return Kind.UV
    if lock is not None:
        return Kind.REQUIREMENTS
    return Kind.SCRIPT if any(p.endswith((".py", ".ipynb")) for p in found.paths) else Kind.OTHER


def _script(found: Found, kind: Kind) -> str | None:
    if kind is Kind.OTHER:
        return None
    scripts = [p for p in found.paths if p.endswith(".py") and "/" not in p]
    known = [name for name in (TRAIN, "main.py", "run.py") if name in scripts]
    others = [name for name in scripts if name not in ("setup.py", "conftest.py")]
    return known[0] if known else others[0] if len(others) == 1 else None


def metric_of(program: str) -> Metric | None:
    """Return the metric that a loop's instructions grep for, the first one; None: they name none."""
    named = _GREP.search(program)
    if named is None:
        return None
    name = named[1]
    # What stands in one sentence with the name speaks about it, "improved (lower)" too.
    sentences = [s for s in re.split(r"\n|(?<=[.!?])\s", program) if name in s]
    about = " ".join(sentences)
    lower, higher = bool(_LOWER.search(about)), bool(_HIGHER.search(about))
    if lower == higher:
        return Metric(name, None)
    return Metric(name, "minimize" if lower else "maximize")


def home_caches(source: bytes) -> tuple[str, ...]:
    """Return the directories below ``~/.cache`` that a source names, as ``~/.cache/NAME``.

    Recognised are ``os.path.join(os.path.expanduser("~"), …)``, ``os.path.expanduser("~/…")`` and
    ``Path.home() / …`` with constant parts.
    """
    found: dict[str, None] = {}
    for node in _nodes(source):
        path = _path_of(node)
        parts = path.split("/") if path else []
        if parts[:2] == ["~", ".cache"] and len(parts) > 2 and _plain(parts[2]):  # noqa: PLR2004
            found.setdefault("/".join(parts[:3]))
    return tuple(found)


def _plain(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)) and name not in _SHARED


def _path_of(node: ast.AST) -> str | None:
    """Return the path below the home that an expression makes, as far as its parts are constant."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _joined([node.left, node.right])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "home" and not node.args:
            return "~"
        if node.func.attr == "expanduser":
            return _path_of(node.args[0] if node.args else node.func.value)
        if node.func.attr == "join":
            return _joined(node.args)
    return None


def _joined(parts: list[ast.expr]) -> str | None:
    found: list[str] = []
    for part in parts:
        path = _path_of(part)
        if path is None:
            break
        found.append(path)
    return "/".join(found) or None


def kernels(source: bytes, lock: str = "") -> tuple[Kernel, ...]:
    """Return what a source may hand to ``kernels.get_kernel``, and how to fetch it beforehand.

    That call downloads executable code while the program runs. Its argument may be a name that was
    bound before, to one constant or to a choice of two. Which builds it looks for, and that the
    hub knows kernels as a kind of their own, is kernels' ``utils.py`` (0.12.1; 0.14.0).

    Args:
        lock: the text of the lock; it says which torch and which client there will be.
    """
    client, torch = _locked("kernels", lock), _locked("torch", lock)
    kind = "model" if client is not None and client < _KERNELS_OF_THEIR_OWN else "kernel"
    allow = (f"build/torch{torch[0]}{torch[1]}-*", "build/torch-*") if torch else ()
    return tuple(Kernel(name, kind, allow, revision) for name, revision in _asked(source))


def _locked(package: str, lock: str) -> tuple[int, int] | None:
    """Return major and minor version of a locked package, where there is one alone."""
    block = rf'^name = "{package}"\nversion = "(\d+)\.(\d+)'
    line = rf"^{package}==(\d+)\.(\d+)"
    found = set(re.findall(block, lock, re.MULTILINE) + re.findall(line, lock, re.MULTILINE))
    if len(found) != 1:
        return None
    major, minor = found.pop()
    return int(major[:6]), int(minor[:6])


def _asked(source: bytes) -> tuple[tuple[str, str | None], ...]:
    """Return repository and revision of each call; None: the call names no revision."""
    bound: dict[str, set[str]] = {}
    asked: dict[tuple[str, str | None], None] = {}
    named: list[tuple[str, str | None]] = []
    for node in _nodes(source):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    bound.setdefault(target.id, set()).update(_constants(node.value))
        elif isinstance(node, ast.Call) and node.args and _called(node.func) == "get_kernel":
            given = (k.value for k in node.keywords if k.arg == "revision")
            texts = (text for value in given for text in _constants(value))
            revision = next((text for text in texts if _REVISION.fullmatch(text)), None)
            if isinstance(node.args[0], ast.Name):
                named.append((node.args[0].id, revision))
            asked |= dict.fromkeys((name, revision) for name in _constants(node.args[0]))
    for variable, revision in named:
        asked |= dict.fromkeys((name, revision) for name in sorted(bound.get(variable, ())))
    # One repository is fetched at one revision: the first that is asked for.
    first: dict[str, str | None] = {}
    for name, revision in asked:
        first.setdefault(name, revision)
    return tuple((name, found) for name, found in first.items() if _HUB.fullmatch(name))


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _constants(expression: ast.expr) -> Iterator[str]:
    if isinstance(expression, ast.IfExp):
        yield from _constants(expression.body)
        yield from _constants(expression.orelse)
    elif isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value


def _nodes(source: bytes) -> Iterator[ast.AST]:
    try:
        with warnings.catch_warnings():
            # What a stranger's source is warned about is not ours to print.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from ast.walk(tree)
