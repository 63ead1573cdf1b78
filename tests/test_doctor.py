"""The doctor: its summary, each family of checks, and what would rewrite a file here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from _git import Repo
from sealrun.doctor import Check, Grade, examine, formatters, triggers
from sealrun.doctor.machine import judge_disk, writers
from sealrun.doctor.model import LIVING_NAMED, NAMED, summarise
from sealrun.doctor.repository import hazards_of
from sealrun.doctor.watching import Limits, judge_limits
from sealrun.state import Places, free_room

UGLY = "SCALAR_LR   =  0.5\nx = {  'a':1 }\n"
NEAT = "SCALAR_LR = 0.5\n"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Places of this test alone, and a home without anybody's settings."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    root = tmp_path / "sealrun"
    return Places(root / "state", root / "data", root / "cache", root / "runtime")


def rows(places: Places, directory: Path) -> dict[str, Check]:
    """Return what the doctor finds in a directory, by name; names are unique."""
    checks = examine(places, directory).checks
    named = {check.name: check for check in checks}
    assert len(named) == len(checks)
    return named


# -- the summary ----------------------------------------------------------------------------------


def _checks(**grades: Grade) -> tuple[Check, ...]:
    names = {"engine": "engine", "workspace": "file system: workspace", "inotify": "inotify"}
    every = {"engine": Grade.OK, "workspace": Grade.OK, "inotify": Grade.OK} | grades
    return tuple(Check(names[key], grade, "") for key, grade in every.items())


def test_summary_says_who_can_be_named() -> None:
    """Whatever was found, the summary says whether writers are named; unseen, that they are not."""
    for engine in (Grade.OK, Grade.FAIL):
        for inside in (True, False):
            checks = _checks(engine=engine)
            line = summarise(checks, in_repository=inside)
            assert "writers: not named" in line
            named = (*checks, Check("writers", Grade.OK, NAMED))
            assert f"writers: {NAMED}" in summarise(named, in_repository=inside)
            assert "\n" not in line


def test_who_can_be_named_is_tried() -> None:
    """As root writers are named; where something is lacking the check says what."""
    (check,) = writers()
    assert (check.grade, check.detail) == (Grade.OK, NAMED)
    code = "from sealrun.doctor.machine import writers; print(*writers())"
    for confined, expected in (
        (("setpriv", "--bounding-set=-sys_admin"), "CAP_SYS_ADMIN"),
        (("unshare", "--net"), LIVING_NAMED),
    ):
        done = subprocess.run(
            [*confined, sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
        )
        assert expected in done.stdout


def test_summary_without_engine_claims_no_protection() -> None:
    """Without an engine nothing runs, and nothing is called protected."""
    line = summarise(_checks(engine=Grade.FAIL), in_repository=True)
    assert line.startswith("nothing can run here")
    assert "protected" not in line


def test_summary_names_gaps() -> None:
    """What cannot be watched is named as not protected."""
    line = summarise(_checks(workspace=Grade.WARN, inotify=Grade.FAIL), in_repository=True)
    assert "not protected: events on the workspace (coverage is content-only), a gapless" in line
    assert "and events" not in line.split("not protected")[0]


def test_summary_names_level_and_tier() -> None:
    """Protection level and isolation are in the line."""
    assert "level same-user, sandbox container" in summarise(_checks(), in_repository=True)


# -- the machine ----------------------------------------------------------------------------------


def test_a_disk_that_has_no_size_is_not_called_full() -> None:
    """Some file systems do not tell how much is free: /proc is one of them."""
    check = judge_disk("data", Path("/x"), free_room(Path("/proc")))
    assert check.grade is Grade.OK
    assert "does not tell" in check.detail


@pytest.mark.parametrize(
    ("free", "grade"), [(10**8, Grade.FAIL), (5 * 10**9, Grade.WARN), (10**12, Grade.OK)]
)
def test_disk_is_graded(free: int, grade: Grade) -> None:
    """Too little for a base fails, too little for torch warns."""
    assert judge_disk("data", Path("/x"), free).grade is grade


@pytest.mark.parametrize(
    ("limits", "directories", "grade", "word"),
    [
        (Limits(8192, 128, 16384), 100, Grade.OK, None),
        (Limits(8192, 128, 16384), 5000, Grade.WARN, "max_user_watches=524288"),
        (Limits(8192, 128, 16384), 9000, Grade.FAIL, "max_user_watches=524288"),
        (Limits(8192, 128, 16384), 400_000, Grade.FAIL, "max_user_watches=1600000"),
        (Limits(8192, 8, 16384), 100, Grade.WARN, "max_user_instances"),
        (Limits(8192, 128, 16), 100, Grade.WARN, "max_queued_events"),
    ],
)
def test_inotify_limits_are_compared(
    limits: Limits, directories: int, grade: Grade, word: str | None
) -> None:
    """The limits are measured against the directories, and the fix sets what is too low."""
    check = judge_limits(limits, directories)
    assert check.grade is grade
    assert (word is None) == (check.fix is None)
    if word is not None:
        assert word in (check.fix or "")


# -- git ------------------------------------------------------------------------------------------


def test_hazards_of_git_configuration() -> None:
    """Each hazardous setting is named; harmless values of the same keys are not."""
    bad = [
        ("core.fsmonitor", "/usr/bin/watch"),
        ("core.autocrlf", "input"),
        ("core.hookspath", ".husky/_"),
        ("core.sparsecheckout", "true"),
        ("filter.strip.my.clean", "sed s/0.5/0.3/"),
        ("filter.lfs.clean", "git-lfs clean -- %f"),
        ("remote.origin.promisor", "true"),
    ]
    names = [name for name, _, _ in hazards_of(bad)]
    assert names == [
        *("core.fsmonitor", "core.autocrlf", "core.hooksPath", "core.sparseCheckout"),
        *("filter", "partial clone"),
    ]
    assert "strip.my" in hazards_of(bad)[4][1]
    good = [("core.autocrlf", "true"), ("core.autocrlf", "false"), ("core.fsmonitor", "false")]
    assert hazards_of(good) == []


@pytest.mark.engine
def test_hazards_of_a_repository(places: Places, repo: Repo, tmp_path: Path) -> None:
    """Shallow history, replaced objects and index flags of a real repository are found."""
    repo.commit({"train.py": NEAT})
    repo.commit({"train.py": NEAT + "y = 1\n", "notes.txt": "n\n"})
    clone = tmp_path / "clone"
    repo.git("clone", "-q", "--depth", "1", f"file://{repo.path}", str(clone))
    shallow = Repo(clone, repo.spools)
    shallow.git("update-index", "--assume-unchanged", "train.py")
    blob, other = (shallow.git("rev-parse", f"HEAD:{p}") for p in ("train.py", "notes.txt"))
    shallow.git("replace", blob, other)
    found = rows(places, clone)
    for name in ("shallow", "replace refs", "index flags"):
        assert found[f"git configuration: {name}"].grade is Grade.WARN
    assert "train.py" in found["git configuration: index flags"].detail


@pytest.mark.engine
def test_data_mounts_of_the_policy(places: Places, repo: Repo, tmp_path: Path) -> None:
    """A data mount that is there is ok; one that is not fails with its path."""
    there = tmp_path / "corpus"
    there.mkdir()
    policy = f'[[data]]\nsource = "{there}"\n[[data]]\nsource = "/nonexistent/shards"\n'
    repo.commit({"sealrun.toml": policy})
    found = rows(places, repo.path)
    assert found[f"data: {there}"].grade is Grade.OK
    assert found["data: /nonexistent/shards"].grade is Grade.FAIL


# -- what is set up to rewrite --------------------------------------------------------------------


def test_vscode_settings_with_comments() -> None:
    """Format on save is found in settings with comments and trailing commas, per language too."""
    text = """{
      // people write these
      "editor.formatOnSave": false, /* "editor.formatOnSave": true */
      "[python]": { "editor.formatOnSave": true, "editor.defaultFormatter": "charliermarsh.ruff" },
      "editor.codeActionsOnSave": { "source.fixAll": "explicit", "source.sort": "never", },
      "url": "http://x//y",
    }"""
    found = list(triggers.of_vscode(".vscode/settings.json", text))
    assert [t.what for t in found] == ["on save: source.fixAll", "format on save for [python]"]
    assert "charliermarsh.ruff" in found[1].text


def test_unreadable_settings_are_said() -> None:
    """Settings that cannot be understood are a finding, never silence."""
    (found,) = triggers.of_vscode("s.json", "{ nonsense")
    assert "cannot be read" in found.what
    (found,) = triggers.of_agent("s.json", "[" * 10_000)
    assert "cannot be read" in found.what


def test_pre_commit_hooks_are_told_apart() -> None:
    """Fixers are named as such; other hooks are listed and not called harmless or harmful."""
    text = """repos:
    - repo: https://example.invalid/ruff
      hooks:
        - id: ruff
          args: [--fix]
        - id: "ruff-format"
        - id: check-yaml
    """
    fixers, others = triggers.of_pre_commit(".pre-commit-config.yaml", text, installed=True)
    assert fixers.what == "fixers before each commit: ruff, ruff-format"
    assert others.what.endswith("check-yaml")
    assert not others.fix


def test_agent_hooks_are_listed_without_ours() -> None:
    """Each command of an agent's hooks is shown; sealrun's own is left out."""
    hooks = {
        "PostToolUse": [
            {"matcher": "Edit", "hooks": [{"type": "command", "command": "ruff format ."}]},
            {"hooks": [{"type": "command", "command": "/opt/bin/sealrun hook record"}]},
        ]
    }
    found = list(triggers.of_agent(".claude/settings.json", json.dumps({"hooks": hooks})))
    assert [t.what for t in found] == ["PostToolUse: ruff format ."]


def test_idea_and_aider_and_package_json() -> None:
    """Other editors and tools are recognised by their own files."""
    idea = (
        '<component name="FormatOnSaveOptions">'
        '<option name="myRunOnSave" value="true" /></component>'
    )
    assert [t.what for t in triggers.of_idea("w.xml", idea)] == ["reformat code on save"]
    assert not list(triggers.of_idea("w.xml", idea.replace('"true"', '"false"')))
    assert list(triggers.of_aider(".aider.conf.yml", "lint-cmd:\n  - ruff\n"))
    package = '{"lint-staged": {"*.py": "black"}}'
    assert ["black" in t.text for t in triggers.of_package_json("package.json", package)] == [True]


# -- dry runs -------------------------------------------------------------------------------------


def test_only_configured_formatters_are_chosen() -> None:
    """A formatter is chosen for its configuration or because a hook names it, not otherwise."""

    def names(files: dict[str, str], mentions: str = "") -> list[str]:
        return [f.name for f in formatters.configured(files, mentions)]

    assert names({"pyproject.toml": "[project]\nname = 'black'\n"}) == []
    assert names({"pyproject.toml": "[tool.black]\n[tool.isort]\n"}) == ["black", "isort"]
    assert names({"sub/ruff.toml": "fix = true\n"}) == ["ruff format", "ruff check --fix"]
    assert names({}, "prettier --write") == ["prettier"]
    assert names({}, "ruff check --fix") == ["ruff format", "ruff check --fix"]
    assert names({}, "check-blackness") == []


@pytest.mark.engine
def test_formatter_that_would_rewrite_is_named(places: Places, repo: Repo) -> None:
    """The committed tree is tried, with its configuration; the workspace is left as it is."""
    repo.commit(
        {
            "pyproject.toml": "[tool.ruff.format]\nexclude = ['kept.py']\n",
            "train.py": UGLY,
            "kept.py": UGLY,
            "neat.py": NEAT,
        }
    )
    repo.write({"train.py": NEAT})
    found = rows(places, repo.path)["formatter: ruff format"]
    assert found.grade is Grade.WARN
    assert found.detail == "would rewrite 1 tracked file now: train.py"
    assert "[tool.ruff.format] exclude" in (found.fix or "")
    assert (repo.path / "train.py").read_text() == NEAT
    assert (repo.path / "kept.py").read_text() == UGLY
    assert list((places.cache / "doctor").iterdir()) == []


@pytest.mark.engine
def test_neat_tree_is_left_alone(places: Places, repo: Repo) -> None:
    """A formatter that would change nothing is ok; its program is named."""
    repo.commit({"ruff.toml": "line-length = 90\n", "train.py": NEAT})
    found = rows(places, repo.path)["formatter: ruff format"]
    assert found.grade is Grade.OK
    assert "ruff" in found.detail


@pytest.mark.engine
def test_programs_of_the_workspace_are_not_run(
    places: Places, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A formatter that lies in the workspace is not run; the row says that it was not tried."""
    mark = repo.path / "it-ran"
    repo.commit({"pyproject.toml": "[tool.black]\n", "train.py": UGLY})
    program = repo.path / "bin" / "black"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    away = repo.path.parent / "links"
    away.mkdir()
    (away / "black").symlink_to(program)
    monkeypatch.setenv("PATH", f"{program.parent}:{away}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    found = rows(places, repo.path)["formatter: black"]
    assert found.grade is Grade.SKIPPED
    assert "not tried" in found.detail
    assert not mark.exists()


@pytest.mark.engine
@pytest.mark.parametrize(
    "files",
    [
        {".prettierrc.js": "process.exit(3)"},
        {"prettier.config.mjs": ""},
        {".prettierrc": '{"plugins": ["./mine.js"]}'},
        {"package.json": '{"prettier": "@org/config"}'},
    ],
)
def test_configuration_that_is_code_is_not_run(
    places: Places,
    repo: Repo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
) -> None:
    """A formatter whose configuration is a program is named and not tried."""
    mark = tmp_path / "it-ran"
    program = tmp_path / "bin" / "prettier"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    repo.commit({**files, "page.md": "*  x\n"})
    found = rows(places, repo.path)["formatter: prettier"]
    assert found.grade is Grade.SKIPPED
    assert "is code or loads some" in found.detail
    assert not mark.exists()


@pytest.mark.engine
def test_hanging_formatter_is_ended(
    places: Places, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A formatter that takes too long is killed with its children, and the row says so."""
    program = tmp_path / "bin" / "isort"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nsleep 4321 &\nsleep 4321\n")
    program.chmod(0o755)
    monkeypatch.setattr(formatters, "_PATIENCE", 0.3)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    repo.commit({".isort.cfg": "[settings]\n", "train.py": NEAT})
    found = rows(places, repo.path)["formatter: isort"]
    assert found.grade is Grade.SKIPPED
    assert "took longer" in found.detail
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 4321" not in listed.stdout


@pytest.mark.engine
def test_triggers_are_read_from_the_working_directory(places: Places, repo: Repo) -> None:
    """Untracked settings, an executable hook and a link in their place: found, found, not read."""
    repo.commit({"train.py": NEAT})
    hook = repo.path / ".git" / "hooks" / "pre-commit"
    repo.write({".vscode/settings.json": '{"editor.formatOnSave": true}'})
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nruff format train.py\n")
    hook.chmod(0o755)
    (repo.path / ".claude").mkdir()
    (repo.path / ".claude" / "settings.json").symlink_to("/etc/passwd")
    found = rows(places, repo.path)
    details = [c.detail for n, c in found.items() if n.startswith("rewriters:")]
    assert any("format on save" in detail for detail in details)
    assert any(".git/hooks/pre-commit" in detail for detail in details)
    assert not any(".claude" in detail for detail in details)
    # The hook names a formatter, so that it is tried.
    assert found["formatter: ruff format"].grade is Grade.OK


# -- the command ----------------------------------------------------------------------------------


def _doctor(places: Places, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from sealrun.cli import main; main()", "doctor", *arguments],
        cwd=directory,
        env=os.environ | {"SEALRUN_HOME": str(places.state.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.engine
def test_outside_a_repository_rows_are_skipped(places: Places, tmp_path: Path) -> None:
    """Without a repository the machine is examined, and the other rows say why they are skipped."""
    found = rows(places, tmp_path)
    assert found["engine"].grade is Grade.OK
    for name in ("inotify", "git configuration", "data", "rewriters"):
        assert found[name].grade is Grade.SKIPPED
        assert "git repository" in found[name].detail


@pytest.mark.engine
def test_repository_without_a_commit(places: Places, repo: Repo) -> None:
    """An empty repository is a failed row with its remedy, and the other rows are there."""
    found = rows(places, repo.path)
    assert found["commit"].grade is Grade.FAIL
    assert found["git configuration"].grade is Grade.OK


@pytest.mark.engine
def test_looking_leaves_no_trace_in_the_repository(places: Places, repo: Repo) -> None:
    """The doctor gives a repository no id and changes no file of it."""
    repo.commit({"train.py": NEAT})
    before = sorted(str(p) for p in repo.path.rglob("*"))
    rows(places, repo.path)
    assert sorted(str(p) for p in repo.path.rglob("*")) == before


@pytest.mark.engine
def test_json_has_every_row(places: Places, repo: Repo) -> None:
    """The machine form carries schema, summary, level and each check; an escape is escaped."""
    repo.commit({"train.py": NEAT})
    repo.write({".claude/settings.json": '{"hooks": {"Stop": [{"command": "\\u001b[2J"}]}}'})
    done = _doctor(places, repo.path, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["schema"] == 1
    assert document["protection"] == "same-user"
    assert {"name", "status", "detail", "fix"} == set(document["checks"][0])
    people = _doctor(places, repo.path)
    assert people.stdout.splitlines()[0] == document["summary"]
    assert "\x1b" not in people.stdout


@pytest.mark.engine
def test_no_engine_is_an_exit_status(
    places: Places, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named engine that does not answer fails its row, and the command exits with 125."""
    repo.commit({"train.py": NEAT})
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    done = _doctor(places, repo.path)
    assert done.returncode == 125
    assert done.stdout.startswith("nothing can run here")
