"""What a Python file says by itself: its module constants, and the labels that it prints them under.

Rules that this module keeps:

- The file is parsed (``ast``), never executed, imported or compiled. It is hostile: what cannot be
  parsed says nothing.
- A constant counts only where nothing in the file can change it: one literal assignment at the top
  level, no other binding of the name anywhere, no ``import *`` and no call that reaches names by
  text (``exec``, ``globals`` and the like). Then what the file holds is what the module has.
- A label is tied to a constant only where the file shows both side by side: ``f"depth: {DEPTH}"`` or
  ``print("depth:", DEPTH)``.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Literal: TypeAlias = "int | float | str | bool | None"

#: Bytes of a file that is parsed.
SIZE_LIMIT = 2 << 20
_LABEL = re.compile(r"(?:^|\n)[ \t]*([A-Za-z_]\w*)[ \t]*[:=][ \t]*\Z")
_BY_TEXT = {"exec", "eval", "globals", "locals", "vars", "setattr", "__import__"}


@dataclass(frozen=True)
class Shown:
    """A constant as the file prints it.

    Attributes:
        constant: its name.
        spec: its format, e.g. ``.2f``; empty for none.
    """

    constant: str
    spec: str


@dataclass(frozen=True)
class Script:
    """What could be learnt of a file without running it.

    Attributes:
        constants: name -> value of each that nothing changes.
        labels: printed label -> the constant behind it; None where it is anything else.
    """

    constants: Mapping[str, Literal] = field(default_factory=dict[str, Literal])
    labels: Mapping[str, Shown | None] = field(default_factory=dict[str, "Shown | None"])


def read_script(content: bytes | None) -> Script | None:
    """Learn what a file says; None where it is not there or is no Python that we can parse."""
    if content is None or len(content) > SIZE_LIMIT:
        return None
    try:
        tree = ast.parse(content)
        return Script(_constants(tree), dict(_labels(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _constants(tree: ast.Module) -> dict[str, Literal]:
    found: dict[str, Literal] = {}
    for statement in tree.body:
        target: ast.expr | None = None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        else:
            continue
        if isinstance(target, ast.Name) and statement.value is not None:
            known, value = _literal(statement.value)
            if known:
                found[target.id] = value
    bound = Counter(_bound(tree))
    if bound["*"]:
        return {}
    return {name: value for name, value in found.items() if bound[name] == 1}


def _literal(node: ast.expr) -> tuple[bool, Literal]:
    """Return whether an expression is a number or a text by itself, and which."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        known, value = _literal(node.operand)
        if known and isinstance(value, int | float) and not isinstance(value, bool):
            return True, -value
        return False, None
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return True, node.value
    return False, None


def _bound(tree: ast.Module) -> Iterator[str]:
    """Yield a name for each place that binds it; ``*`` where any name could be bound."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Name) and node.id in _BY_TEXT:
            yield "*"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            # A parameter of the same name hides the constant where it is printed.
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
        elif isinstance(node, ast.Global):
            yield from node.names


def _labels(tree: ast.Module) -> Iterator[tuple[str, Shown | None]]:
    seen: set[str] = set()
    for before, after in _printed(tree):
        match = _LABEL.search(before)
        if match is not None:
            label = match[1]
            # The same label in two places: which of them printed is not known.
            yield label, None if label in seen else _shown(after)
            seen.add(label)


def _printed(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yield each text with the expression that is printed behind it."""
    for node in ast.walk(tree):
        parts: list[ast.expr] = []
        if isinstance(node, ast.JoinedStr):
            parts = node.values
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            parts = node.args if node.func.id == "print" else []
        for before, after in itertools.pairwise(parts):
            if isinstance(before, ast.Constant) and isinstance(before.value, str):
                yield before.value, after


def _shown(value: ast.expr) -> Shown | None:
    if isinstance(value, ast.Name):
        return Shown(value.id, "")
    if not isinstance(value, ast.FormattedValue) or value.conversion != -1:
        return None
    if not isinstance(value.value, ast.Name):
        return None
    spec = ""
    if isinstance(value.format_spec, ast.JoinedStr):
        for part in value.format_spec.values:
            if not isinstance(part, ast.Constant):
                return None
            spec += str(part.value)
    return Shown(value.value.id, spec)


def printed_as(value: Literal, spec: str) -> str | None:
    """Return what an f-string would print; None where it would fail, or be too long."""
    widths = [int(number) for number in re.findall(r"\d{1,9}", spec)]
    if any(width > 1000 for width in widths) or isinstance(value, str):  # noqa: PLR2004 - a bomb
        return None
    try:
        return format(value, spec).strip()
    except (ValueError, TypeError, OverflowError):
        return None


def mentions(description: str, name: str, value: Literal) -> bool:
    """Tell whether a description may be about a constant: generous, so that a no means something.

    It does when a word of it begins as a word of the name does (three letters), or when it holds the
    new value.
    """
    words = set(re.findall(r"[a-z]{3,}", description.lower()))
    parts = re.findall(r"[a-z]{3,}", name.lower())
    if any(w[:3] == p[:3] for p in parts for w in words):
        return True
    if not parts and name.lower() in description.lower():
        return True
    return str(value) in description
