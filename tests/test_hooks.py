"""Installing hooks, taking them out again, and what a hook makes of a payload, hostile ones too."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _cli import Cli
from _git import WHO
from _hooks import CodingAgent, places_below
from sealrun import state
from sealrun.errors import Refused, UsageError
from sealrun.integrations import claude_code, install, patch, place, recording
from sealrun.integrations import settings as json_settings
from sealrun.integrations.agents import Agent
from sealrun.ownership import intentlog, intents

if TYPE_CHECKING:
    from _git import Repo

SETTINGS = ".claude/settings.local.json"
OURS = "/sealrun/integrations/entry.py"


@pytest.fixture
def cli(repo: Repo, tmp_path: Path) -> Cli:
    """The command line in a repository, with homes of its own for every agent."""
    repo.commit({"train.py": "x = 1\n"})
    extra = {
        "CLAUDE_CONFIG_DIR": str(tmp_path / "claude"),
        "CODEX_HOME": str(tmp_path / "codex"),
        **WHO,
    }
    return Cli(repo.path, tmp_path / "home", extra)


def is_ours(command: str) -> bool:
    """Return whether a command is one of sealrun's."""
    return OURS in command


# --- settings -----------------------------------------------------------------------------------

AWKWARD = [
    "{}",
    "{}\n",
    '{ "model" : "opus" }',
    '{"hooks":{}}',
    '{"hooks":{"PostToolUse":[]}}\n',
    '{\n\t"z": 1.50e3,\n\t"a": "\\u00e9é",\n\t"hooks": {\n\t}\n}\n',
    '{\r\n    "permissions": {"allow": ["Bash(ls:*)"]},\r\n    "hooks": {\r\n        "Stop": []\r\n    }\r\n}\r\n',
    (
        '{"hooks": {"PostToolUse": [{"matcher": "Edit", "hooks": [{"type": "command", '
        '"command": "black ."}]}], "Stop": [{"hooks": []}]}, "b": [1, 2,3], "a": null}'
    ),
    '{\n  "hooks": {\n    "PreToolUse": [\n      {"matcher": "Bash", "hooks": []}\n    ]\n  },\n  "x": "}"\n}',
]


@pytest.fixture
def file(repo: Repo) -> Path:
    """The settings file of an agent in a repository; not there yet."""
    (repo.path / ".claude").mkdir()
    return repo.path / SETTINGS


@pytest.mark.parametrize("text", AWKWARD)
def test_settings_keep_everything_else(repo: Repo, file: Path, text: str) -> None:
    """Installing adds our entries to the JSON and nothing else; uninstalling gives back the bytes."""
    places = places_below(repo.path.parent)
    file.write_bytes(text.encode())
    file.chmod(0o640)
    assert install.install_settings(Agent.CLAUDE_CODE, places, repo.path) == (file, True)
    installed = file.read_text()
    document, before = json.loads(installed), json.loads(text)
    assert [k for k in document if k != "hooks"] == [k for k in before if k != "hooks"]
    for event, groups in before.get("hooks", {}).items():
        assert document["hooks"][event][: len(groups)] == groups
    events = [event for event, command in json_settings.commands(installed) if is_ours(command)]
    assert sorted(events) == ["PostToolUse", "PostToolUseFailure", "PreToolUse"]
    assert file.stat().st_mode & 0o777 == 0o640
    assert install.install_settings(Agent.CLAUDE_CODE, places, repo.path) == (file, False)
    assert file.read_text() == installed
    assert install.uninstall_settings(Agent.CLAUDE_CODE, places, repo.path) == (file, True)
    assert file.read_bytes() == text.encode()


@pytest.mark.parametrize("text", AWKWARD)
def test_uninstalling_after_a_change_takes_out_our_entries_alone(
    repo: Repo, file: Path, text: str
) -> None:
    """Where somebody changed the file meanwhile, their change stays, and so does all the rest."""
    places = places_below(repo.path.parent)
    file.write_bytes(text.encode())
    install.install_settings(Agent.CLAUDE_CODE, places, repo.path)
    document = json.loads(file.read_text())
    document["theirs"] = 1
    document["hooks"]["PreToolUse"].append({"matcher": "X", "hooks": []})
    document["hooks"]["PostToolUse"][-1]["hooks"].append({"type": "command", "command": "mine"})
    file.write_text(json.dumps(document, indent=1))
    install.uninstall_settings(Agent.CLAUDE_CODE, places, repo.path)
    expected = json.loads(text)
    expected["theirs"] = 1
    hooks = expected.setdefault("hooks", {})
    hooks.setdefault("PreToolUse", []).append({"matcher": "X", "hooks": []})
    left = {"matcher": install._CHANGING, "hooks": [{"type": "command", "command": "mine"}]}
    hooks.setdefault("PostToolUse", []).append(left)
    assert json.loads(file.read_text()) == expected


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
GROUPS = st.lists(
    st.fixed_dictionaries(
        {"hooks": st.lists(st.fixed_dictionaries({"command": st.text(max_size=9)}), max_size=2)}
    ),
    max_size=2,
)
HOOKS = st.dictionaries(st.sampled_from(["PreToolUse", "PostToolUse", "Stop", 'é"\\']), GROUPS)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(st.text(), JSON, max_size=4),
    st.none() | HOOKS,
    st.sampled_from([None, 0, 1, 4, "\t"]),
)
def test_whatever_the_settings_are_splicing_keeps_them(
    others: dict[str, Any], hooks: dict[str, Any] | None, indent: int | str | None
) -> None:
    """For any settings: parsed, only our entries are new; taken out, the text is as it was."""
    before = {k: v for k, v in others.items() if k != "hooks"}
    if hooks is not None:
        before["hooks"] = hooks
    text = json.dumps(before, indent=indent)
    wanted = install.wanted_entries(Agent.CLAUDE_CODE, places_below(Path("/nowhere")))
    made = json_settings.made_by(text, wanted)
    after = json_settings.insert(text, wanted)
    json_settings.check(after, "it")
    document = json.loads(after)
    added = document.pop("hooks")
    assert document == {k: v for k, v in before.items() if k != "hooks"}
    for event, groups in (hooks or {}).items():
        ours = wanted.get(event, [])
        assert added[event] == groups + ours
    removed = json_settings.remove(after, is_ours, made)
    assert json.loads(removed) == before
    assert "".join(removed.split()) == "".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"// settings\n{}",
        b"[]",
        b'{"hooks": []}',
        b'{"hooks": {"PreToolUse": {}}}',
        b'{"hooks": {"PreToolUse": ["x"]}}',
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a": ' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_not_valid_is_never_touched(repo: Repo, file: Path, text: bytes) -> None:
    """A settings file that is not valid JSON with hooks as documented stays, byte for byte."""
    places = places_below(repo.path.parent)
    file.write_bytes(text)
    for act in (install.install_settings, install.uninstall_settings):
        with pytest.raises(json_settings.SettingsError) as caught:
            act(Agent.CLAUDE_CODE, places, repo.path)
        assert str(file) in caught.value.message
    assert install.status_settings(Agent.CLAUDE_CODE, places, repo.path).state == "unreadable"
    assert file.read_bytes() == text
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_new_file_and_its_directory_go_again(cli: Cli) -> None:
    """Where there were no settings there are none afterwards; a neighbour stays."""
    directory = cli.directory / ".claude"
    done = cli("hook", "install", "claude-code")
    assert "git does not ignore .claude/settings.local.json" in done.stderr
    cli("hook", "uninstall", "claude-code")
    assert not directory.exists()
    cli("hook", "install", "claude-code")
    (directory / "CLAUDE.md").write_text("mine")
    cli("hook", "uninstall", "claude-code")
    assert [p.name for p in directory.iterdir()] == ["CLAUDE.md"]
    assert "were not in" in cli("hook", "uninstall", "claude-code").stderr


def test_the_users_own_settings_are_found_and_links_kept(cli: Cli, tmp_path: Path) -> None:
    """--global uses the user's directories; settings that are a link are changed where they are."""
    real = tmp_path / "dotfiles.json"
    real.write_text('{"model": "opus"}\n')
    (tmp_path / "claude").mkdir()
    (tmp_path / "claude/settings.json").symlink_to(real)
    cli("hook", "install", "claude-code", "--global")
    cli("hook", "install", "codex", "--global")
    assert (tmp_path / "claude/settings.json").is_symlink()
    assert OURS in real.read_text()
    codex = json.loads((tmp_path / "codex/hooks.json").read_text())
    assert list(codex) == ["hooks"]
    assert list(codex["hooks"]) == ["PreToolUse", "PostToolUse"]
    states = {(row["agent"], row["state"]) for row in cli.json("hook", "status")["hooks"]}
    assert ("claude-code", "installed") in states
    assert ("codex", "installed") in states
    cli("hook", "uninstall", "claude-code", "--global")
    cli("hook", "uninstall", "codex", "--global")
    assert real.read_text() == '{"model": "opus"}\n'
    assert not (tmp_path / "codex").exists()


def test_committed_settings_are_refused(cli: Cli) -> None:
    """A settings file that is part of the commit is not changed."""
    file = cli.directory / SETTINGS
    file.parent.mkdir()
    file.write_text("{}\n")
    subprocess.run(["git", "add", "-f", SETTINGS], cwd=cli.directory, check=True)
    cli("hook", "install", "claude-code", status=121)
    assert file.read_text() == "{}\n"


def test_an_older_sealrun_is_replaced_and_the_first_bytes_come_back(cli: Cli) -> None:
    """Entries of another installation count as ours: replaced by install, removed by uninstall."""
    file = cli.directory / SETTINGS
    file.parent.mkdir()
    file.write_text('{"a": 1}')
    old = f"/usr/bin/python3 -I -S /old{OURS} claude-code /old 2>/dev/null || :"
    handler = {"type": "command", "command": old}
    file.write_text(
        json.dumps({"a": 1, "hooks": {"PreToolUse": [{"matcher": "B", "hooks": [handler]}]}})
    )
    assert cli.json("hook", "status")["hooks"][0]["state"] == "outdated"
    cli("hook", "install", "claude-code")
    assert "/old" not in file.read_text()
    cli("hook", "uninstall", "claude-code")
    assert json.loads(file.read_text()) == {"a": 1, "hooks": {"PreToolUse": []}}


# --- git ----------------------------------------------------------------------------------------


def commit(repo: Repo, files: dict[str, str]) -> None:
    """Commit as the loop does, with the hooks running."""
    repo.commit(files)


def hook(repo: Repo, name: str, text: str, mode: int = 0o755) -> Path:
    """Write a git hook."""
    file = repo.path / ".git/hooks" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


SHELL_HOOK = '#!/usr/bin/env bash\nset -eu\nread -r first || true\necho "$0|$*|${BASH_VERSION:+bash}" >> "${0%/*}/seen"\n'
PYTHON_HOOK = f"#!{sys.executable}\nimport sys\nopen('.git/hooks/seen', 'a').write(repr(sys.argv[1:]) + '\\n')\n"


def test_git_hooks_without_others(cli: Cli, repo: Repo) -> None:
    """Our hooks record a commit, and leave nothing behind when they go."""
    directory = repo.path / ".git/hooks"
    before = sorted(p.name for p in directory.iterdir()) if directory.exists() else []
    cli("hook", "install", "git")
    commit(repo, {"train.py": "x = 2\n"})
    log = intents.read(cli.places.repository(_id(repo)), repo.path)
    staged, committed = log.events
    assert isinstance(staged, intents.Staged)
    assert isinstance(committed, intents.Committed)
    assert log.content(staged.index[b"train.py"]) == b"x = 2\n"
    assert staged.git == committed.git
    assert committed.commit == repo.git("rev-parse", "HEAD")
    assert {r["state"] for r in cli.json("hook", "status")["hooks"] if r["agent"] == "git"} == {
        "installed"
    }
    cli("hook", "uninstall", "git")
    assert sorted(p.name for p in directory.iterdir()) == before


def _id(repo: Repo) -> str:
    known = state.repository_id(repo.find().common_dir, create=False)
    assert known is not None
    return known


@pytest.mark.parametrize(
    ("text", "seen"),
    [(SHELL_HOOK, ".git/hooks/pre-commit||bash\n"), (PYTHON_HOOK, "[]\n")],
    ids=["shell", "python"],
)
def test_a_hook_that_was_there_runs_as_before(cli: Cli, repo: Repo, text: str, seen: str) -> None:
    """It sees its own name and arguments, and comes back with its bytes, mode and time."""
    file = hook(repo, "pre-commit", text)
    before = file.stat()
    cli("hook", "install", "git")
    cli("hook", "install", "git")
    commit(repo, {"train.py": "x = 2\n"})
    assert (file.parent / "seen").read_text() == seen
    cli("hook", "uninstall", "git")
    after = file.stat()
    assert file.read_text() == text
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert not (file.parent / "post-commit").exists()


def test_a_hook_that_was_there_still_decides(cli: Cli, repo: Repo) -> None:
    """Its failure fails the commit with its words; a hook that git would not run is not run."""
    hook(repo, "pre-commit", "#!/bin/sh\necho no >&2\nexit 7\n")
    cli("hook", "install", "git")
    repo.write({"train.py": "x = 2\n"})
    done = subprocess.run(
        ["git", "commit", "-am", "x"],
        cwd=repo.path,
        env=os.environ | WHO,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == b"no\n"
    cli("hook", "uninstall", "git")
    hook(repo, "pre-commit", "#!/bin/sh\nexit 7\n", mode=0o644)
    cli("hook", "install", "git")
    commit(repo, {"train.py": "x = 3\n"})


def test_a_hook_that_finds_its_neighbours_by_its_name(cli: Cli, repo: Repo) -> None:
    """A hook in the manner of husky, in an ignored core.hooksPath, works inside ours."""
    repo.git("config", "core.hooksPath", ".husky/_")
    repo.write(
        {
            ".husky/_/.gitignore": "*",
            ".husky/_/pre-commit": '#!/usr/bin/env sh\n. "${0%/*}/h"\n',
            ".husky/_/h": 'echo "$(basename -- "$0")" > .git/seen\nexit 0\n',
        }
    )
    (repo.path / ".husky/_/pre-commit").chmod(0o755)
    cli("hook", "install", "git")
    commit(repo, {"train.py": "x = 2\n"})
    assert (repo.path / ".git/seen").read_text() == "pre-commit\n"
    log = intents.read(cli.places.repository(_id(repo)), repo.path)
    assert [type(event).__name__ for event in log.events] == ["Staged", "Staged", "Committed"]
    assert repo.git("status", "--porcelain") == ""


def test_hooks_that_are_not_this_repositorys_alone_are_refused(
    cli: Cli, repo: Repo, tmp_path: Path
) -> None:
    """Committed hooks, and those of every repository, stay as they are."""
    repo.commit({".githooks/pre-commit": "#!/bin/sh\n"})
    repo.git("config", "core.hooksPath", ".githooks")
    assert "files of the commit" in cli("hook", "install", "git", status=121).stderr
    assert repo.git("status", "--porcelain") == ""
    shared = tmp_path / "shared"
    shared.mkdir()
    repo.git("config", "core.hooksPath", str(shared))
    assert "other repositories share" in cli("hook", "install", "git", status=121).stderr
    assert list(shared.iterdir()) == []


def test_a_hook_of_ours_that_was_replaced_is_left_alone(cli: Cli, repo: Repo) -> None:
    """Where something took our hook's place nothing is overwritten, and status says so."""
    file = hook(repo, "pre-commit", "#!/bin/sh\n# first\n")
    cli("hook", "install", "git")
    file.write_text("#!/bin/sh\n# second\n")
    rows = {Path(r["file"]).name: r["state"] for r in cli.json("hook", "status")["hooks"]}
    assert (rows["pre-commit"], rows["post-commit"]) == ("replaced", "installed")
    cli("hook", "install", "git", status=121)
    cli("hook", "uninstall", "git")
    assert file.read_text() == "#!/bin/sh\n# second\n"
    assert (file.parent / "pre-commit.before-sealrun").read_text() == "#!/bin/sh\n# first\n"


def test_the_pre_commit_framework_installed_after_us(cli: Cli, repo: Repo) -> None:
    """It moves our hook aside and runs it first: that records, and goes again with uninstall."""
    cli("hook", "install", "git")
    file = repo.path / ".git/hooks/pre-commit"
    legacy = file.rename(file.with_name("pre-commit.legacy"))
    theirs = '#!/bin/sh\n"$0.legacy" || exit 1\ntrue\n'
    hook(repo, "pre-commit", theirs)
    commit(repo, {"train.py": "x = 2\n"})
    events = intents.read(cli.places.repository(_id(repo)), repo.path).events
    staged, committed = events
    assert isinstance(staged, intents.Staged)
    assert isinstance(committed, intents.Committed)
    assert staged.git == committed.git
    cli("hook", "uninstall", "git")
    assert not legacy.exists()
    assert file.read_text() == theirs


def test_a_commit_succeeds_without_sealrun(cli: Cli, repo: Repo) -> None:
    """Hooks that outlive an installation of sealrun fail and print nothing."""
    cli("hook", "install", "git")
    for name in ("pre-commit", "post-commit"):
        file = repo.path / ".git/hooks" / name
        file.write_text(file.read_text().replace(OURS, "/gone.py"))
    repo.write({"train.py": "x = 2\n"})
    done = subprocess.run(
        ["git", "commit", "-qam", "x"],
        cwd=repo.path,
        env=os.environ | WHO,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# --- payloads -----------------------------------------------------------------------------------


def run_hook(
    places: state.Places, payload: bytes, directory: Path, who: str = "claude-code"
) -> None:
    """Run the hook process on raw bytes; it must be silent and succeed."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(install.ENTRY), who, str(places.state)],
        cwd=directory,
        input=payload,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def written(path: str | None, content: object = "y\n", **more: object) -> bytes:
    """Return the payload of a Write."""
    payload = {
        "session_id": "s",
        "hook_event_name": "PostToolUse",
        "tool_name": "Write",
        "tool_use_id": "u",
        "tool_input": {"file_path": path, "content": content},
        "tool_response": {"type": "create", "originalFile": None},
        **more,
    }
    return json.dumps(payload).encode()


@pytest.fixture
def known(repo: Repo) -> CodingAgent:
    """A repository that sealrun knows."""
    repo.commit({"train.py": "x = 1\n"})
    return CodingAgent.start(repo)


HOSTILE = [
    b"",
    b"\0",
    b"nonsense",
    b"[]",
    b"null",
    b"\xff\xfe\x00",
    b"[" * 1_000_000,
    b'{"a":' * 300_000,
    b'{"hook_event_name": "PostToolUse", "tool_name": "Write"}',
    b'{"hook_event_name": 1, "tool_name": [], "tool_input": "x", "cwd": {}}',
    written(None),
    written(""),
    written("a\0b"),
    written("/etc/passwd"),
    written("../outside"),
    written(".git/config"),
    written(".git/hooks/pre-commit"),
    written("sub/../.git/config"),
    written("x" * 100_000),
    written("\ud800"),
    written("a", tool_name="Read"),
    written("a", hook_event_name="PreToolUse"),
]


def test_a_hostile_payload_records_nothing(known: CodingAgent) -> None:
    """What is malformed, or leads out of the workspace, or into git, is not recorded."""
    for payload in HOSTILE:
        for who in ("claude-code", "codex", "nobody"):
            run_hook(known.places, payload, known.repo.path, who)
        assert not known.log.events, payload[:200]


def test_a_payload_above_the_limit_leaves_a_mark(known: CodingAgent) -> None:
    """What is too large to read is not recorded; what it wrote is unknown, not foreign."""
    known.write("train.py", "x = 2\n")
    size = recording.PAYLOAD_LIMIT + 1
    run_hook(known.places, written("train.py", "x" * size), known.repo.path)
    known.repo.commit({"train.py": "x" * size})
    assert [type(event).__name__ for event in known.log.events] == ["Intent", "Shell"]
    assert known.compare()["train.py"].kind is intents.Agreement.UNKNOWN


def test_a_link_is_followed_as_the_editor_follows_it(known: CodingAgent, tmp_path: Path) -> None:
    """A write through a link is the target's; a link that leads out of the workspace is nobody's."""
    (tmp_path / "outside").mkdir()
    (known.repo.path / "out").symlink_to(tmp_path / "outside")
    (known.repo.path / "alias.py").symlink_to("train.py")
    (tmp_path / "way").symlink_to(known.repo.path)
    run_hook(known.places, written("out/secret"), known.repo.path)
    run_hook(known.places, written("alias.py"), known.repo.path)
    run_hook(known.places, written(str(tmp_path / "way/train.py")), known.repo.path)
    assert [e.path for e in known.log.events if isinstance(e, intents.Intent)] == [b"train.py"] * 2
    (known.repo.path / "loop").symlink_to("loop")
    run_hook(known.places, written("loop/x"), known.repo.path)


def test_an_observed_file_that_became_a_link_or_a_pipe_is_not_read(known: CodingAgent) -> None:
    """Looking at edited files when a shell begins follows no link and waits for no pipe."""
    known.write("a", "a\n")
    known.write("b", "b\n")
    known.write("c", "c\n")
    (known.repo.path / "a").unlink()
    (known.repo.path / "a").symlink_to("/etc/hostname")
    (known.repo.path / "b").unlink()
    os.mkfifo(known.repo.path / "b")
    (known.repo.path / "c").unlink()
    known.shell("true")
    seen = [event.seen for event in known.log.events if isinstance(event, intents.Shell)]
    assert seen == [{b"c": intentlog.ABSENT}] * 2


def test_the_alarm_ends_a_hook_that_would_wait(known: CodingAgent) -> None:
    """A payload that never ends does not keep the agent waiting for ever."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(install.ENTRY), "claude-code", str(known.places.state)],
        stdin=subprocess.PIPE,
    )
    assert process.wait(timeout=120) == 0
    assert process.stdin is not None
    process.stdin.close()


def test_a_full_or_forbidden_state_is_silent(known: CodingAgent) -> None:
    """Where nothing can be written the hook still succeeds, silently."""
    run_hook(state.Places(*[Path("/dev/full/sealrun")] * 4), written("train.py"), known.repo.path)
    run_hook(state.Places(*[Path("/proc/1/sealrun")] * 4), written("train.py"), known.repo.path)
    assert not known.log.events


def test_a_repository_that_sealrun_does_not_know_is_left_alone(repo: Repo, tmp_path: Path) -> None:
    """Without an id nothing is recorded, neither state nor id."""
    repo.commit({"train.py": "x = 1\n"})
    places = places_below(tmp_path / "home")
    run_hook(places, written(str(repo.path / "train.py")), repo.path)
    assert not (tmp_path / "home").exists()
    assert not (repo.path / ".git/sealrun").exists()


def test_the_hook_and_the_program_agree_on_where_things_are(tmp_path: Path) -> None:
    """The bare process finds the same directories as ``state``."""
    places = places_below(tmp_path)
    found = intentlog.directory_of(str(places.state), "0" * 32)
    assert Path(found) == places.repository("0" * 32) / intentlog.DIRECTORY
    assert place.ID_FILE == state.ID_FILE


def test_the_record_is_private(known: CodingAgent) -> None:
    """Only the owner can read what agents wrote."""
    known.write("train.py", "x = 2\n")
    root = known.places.state
    assert {p.stat().st_mode & 0o077 for p in root.rglob("*")} == {0}


def test_the_hook_imports_nothing_slow(known: CodingAgent) -> None:
    """An agent waits for its hook: what costs milliseconds to import is not imported."""
    code = (
        "import sys, os\n"
        "sys.argv = sys.argv[1:]\n"
        "os._exit = lambda status: print(*sorted(sys.modules))\n"
        "names = {'__name__': '__main__', '__file__': sys.argv[0]}\n"
        "exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'), names)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            code,
            str(install.ENTRY),
            "claude-code",
            str(known.places.state),
        ],
        input=written(str(known.repo.path / "train.py")),
        capture_output=True,
        check=True,
    )
    loaded = set(done.stdout.decode().split())
    assert "sealrun.integrations.recording" in loaded
    slow = {
        "typing",
        "dataclasses",
        "pathlib",
        "subprocess",
        "inspect",
        "shutil",
        "tempfile",
        "logging",
    }
    assert not loaded & slow
    third = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert {name for name in third if not name.startswith("_")} == {"sealrun"}
    assert known.log.events


# --- what a payload means -----------------------------------------------------------------------


def edited(before: str | None, *steps: tuple[str, str], **response: Any) -> str | None:  # noqa: ANN401
    """Return what edits of a file mean."""
    rows = [{"old_string": old, "new_string": new} for old, new in steps]
    tool = "Edit" if len(rows) == 1 else "MultiEdit"
    given = {"file_path": "/f", **rows[0]} if tool == "Edit" else {"file_path": "/f", "edits": rows}
    edit = claude_code.edit_of(tool, given, {"originalFile": before, **response})
    assert edit is not None
    return edit.intended


def hunk(*lines: str) -> dict[str, Any]:
    """Return a hunk of a ``structuredPatch``."""
    return {"structuredPatch": [{"lines": list(lines)}]}


def test_edits_mean_the_original_with_the_replacement() -> None:
    """One replacement, several in a row, and a new file."""
    assert edited("a b\n", ("a", "c")) == "c b\n"
    assert edited("a b\n", ("a", "b"), ("b b", "x")) == "x\n"
    assert edited(None, ("", "new\n")) == "new\n"
    assert edited("", ("", "new\n")) == "new\n"
    assert edited("a\r\nb\r\n", ("a\nb", "c")) == "c\n"


def test_edits_that_the_payload_does_not_determine_are_unknown() -> None:
    """No original, no old string, more than one, a half-read list, a human's change."""
    assert edited(None, ("a", "b")) is None
    assert edited("x\n", ("a", "b")) is None
    assert edited("a a\n", ("a", "b")) is None
    assert edited("x\n", ("", "b")) is None
    assert edited("a\n", ("a", "b"), userModified=True) is None
    assert claude_code.edit_of("MultiEdit", {"file_path": "/f", "edits": [1]}, {}).intended is None  # type: ignore[union-attr]
    notebook = claude_code.edit_of("NotebookEdit", {"notebook_path": "/f", "new_source": "x"}, {})
    assert notebook is not None
    assert (notebook.path, notebook.intended) == ("/f", None)


def test_the_payloads_own_patch_decides_and_must_agree() -> None:
    """Whether a deleted line took its line feed along is told by the patch's count of lines."""
    text = "a\nb\nc\n"
    assert edited(text, ("b", "")) is None
    assert edited(text, ("b", ""), **hunk(" a", "-b", "+", " c")) == "a\n\nc\n"
    assert edited(text, ("b", ""), **hunk(" a", "-b", " c")) == "a\nc\n"
    assert edited(text, ("b", "x"), **hunk(" a", "-b", "+x", "+y", " c")) is None
    assert edited("a", ("a", "a\n"), **hunk("-a", "\\ No newline at end of file", "+a")) == "a\n"


def codex_patch(name: str, before: str, after: str) -> str:
    """Return the patch that a model would write for a change."""
    old, new = before.split("\n")[:-1], after.split("\n")[:-1]
    lines = ["*** Begin Patch", f"*** Update File: {name}"]
    diff = list(difflib.unified_diff(old, new, lineterm="", n=3))[2:]
    lines += ["@@" if line.startswith("@@") else line for line in diff]
    return "\n".join([*lines, "*** End Patch"])


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_patch_gives_what_it_was_made_from(data: st.DataObject) -> None:
    """For any two texts with distinct lines, the patch between them leads from one to the other."""
    names = st.text("abcdefgh é", min_size=1, max_size=6).map(str.strip).filter(bool)
    lines = data.draw(st.lists(names, min_size=1, max_size=20, unique=True))
    kept = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    after = [line if keep else f"+{line}" for line, keep in zip(lines, kept, strict=True)]
    before, wanted = "\n".join(lines) + "\n", "\n".join(after) + "\n"
    if before == wanted:
        return
    (section,) = patch.parse(codex_patch("f", before, wanted))
    assert patch.apply(section.hunks, before) == wanted


def test_a_patch_is_read_as_leniently_as_the_tool_reads_it() -> None:
    """Heredoc marks, loose context, typographic characters, an end of file, several hunks."""

    def apply(body: str, before: str) -> str:
        (section,) = patch.parse(f"*** Begin Patch\n*** Update File: f\n{body}\n*** End Patch")
        return patch.apply(section.hunks, before)

    assert (
        apply("@@ def f():\n-  a = 1\n+  a = 2", "a = 1\ndef f():\n  a = 1\n")
        == "a = 1\ndef f():\n  a = 2\n"
    )
    assert apply("-a\n+b", "a  \nc\n") == "b\nc\n"
    assert apply("-it's\n+x", "it\u2019s\n") == "x\n"
    assert apply("@@\n+end", "a\nb") == "a\nb\nend\n"
    assert apply("@@\n-a\n+x\n*** End of File", "a\nb\na\n") == "a\nb\nx\n"
    assert apply("@@\n-a\n+x\n@@\n-c\n+y", "a\nb\nc\n") == "x\nb\ny\n"
    (section,) = patch.parse("<<'EOF'\n*** Begin Patch\n*** Add File: n\n+a\n+\n*** End Patch\nEOF")
    assert (section.action, section.content) == ("add", "a\n\n")
    for body in ("-no\n+x", "@@ nowhere\n-a\n+x"):
        with pytest.raises(patch.PatchError):
            apply(body, "a\n")


@pytest.mark.parametrize(
    "text",
    ["", "x", "*** Begin Patch", "*** Begin Patch\n*** End", "*** Begin Patch\nx\n*** End Patch",
     "*** Begin Patch\n*** Update File: f\n*** End Patch",
     "*** Begin Patch\n*** Update File: f\n@@\n*** End Patch"],
)  # fmt: skip
def test_what_is_no_patch_is_refused(text: str) -> None:
    """A malformed patch means nothing."""
    with pytest.raises(patch.PatchError):
        patch.parse(text)


def test_a_patch_that_is_too_much_work_is_refused() -> None:
    """A patch made to be slow against a file made to be slow raises instead."""
    before = "a\n" * 20_000
    body = "\n".join(["@@", *["-a"] * 5000, "-b", "+c"])
    (section,) = patch.parse(f"*** Begin Patch\n*** Update File: f\n{body}\n*** End Patch")
    with pytest.raises(patch.PatchError):
        patch.apply(section.hunks, before)


def test_the_command_is_harmless_without_sealrun(tmp_path: Path) -> None:
    """An entry that outlives sealrun succeeds: Python's own status 2 would block the agent's tool."""
    wanted = install.wanted_entries(Agent.CLAUDE_CODE, places_below(tmp_path / "a b"))
    command = wanted["PreToolUse"][0]["hooks"][0]["command"]
    gone = command.replace(OURS, "/gone.py")
    done = subprocess.run(["/bin/sh", "-c", gone], input=b"{}", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert str(tmp_path / "a b") in "".join(shlex.split(command))


def test_a_refusal_is_an_error_of_ours(repo: Repo, tmp_path: Path) -> None:
    """A file that changes between reading and writing is left, and the command says so."""
    repo.commit({"train.py": "x = 1\n"})
    file = repo.path / SETTINGS
    file.parent.mkdir()
    file.write_text("{}")
    with pytest.raises(UsageError, match="just now"):
        install._replace(file, b"other", b"{}\n")
    assert file.read_text() == "{}"
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    repo.git("add", "-f", SETTINGS)
    with pytest.raises(Refused):
        install.install_settings(Agent.CLAUDE_CODE, places_below(tmp_path), repo.path)
