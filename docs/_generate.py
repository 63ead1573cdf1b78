"""Makes the parts of the reference that the code knows better than any author.

Rules that this module keeps:

- A page holds a placeholder such as ``<!-- generate: commands -->``; it is filled while Sphinx
  reads the page. No generated text is kept in the repository, so none can be out of date.
- Everything comes from what the program itself uses: its command tree, its reason codes, its exit
  statuses, its policy models.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLACEHOLDER = re.compile(r"^<!-- generate: (\w+) -->$", re.MULTILINE)

#: What each exit status of ours means; the names and numbers are ``sealrun.errors.Status``.
STATUS_TEXTS = {
    "OK": "done; of `run`: the experiment succeeded",
    "USAGE": "the call cannot be carried out as given",
    "FLAGGED": "the run is flagged (only with `--fail-on-flag`)",
    "REFUSED": "refused: nothing was run",
    "ABORTED": "ended because of a mutation",
    "DIFFERENT": "a reproduction differs",
    "DEADLINE": "the policy's deadline ended the experiment",
    "FAULT": "trouble of sealrun, the engine or the environment; nothing was judged",
    "NOT_EXECUTABLE": "the command in the image cannot be executed",
    "NOT_FOUND": "the command is not in the image",
    "INTERRUPTED": "interrupted by a user or a signal",
}


def fill(page: str) -> str:
    """Return a page with its placeholders filled.

    Raises:
        KeyError: a placeholder names nothing that can be generated.
    """
    return _PLACEHOLDER.sub(lambda match: PARTS[match[1]](), page)


def tree() -> dict[str, Any]:
    """Return every command under its full name, e.g. ``policy show``."""
    import typer.main

    from sealrun.cli import application

    return dict(_walk(typer.main.get_command(application()), ()))


def _walk(command: Any, name: tuple[str, ...]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - click's
    if children := getattr(command, "commands", None):
        for child, below in children.items():
            yield from _walk(below, (*name, child))
    else:
        yield " ".join(name), command


def commands() -> str:
    """Return a section for each command: what it does, its arguments, its options."""
    return "\n".join(_section(name, command) for name, command in tree().items())


def _section(name: str, command: Any) -> str:  # noqa: ANN401 - click's
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(
        ["sealrun", name, *(["[OPTIONS]"] if options else []), *map(_metavar, arguments)]
    )
    lines = [f"## {name}", "", "```text", usage, "```", "", *_help(command.help or ""), ""]
    for parameter in (*arguments, *options):
        if text := getattr(parameter, "help", None):
            names = _metavar(parameter) if parameter in arguments else ", ".join(parameter.opts)
            lines += [f"`{names}`", f": {text}", ""]
    return "\n".join(lines)


def _metavar(argument: Any) -> str:  # noqa: ANN401 - click's
    name = argument.metavar or argument.name.upper()
    return str(name) if argument.required else f"[{name}]"


def _help(text: str) -> Iterator[str]:
    for line in text.strip().split("\n"):
        example = re.fullmatch(r"\s*Example:\s+(.*)", line)
        if example:
            yield from ("```console", f"$ {example[1]}", "```")
        else:
            yield line.strip()


def reasons() -> str:
    """Return the table of reason codes."""
    from sealrun.reasons import MEANINGS

    rows = (f"| `{r.value}` | {m.severity.value} | {m.text} |" for r, m in MEANINGS.items())
    return "\n".join(("| code | under `standard` | meaning |", "|---|---|---|", *rows))


def audit() -> str:
    """Return the table of what an audit can find."""
    from sealrun.audit.findings import MEANINGS

    rows = (f"| `{code.value}` | {text} |" for code, text in MEANINGS.items())
    return "\n".join(("| code | meaning |", "|---|---|", *rows))


def statuses() -> str:
    """Return the table of exit statuses."""
    from sealrun.errors import Status

    rows = (f"| {s.value} | {STATUS_TEXTS[s.name]} |" for s in Status)
    return "\n".join(("| status | meaning |", "|---|---|", *rows))


def policy() -> str:
    """Return a table of keys for each section of a policy."""
    from pydantic import BaseModel

    from sealrun.policy import FETCHES, Policy

    top: list[str] = []
    sections: list[str] = []
    for name, field in Policy.model_fields.items():
        if name == "fetch":
            for kind, model in FETCHES.items():
                sections += ["", f'## `[[fetch]]` of `kind = "{kind}"`', "", *_HEAD]
                sections += [_row(key, value) for key, value in model.model_fields.items()]
            continue
        models = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not models:
            top.append(_row(name, field))
            continue
        repeated = models[0] is not field.annotation
        title = f"[[{name}]]" if repeated else f"[{name}]"
        sections += ["", f"## `{title}`", "", *_HEAD]
        sections += [_row(key, value) for key, value in models[0].model_fields.items()]
    return "\n".join((*_HEAD, *top, *sections))


_HEAD = ("| key | default | meaning |", "|---|---|---|")


def alarm() -> str:
    """Return a table of keys for each section of the alarm's configuration."""
    from sealrun.alarm.config import describe

    return _sections(describe())


def mirror() -> str:
    """Return a table of keys for each section of the mirror's configuration."""
    from sealrun.mirror.config import describe

    return _sections(describe())


def _sections(described: dict[str, Any]) -> str:
    lines: list[str] = []
    for heading, model in described.items():
        fields = {name: field for name, field in model.model_fields.items() if name != "type"}
        lines += ["", f"## `{heading}`", "", *_HEAD]
        lines += [_row(key, value) for key, value in fields.items()]
    return "\n".join(lines)


def _row(key: str, field: Any) -> str:  # noqa: ANN401 - pydantic's FieldInfo
    if field.is_required():
        default = "(required)"
    else:
        value = field.get_default(call_default_factory=True)
        default = "none" if value is None else f"`{json.dumps(value)}`"
    return f"| `{key}` | {default} | {field.description or ''} |"


def shapes() -> str:
    """Return the table of repository shapes, from the list that the tests try."""
    import importlib.util
    import sys
    from pathlib import Path

    file = Path(__file__).resolve().parents[1] / "tests" / "shapes" / "table.py"
    spec = importlib.util.spec_from_file_location("_shapes_table", file)
    if spec is None or spec.loader is None:
        raise KeyError(str(file))
    # A dataclass looks its module up by name while it is made.
    table = sys.modules["_shapes_table"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    rows = [(row.holds, _answer(row), row.note) for row in table.ROWS]
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join(("| the repository | answer | to know |", "|---|---|---|", *lines))


def _answer(row: Any) -> str:  # noqa: ANN401 - of a module that is loaded by its path
    if not row.status:
        return "runs"
    told = ", told by `sealrun warm`" if row.cold else ""
    return f"refused ({row.status}): “{row.says}”{told}"


PARTS: dict[str, Callable[[], str]] = {
    "alarm": alarm,
    "audit": audit,
    "commands": commands,
    "mirror": mirror,
    "policy": policy,
    "reasons": reasons,
    "shapes": shapes,
    "statuses": statuses,
}
