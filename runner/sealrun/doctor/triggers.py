"""Finds what is set up to rewrite files by itself: editors, commit hooks, agents' hooks.

Rules that this module keeps:

- No IO: text comes in, findings go out. No repository code runs, and configuration that is code
  is only named.
- A file that cannot be understood is itself a finding, never silence.
- Words of configuration files are somebody else's: they are shortened, and printed escaped.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Hooks of pre-commit that change files, of the collections that people use most.
FIXERS = frozenset(
    {
        *("ruff-format", "ruff", "ruff-check", "black", "black-jupyter", "isort", "autopep8"),
        *("yapf", "pyupgrade", "autoflake", "docformatter", "add-trailing-comma", "blacken-docs"),
        *("reorder-python-imports", "end-of-file-fixer", "trailing-whitespace", "prettier"),
        *("mixed-line-ending", "double-quote-string-fixer", "requirements-txt-fixer"),
        *("fix-byte-order-marker", "fix-encoding-pragma", "pretty-format-json", "mdformat"),
        *("file-contents-sorter", "eslint", "biome-check", "biome-format", "clang-format"),
        *("taplo-format", "pyproject-fmt", "nbstripout", "nbqa-black", "gofmt", "rustfmt", "shfmt"),
        *("pretty-format-yaml", "pretty-format-toml", "unify", "ssort", "typos", "codespell"),
    }
)
_SHOWN = 100


@dataclass(frozen=True)
class Trigger:
    """Something that may rewrite a file without being asked.

    Attributes:
        kind: ``editor``, ``commit hook`` or ``agent hook``.
        source: the file that sets it up.
        what: what happens and when.
        fix: how to keep it from the experiment's files.
        text: the words in which formatters may be named.
    """

    kind: str
    source: str
    what: str
    fix: str
    text: str = ""


def of_vscode(source: str, text: str) -> Iterator[Trigger]:
    """Yield what VS Code does on save, from the text of a ``settings.json`` (comments allowed)."""
    fix = f'Set it to false for this repository in {source}, or "editor.formatOnSave": false.'
    settings = _json(text)
    if settings is None:
        yield Trigger("editor", source, "settings that cannot be read", f"Look at {source}.")
        return
    scopes = [("", settings)]
    for key, value in settings.items():
        if key.startswith("[") and isinstance(value, dict):
            scopes.append((f" for {key}", cast("dict[str, Any]", value)))
    for scope, values in scopes:
        formatter = str(values.get("editor.defaultFormatter", ""))
        if values.get("editor.formatOnSave") is True:
            yield Trigger("editor", source, f"format on save{scope}", fix, formatter)
        actions = values.get("editor.codeActionsOnSave")
        if isinstance(actions, dict):
            wanted = cast("dict[str, Any]", actions)
            on = [k for k, v in wanted.items() if v not in {False, "never"}]
            if on:
                what = f"on save{scope}: {_short(', '.join(on))}"
                yield Trigger("editor", source, what, fix, " ".join(on))
        for key in ("files.trimTrailingWhitespace", "files.insertFinalNewline"):
            if values.get(key) is True:
                yield Trigger("editor", source, f"{key}{scope} on save", fix)


def of_idea(source: str, text: str) -> Iterator[Trigger]:
    """Yield what an IDE of JetBrains does on save, from the text of a file in ``.idea/``."""
    fix = "Settings > Tools > Actions on Save: switch it off for this project."
    for component, what in (
        ("FormatOnSaveOptions", "reformat code on save"),
        ("OptimizeOnSaveOptions", "optimise imports on save"),
    ):
        pattern = rf'<component name="{component}">(.*?)</component>'
        found = re.search(pattern, text, re.DOTALL)
        if found and re.search(r'name="myRunOnSave" value="true"', found[1]):
            yield Trigger("editor", source, what, fix)
    if "<TaskOptions" in text and 'isEnabled="true"' in text:
        names = re.findall(r'<option name="name" value="([^"]*)"', text)
        what = f"file watchers: {_short(', '.join(names))}"
        yield Trigger("editor", source, what, fix, " ".join(names))


def of_pre_commit(source: str, text: str, *, installed: bool) -> Iterator[Trigger]:
    """Yield the hooks of a ``.pre-commit-config.yaml``, fixers apart from checks.

    Args:
        source: the file.
        text: its content; only ``id:`` lines are read.
        installed: git runs pre-commit before each commit here.
    """
    identifiers = re.findall(r"^\s*(?:-\s+)?id:\s*[\"']?([\w.-]+)", text, re.MULTILINE)
    fixers = [i for i in identifiers if i in FIXERS]
    others = [i for i in identifiers if i not in FIXERS]
    when = "before each commit" if installed else "when pre-commit is run (not installed as hook)"
    if fixers:
        yield Trigger(
            "commit hook",
            source,
            f"fixers {when}: {_short(', '.join(fixers))}",
            "Add `exclude: ^train\\.py$` (your experiment's files) to these hooks.",
            text,
        )
    if others:
        what = f"hooks not known to change files: {_short(', '.join(others))}"
        yield Trigger("commit hook", source, what, "", "")


def of_hook(source: str, text: str) -> Iterator[Trigger]:
    """Yield a hook of git's; what it does is not known without running it."""
    yield Trigger(
        "commit hook",
        source,
        "git runs it around commits (sealrun's own git calls run no hooks)",
        "Look at what it does to files; remove it if it rewrites them.",
        text,
    )


def of_lint_staged(source: str, text: str) -> Iterator[Trigger]:
    """Yield lint-staged, from a configuration file of its own."""
    fix = "Keep the experiment's files out of its patterns."
    yield Trigger("commit hook", source, "lint-staged before each commit", fix, text)


def of_package_json(source: str, text: str) -> Iterator[Trigger]:
    """Yield lint-staged and husky in a ``package.json``."""
    document = _json(text)
    if document is None:
        return
    fix = f"Keep the experiment's files out of its patterns in {source}."
    for key in ("lint-staged", "husky", "simple-git-hooks"):
        if key in document:
            words = json.dumps(document[key])
            yield Trigger("commit hook", source, f"{key}: {_short(words)}", fix, words)


def of_agent(source: str, text: str) -> Iterator[Trigger]:
    """Yield the commands that a coding agent runs around its edits, from its JSON settings."""
    document = _json(text)
    if document is None:
        yield Trigger("agent hook", source, "settings that cannot be read", f"Look at {source}.")
        return
    hooks = document.get("hooks")
    for event, entries in cast("dict[str, Any]", hooks if isinstance(hooks, dict) else {}).items():
        for command in _commands(entries):
            if re.match(r"(\S*/)?sealrun\s", command):
                continue
            yield Trigger(
                "agent hook",
                source,
                f"{event}: {_short(command)}",
                "If it formats: leave the experiment's files out, or remove it.",
                command,
            )


def of_aider(source: str, text: str) -> Iterator[Trigger]:
    """Yield aider's linter, which it runs and commits after each edit, from ``.aider.conf.yml``."""
    if re.search(r"^\s*lint-cmd\s*:", text, re.MULTILINE):
        fix = "Start it with --no-auto-lint."
        yield Trigger("agent hook", source, "aider's lint-cmd after each edit", fix, text)


def _commands(entries: object) -> Iterator[str]:
    if isinstance(entries, dict):
        values = cast("dict[str, Any]", entries)
        command = values.get("command")
        if isinstance(command, str):
            yield command
        for value in values.values():
            if isinstance(value, dict | list):
                yield from _commands(cast("object", value))
    elif isinstance(entries, list):
        for entry in cast("list[object]", entries):
            yield from _commands(entry)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)


def _json(text: str) -> dict[str, Any] | None:
    """Parse JSON with comments and trailing commas, as editors' settings have them."""
    bare = _TOKEN.sub(lambda m: m[0] if m[0].startswith('"') else " ", text)
    bare = _TRAILING_COMMA.sub(lambda m: m[1] or "", bare)
    try:
        document: object = json.loads(bare)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None
