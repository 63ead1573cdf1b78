"""The manual, README and their neighbours say only what is so."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sealrun.errors import Status
from sealrun.policy import Policy
from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md")],
)
PAGES = [page for page in PAGES if "_build" not in page.parts]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TARGET = re.compile(r"^([a-z]+):.*##", re.MULTILINE)
#: Commands of sealrun in the text, in code spans and in code blocks.
_CALL = re.compile(r"(?:^ *\$ |^ {4,}|`|RUN=')(sealrun(?: [^`\n#>;|&']*)?)", re.MULTILINE)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The module that makes the generated parts of the reference."""
    spec = importlib.util.spec_from_file_location("_generate", DOCS / "_generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name(page: Path) -> str:
    """Return a page's path as test ids show it."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_link_of_a_page_leads_to_a_file(page: Path) -> None:
    """Every relative link leads to something that is in the repository."""
    for target in _LINK.findall(page.read_text("utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_each_page_is_in_a_table_of_contents() -> None:
    """No page of the manual is out of reach."""
    listed = {DOCS / "index.md"}
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```{toctree}\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            entries = [line for line in block.split("\n") if line and not line.startswith(":")]
            listed |= {page.parent / f"{entry}.md" for entry in entries}
    assert listed == {page for page in DOCS.rglob("*.md") if "_build" not in page.parts}


def test_the_reference_lists_every_command(generate: ModuleType) -> None:
    """Every command has a section with its help and each of its options."""
    page = generate.fill((DOCS / "reference" / "commands.md").read_text("utf-8"))
    for command, definition in generate.tree().items():
        _, heading, section = page.partition(f"\n## {command}\n")
        assert heading, command
        section = section.partition("\n## ")[0]
        for parameter in definition.params:
            if parameter.param_type_name == "option" and parameter.help:
                assert all(option in section for option in parameter.opts), parameter.opts
        assert "```console" in section, f"{command} has no example"


def test_the_reference_lists_reasons_statuses_and_policy_keys(generate: ModuleType) -> None:
    """Every code, status and key of the program stands in its table."""
    reasons, statuses, policy = generate.reasons(), generate.statuses(), generate.policy()
    assert all(f"| `{reason.value}` |" in reasons for reason in Reason)
    assert all(f"| {status.value} |" in statuses for status in Status)
    for section, field in Policy.model_fields.items():
        assert f"`{section}`" in policy or f"[{section}]" in policy
        keys: dict[str, Any] = getattr(field.annotation, "model_fields", {})
        assert all(f"| `{key}` |" in policy for key in keys)


def test_each_placeholder_names_something_that_is_generated(generate: ModuleType) -> None:
    """No placeholder is left in a page, and each part has a page."""
    found = set()
    for page in DOCS.rglob("*.md"):
        found |= set(
            re.findall(r"^<!-- generate: (\w+) -->$", page.read_text("utf-8"), re.MULTILINE)
        )
    assert found == set(generate.PARTS)


def calls() -> Iterator[Any]:
    """Yield each call of sealrun that stands in a page."""
    for page in PAGES:
        for call in dict.fromkeys(_CALL.findall(page.read_text("utf-8"))):
            yield pytest.param(call.strip(), id=f"{name(page)}: {call.strip()}")


@pytest.mark.parametrize("call", list(calls()))
def test_each_call_in_a_page_is_one_that_the_program_takes(generate: ModuleType, call: str) -> None:
    """The command exists, and so does each option that is shown before ``--``."""
    words = shlex.split(call.partition(" -- ")[0], comments=False)[1:]
    own = {"-q", "-v", "--version", "--help", "--quiet", "--verbose", "-h"}
    if not words or words[0] in own:
        return
    tree = generate.tree()
    groups = {command.split(" ")[0] for command in tree if " " in command}
    if words == [words[0]] and words[0] in groups:
        return
    full = " ".join(words[:2]) if words[0] in groups else words[0]
    assert full in tree, full
    options = {option for parameter in tree[full].params for option in parameter.opts} | own
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= options | {"--"}


def test_each_make_target_in_a_page_exists() -> None:
    """What a page tells to make can be made."""
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
    assert {"demo", "test"} <= targets
    for page in PAGES:
        told = re.findall(r"(?:`|^    |^\$ )make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE)
        assert set(told) <= targets, name(page)
