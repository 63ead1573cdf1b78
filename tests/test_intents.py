"""A commit compared with what the agent meant: real hooks, real git, real rewriters.

``SCALAR_LR = 0.5`` is what the agent writes; a rewriter turns it into 0.3, as in the story that sealrun
exists for.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _git import Repo
from _hooks import CodingAgent
from sealrun.integrations.agents import Agent
from sealrun.integrations.install import install_git
from sealrun.ownership import intentlog, intents
from sealrun.ownership.intents import Agreement

if TYPE_CHECKING:
    from pathlib import Path

    from sealrun.tree import CommittedTree

START = "import math\n\nSCALAR_LR = 0.1\nDEPTH = 8\n"
MEANT = "SCALAR_LR = 0.5"
MATCH, DIFFERS, UNKNOWN = Agreement.MATCH, Agreement.DIFFERS, Agreement.UNKNOWN
COMMIT = "git add -A && git commit -q -m idea"


@pytest.fixture
def agent(repo: Repo) -> CodingAgent:
    """An agent with hooks, in a repository with one commit."""
    repo.commit({"train.py": START, "lib/model.py": "x = 1\n"})
    return CodingAgent.start(repo)


def rewriter(directory: Path) -> str:
    """Return a command that turns 0.5 into 0.3 in train.py, as a careless fixer does."""
    script = directory / "fixer.py"
    script.write_text(
        textwrap.dedent(
            """\
            import pathlib
            file = pathlib.Path("train.py")
            file.write_text(file.read_text().replace("LR = 0.5", "LR = 0.3"))
            """
        )
    )
    return f"{sys.executable} {script}"


def install_fixer(agent: CodingAgent, hook: str) -> None:
    """Install a pre-commit hook, and ours around it."""
    file = agent.repo.path / ".git/hooks/pre-commit"
    file.parent.mkdir(exist_ok=True)
    file.write_text(hook)
    file.chmod(0o755)
    install_git(agent.places, agent.repo.find())


def test_a_commit_of_what_was_meant_matches(agent: CodingAgent) -> None:
    """An edit and a new file that are committed as they were meant are matches."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.write("lib/new.py", "y = 2\n")
    agent.shell(COMMIT)
    found = agent.compare()
    assert {name: match.kind for name, match in found.items()} == {
        "train.py": MATCH,
        "lib/new.py": MATCH,
    }
    assert found["train.py"].why == "as claude-code's Edit meant it"
    intent = found["train.py"].intent
    assert intent is not None
    assert (intent.tool, intent.agent_session, intent.path) == ("Edit", "a-session", b"train.py")


def test_a_formatter_hook_of_the_agent_itself_is_the_foreign_part(
    agent: CodingAgent, tmp_path: Path
) -> None:
    """A rewriter that the agent's own hook starts, racing ours, does not get its bytes past us."""
    agent.others.append(("PostToolUse", "Edit|Write", f"cat >/dev/null; {rewriter(tmp_path)}"))
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    assert "0.3" in (agent.repo.path / "train.py").read_text()
    agent.shell(COMMIT)
    match = agent.compare()["train.py"]
    assert match.kind is DIFFERS
    assert "-SCALAR_LR = 0.5" in match.foreign
    assert "+SCALAR_LR = 0.3" in match.foreign
    assert not [line for line in match.foreign if "0.1" in line]


def test_a_rewriter_that_races_the_hook_never_becomes_the_intent(
    agent: CodingAgent, tmp_path: Path
) -> None:
    """However early another process rewrites the file, the intent holds the agent's bytes."""
    script = tmp_path / "race.py"
    script.write_text(
        textwrap.dedent(
            """\
            import pathlib, sys
            file = pathlib.Path("train.py")
            print(flush=True)
            while True:
                text = file.read_text()
                if "LR = 0.5" in text:
                    file.write_text(text.replace("LR = 0.5", "LR = 0.3"))
            """
        )
    )
    racing = subprocess.Popen(
        [sys.executable, str(script)], cwd=agent.repo.path, stdout=subprocess.PIPE
    )
    try:
        assert racing.stdout is not None
        racing.stdout.readline()
        agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    finally:
        racing.kill()
        racing.wait()
    log = agent.log
    (intent,) = (event for event in log.events if isinstance(event, intents.Intent))
    assert log.content(intent.intended or "") == START.replace("LR = 0.1", "LR = 0.5").encode()
    text = (agent.repo.path / "train.py").read_text()
    agent.repo.write({"train.py": text.replace("LR = 0.5", "LR = 0.3")})
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is DIFFERS


def test_a_fixer_that_adds_what_it_rewrote_is_found_inside_the_commit(
    agent: CodingAgent, tmp_path: Path
) -> None:
    """A pre-commit hook that rewrites and adds leaves a clean status; the commit still differs."""
    install_fixer(agent, f"#!/bin/sh\n{rewriter(tmp_path)}\ngit add -u\n")
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell(COMMIT)
    assert agent.repo.git("status", "--porcelain") == ""
    match = agent.compare()["train.py"]
    assert match.kind is DIFFERS
    assert match.why == "a git hook changed it in the commit's own making"
    assert "+SCALAR_LR = 0.3" in match.foreign


def test_a_fixer_that_fails_the_first_commit_is_found_in_the_second(
    agent: CodingAgent, tmp_path: Path
) -> None:
    """Fixers of the pre-commit framework rewrite and fail; the agent adds and commits again."""
    install_fixer(agent, f"#!/bin/sh\n{rewriter(tmp_path)}\ngit diff --quiet || exit 1\n")
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell(COMMIT, status=1)
    agent.shell(COMMIT)
    match = agent.compare()["train.py"]
    assert match.kind is DIFFERS
    assert "+SCALAR_LR = 0.3" in match.foreign


def test_a_fixer_of_which_nothing_is_committed_is_no_matter(
    agent: CodingAgent, tmp_path: Path
) -> None:
    """A fixer that changes the workspace alone, after staging, is not in the commit."""
    install_fixer(agent, f"#!/bin/sh\n{rewriter(tmp_path)}\n")
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is MATCH


def test_without_git_hooks_a_fixer_in_a_shell_command_is_unknown(
    agent: CodingAgent, tmp_path: Path
) -> None:
    """What changes while a shell command runs may be the agent's own: not a match, not foreign."""
    hook = agent.repo.path / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{rewriter(tmp_path)}\ngit add -u\n")
    hook.chmod(0o755)
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is UNKNOWN


def test_an_edit_by_the_shell_is_unknown_and_never_a_match(agent: CodingAgent) -> None:
    """The shell carries no bytes: neither a first edit by it nor a later one can be judged."""
    agent.shell("sed -i s/0.1/0.5/ train.py && git commit -qam idea")
    assert agent.compare()["train.py"].kind is UNKNOWN
    agent.edit("train.py", MEANT, "SCALAR_LR = 0.6")
    agent.shell("sed -i s/0.6/0.7/ train.py")
    agent.shell("git commit -qam idea")
    match = agent.compare()["train.py"]
    assert match.kind is UNKNOWN
    assert match.why == "it changed while a shell command of the agent ran"


def test_a_path_without_intent_is_unknown(agent: CodingAgent) -> None:
    """What no hook reported is unknown, beside a path that matches."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.repo.write({"lib/model.py": "x = 2\n"})
    agent.shell(COMMIT)
    kinds = {name: match.kind for name, match in agent.compare().items()}
    assert kinds == {"train.py": MATCH, "lib/model.py": UNKNOWN}


def test_several_edits_of_one_file_are_one_history(agent: CodingAgent) -> None:
    """Edits that follow one another match; so does a whole file written over them."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.edit("train.py", "DEPTH = 8", "DEPTH = 9")
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is MATCH
    agent.edit("train.py", "DEPTH = 9", "DEPTH = 10")
    agent.write("train.py", START)
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is MATCH


def test_bytes_that_came_between_two_edits_are_foreign(agent: CodingAgent, tmp_path: Path) -> None:
    """A second edit that builds on a rewritten file does not make the rewriting the agent's."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    subprocess.run(["/bin/sh", "-c", rewriter(tmp_path)], cwd=agent.repo.path, check=True)
    agent.edit("train.py", "DEPTH = 8", "DEPTH = 9")
    agent.shell(COMMIT)
    match = agent.compare()["train.py"]
    assert match.kind is DIFFERS
    assert "+SCALAR_LR = 0.3" in match.foreign
    assert not [line for line in match.foreign if line.startswith(("+DEPTH", "-DEPTH"))]


def test_foreign_bytes_that_the_agent_replaced_are_not_reported(
    agent: CodingAgent, tmp_path: Path
) -> None:
    """What the agent itself edited or wrote anew afterwards is not in the commit."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    subprocess.run(["/bin/sh", "-c", rewriter(tmp_path)], cwd=agent.repo.path, check=True)
    agent.edit("train.py", "SCALAR_LR = 0.3", "SCALAR_LR = 0.4")
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is MATCH
    agent.edit("train.py", "SCALAR_LR = 0.4", MEANT)
    subprocess.run(["/bin/sh", "-c", rewriter(tmp_path)], cwd=agent.repo.path, check=True)
    agent.write("train.py", START.replace("0.1", "0.2"))
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is MATCH


def test_a_night_of_resets_keeps_each_idea_apart(agent: CodingAgent) -> None:
    """Ideas that are discarded by a reset leave no trace in the judgement of the next one."""
    for number in range(4):
        agent.edit("train.py", "SCALAR_LR = 0.1", f"SCALAR_LR = 0.{number + 5}")
        agent.shell(COMMIT)
        assert agent.compare()["train.py"].kind is MATCH
        agent.shell("git reset -q --hard HEAD~1")


def test_the_next_idea_does_not_change_the_judgement_of_a_commit(agent: CodingAgent) -> None:
    """A commit keeps its judgement while the agent goes on editing, with git's hooks or without."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell(COMMIT)
    agent.edit("train.py", MEANT, "SCALAR_LR = 0.6")
    assert agent.compare()["train.py"].kind is MATCH
    assert agent.compare(timed=False)["train.py"].kind is MATCH


def test_a_persons_commit_after_the_agents_is_unknown(agent: CodingAgent) -> None:
    """What a person edits and commits later is not held against what the agent once meant."""
    install_git(agent.places, agent.repo.find())
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell(COMMIT)
    agent.repo.commit({"train.py": START.replace("0.1", "0.7")})
    assert agent.compare()["train.py"].kind is UNKNOWN
    agent.repo.git("reset", "-q", "--hard", "HEAD~2")
    agent.repo.commit({"train.py": START.replace("0.1", "0.8")})
    assert agent.compare()["train.py"].kind is UNKNOWN


def test_a_staged_part_is_what_was_meant_then(agent: CodingAgent) -> None:
    """What was staged before a later edit is compared with the earlier intent."""
    install_git(agent.places, agent.repo.find())
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell("git add train.py")
    agent.edit("train.py", "DEPTH = 8", "DEPTH = 9")
    agent.shell("git commit -q -m half")
    assert agent.compare()["train.py"].kind is MATCH
    agent.shell("git commit -qam whole")
    assert agent.compare()["train.py"].kind is MATCH


def test_line_ends_are_not_judged(repo: Repo) -> None:
    """An editor that keeps CRLF, and git that stores LF, do not make a commit differ."""
    repo.commit({"dos.py": "a = 1\r\nb = 2\r\n"})
    agent = CodingAgent.start(repo)
    agent.edit("dos.py", "a = 1", "a = 3")
    assert b"\r\n" in (repo.path / "dos.py").read_bytes()
    agent.shell(COMMIT)
    assert agent.compare()["dos.py"].kind is MATCH
    repo.git("config", "core.autocrlf", "true")
    agent.edit("dos.py", "a = 3", "a = 4")
    agent.shell(COMMIT)
    assert agent.compare()["dos.py"].kind is MATCH


def test_deletions_and_renames(repo: Repo) -> None:
    """A deletion by patch matches; one by a stranger differs; one by the shell is unknown."""
    repo.commit({name: f"{name} = 1\n" for name in ("a", "b", "c", "d")})
    agent = CodingAgent.start(repo, Agent.CODEX)
    agent.patch("*** Begin Patch\n*** Delete File: a\n*** End Patch", {"a": None})
    agent.patch(
        "*** Begin Patch\n*** Update File: b\n@@\n-b = 1\n+b = 2\n*** End Patch", {"b": "b = 2\n"}
    )
    (repo.path / "b").unlink()
    agent.shell("rm c")
    agent.patch(
        "*** Begin Patch\n*** Update File: d\n*** Move to: e\n@@\n-d = 1\n+d = 2\n*** End Patch",
        {"e": "d = 2\n", "d": None},
    )
    agent.shell(COMMIT)
    kinds = {name: match.kind for name, match in agent.compare().items()}
    assert kinds == {"a": MATCH, "b": DIFFERS, "c": UNKNOWN, "d": MATCH, "e": MATCH}


def test_a_file_that_git_moved_keeps_its_intent(agent: CodingAgent) -> None:
    """What was meant for one name and is committed under another is still what was meant."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell("git mv train.py moved.py && git commit -qam idea")
    found = agent.compare()
    assert found["moved.py"].kind is MATCH
    assert found["train.py"].kind is UNKNOWN


def test_codex_patches_are_applied_to_the_file_as_it_was(repo: Repo, tmp_path: Path) -> None:
    """A patch means what it makes of the file before the tool; what comes after is foreign."""
    repo.commit({"train.py": START})
    agent = CodingAgent.start(repo, Agent.CODEX)
    text = (
        "*** Begin Patch\n*** Update File: train.py\n@@ import math\n \n-SCALAR_LR = 0.1\n"
        "+SCALAR_LR = 0.5\n*** Add File: new.py\n+y = 2\n*** End Patch"
    )
    agent.patch(text, {"train.py": START.replace("0.1", "0.5"), "new.py": "y = 2\n"})
    agent.shell(COMMIT)
    assert {m.kind for m in agent.compare().values()} == {MATCH}
    repo.git("reset", "-q", "--hard", "HEAD~1")
    agent.others.append(("PostToolUse", "apply_patch", f"cat >/dev/null; {rewriter(tmp_path)}"))
    agent.patch(text, {"train.py": START.replace("0.1", "0.5"), "new.py": "y = 2\n"})
    agent.shell("git add -A && git commit -q -m again")
    kinds = {name: match.kind for name, match in agent.compare().items()}
    assert kinds == {"train.py": DIFFERS, "new.py": MATCH}


def test_a_patch_that_did_not_happen_is_no_intent(repo: Repo) -> None:
    """A tool that was denied has no end on record, and what it planned counts for nothing."""
    repo.commit({"train.py": START})
    agent = CodingAgent.start(repo, Agent.CODEX)
    text = "*** Begin Patch\n*** Update File: train.py\n-SCALAR_LR = 0.1\n+SCALAR_LR = 0.5\n*** End Patch"
    agent.fire("PreToolUse", {"tool_name": "apply_patch", "tool_input": {"command": text}})
    assert not agent.log.events
    agent.uses += 1
    agent.fire("PostToolUse", {"tool_name": "apply_patch", "tool_input": {"command": text}})
    (intent,) = agent.log.events
    assert isinstance(intent, intents.Intent)
    assert intent.intended is None
    repo.commit({"train.py": START.replace("0.1", "0.5")})
    assert agent.compare()["train.py"].kind is UNKNOWN


def test_what_a_human_changed_in_the_dialogue_is_unknown(agent: CodingAgent) -> None:
    """An edit that the human modified before it was made has no known bytes."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT, userModified=True)
    agent.shell(COMMIT)
    match = agent.compare()["train.py"]
    assert match.kind is UNKNOWN
    assert match.why == "the hook could not tell what claude-code's Edit meant"


def test_a_merge_is_never_called_foreign(agent: CodingAgent) -> None:
    """What a merge brings from the other side is no stranger's change of an earlier intent."""
    agent.repo.git("checkout", "-q", "-b", "side")
    agent.repo.commit({"train.py": START.replace("DEPTH = 8", "DEPTH = 12")})
    agent.repo.git("checkout", "-q", "main")
    agent.edit("train.py", "import math", "import cmath")
    agent.shell(COMMIT)
    agent.repo.git("merge", "-q", "--no-edit", "side")
    assert agent.compare()["train.py"].kind is UNKNOWN


def test_an_unfinished_shell_command_hides_nothing_for_ever() -> None:
    """A shell command without an end on record is taken to have ended after an hour."""

    def shell(at: float, **more: bool) -> intents.Shell:
        about = {"begins": True, "ends": False, "background": False, **more}
        return intents.Shell(at, f"use-{at}", "s", seen={}, **about)

    events = [shell(0.0), shell(10.0), shell(4000.0, background=True), shell(5000.0)]
    assert intents._spans(events) == [(0, 2), (1, 2), (2, 5), (3, 5)]


CONTENTS = ("x = 0\n", "x = 1\n", "x = 1\ny = 2\n", "y = 3\n")
STATES = [hashlib.sha256(text.encode()).hexdigest() for text in CONTENTS]
KNOWN = st.sampled_from([*STATES, intentlog.ABSENT])
GIT = st.sampled_from([(1, 1), (2, 2)])
FILES = st.dictionaries(st.just(b"p"), KNOWN)
EVENTS = st.lists(
    st.one_of(
        st.builds(
            intents.Intent,
            at=st.just(0.0),
            monotonic=st.just(0.0),
            agent=st.just("a"),
            tool=st.just("t"),
            tool_use=st.sampled_from(["1", "2"]),
            agent_session=st.just("s"),
            path=st.just(b"p"),
            before=st.none() | KNOWN,
            intended=st.none() | KNOWN,
            whole=st.booleans(),
        ),
        st.builds(
            intents.Shell,
            at=st.just(0.0),
            tool_use=st.sampled_from(["1", "2"]),
            agent_session=st.just("s"),
            begins=st.booleans(),
            ends=st.booleans(),
            background=st.booleans(),
            seen=FILES,
        ),
        st.builds(
            intents.Staged, at=st.just(0.0), git=GIT, after=st.booleans(), index=FILES, files=FILES
        ),
        st.builds(
            intents.Committed, at=st.just(0.0), git=GIT, commit=st.sampled_from(["own", "other"])
        ),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[CommittedTree]:
    """Commits of each content of one path, and one without it."""
    repo = Repo.create(tmp_path_factory.mktemp("trees"))
    found = [repo.tree(repo.commit({"p": text})) for text in CONTENTS]
    (repo.path / "p").unlink()
    return [*found, repo.tree(repo.commit({"q": ""}))]


@settings(deadline=None, max_examples=600)
@given(events=EVENTS, now=st.integers(0, 4), then=st.integers(0, 4))
def test_whatever_the_history_a_match_is_something_that_was_meant(
    trees: list[CommittedTree], events: list[intents.Event], now: int, then: int
) -> None:
    """For any log: no match without an intent that meant those bytes, no diff without a change."""
    tree = trees[now]
    own = [
        intents.Committed(e.at, e.git, tree.commit)
        if isinstance(e, intents.Committed) and e.commit == "own"
        else e
        for e in events
    ]
    contents = dict(zip(STATES, (text.encode() for text in CONTENTS), strict=True))
    log = intents.Log(tuple(own), contents.get)
    found = [m for m in intents.compare(log, tree, trees[then]) if m.path == b"p"]
    assert len(found) == (now != then)
    for match in found:
        states = {e.intended for e in events if isinstance(e, intents.Intent)}
        if match.kind is MATCH:
            assert [*STATES, intentlog.ABSENT][now] in states
        if match.kind is DIFFERS:
            assert match.intent is not None
            assert match.foreign


def test_two_worktrees_of_one_repository_are_kept_apart(agent: CodingAgent) -> None:
    """An edit of the same path in another worktree is not this one's."""
    other = agent.repo.path.parent / "other"
    agent.repo.git("worktree", "add", "-q", str(other))
    (other / "train.py").write_text("elsewhere\n")
    agent.fire(
        "PostToolUse",
        {
            "tool_name": "Write",
            "tool_input": {"file_path": str(other / "train.py"), "content": "elsewhere\n"},
            "tool_response": {"type": "update", "originalFile": START},
        },
    )
    assert agent.log.events == ()
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.shell(COMMIT)
    assert agent.compare()["train.py"].kind is MATCH


def test_a_hostile_log_says_nothing(tmp_path: Path, repo: Repo) -> None:
    """Records with wrong shapes, paths that lead out and forged contents are dropped."""
    commit = repo.commit({"a": "a\n"})
    directory = tmp_path / "state"
    journal = intentlog.Journal(str(directory / intentlog.DIRECTORY))
    name = journal.keep(b"meant\n")
    top = os.path.realpath(repo.path)
    base = {"workspace": top, "kind": "intent", "before": intentlog.ABSENT, "intended": name}
    for path in ("../out", "/etc/passwd", "a/../../b", "", ".", "a\0b", 7, None, "\ud800"):
        journal.append({**base, "path": path})
    journal.append({**base, "path": "a", "at": "now"})
    journal.append({"workspace": top, "kind": "shell", "seen": {"a": "short", "../b": name}})
    journal.append({"workspace": top, "kind": "index", "git": ["x", 1], "index": []})
    journal.append({"workspace": top, "kind": "commit", "git": [1, 2], "commit": 5})
    journal.close()
    newer = directory / intentlog.DIRECTORY / intentlog.NEWER
    with (newer / intentlog.RECORDS).open("ab") as file:
        file.write(b'[1, 2]\n{"torn\n' + b"[" * 200_000 + b"\n\xff\xfe\n")
    log = intents.read(directory, repo.path)
    assert [type(event).__name__ for event in log.events] == ["Shell"]
    assert log.content(name) == b"meant\n"
    (newer / intentlog.BLOBS / name).write_bytes(b"forged\n")
    assert log.content(name) is None
    assert log.content("../../etc/passwd") is None
    (newer / intentlog.BLOBS / name).unlink()
    (newer / intentlog.BLOBS / name).symlink_to("/etc/hostname")
    assert log.content(name) is None
    assert [m.kind for m in intents.compare(log, repo.tree(commit), None)] == [UNKNOWN]


def test_contents_that_were_not_kept_still_differ(agent: CodingAgent) -> None:
    """Where only hashes are left, a foreign part is told without its lines."""
    agent.edit("train.py", "SCALAR_LR = 0.1", MEANT)
    agent.repo.write({"train.py": START.replace("0.1", "0.3")})
    agent.repo.git("commit", "-qam", "idea")
    tree = agent.repo.tree()
    parent = agent.repo.tree(tree.parents[0], tree.spool)
    log = intents.Log(agent.log.events)
    (match,) = intents.compare(log, tree, parent)
    assert match.kind is DIFFERS
    assert match.foreign == ("train.py: the contents were not kept",)
    (match,) = intents.compare(log, tree, parent, filtered={b"train.py"})
    assert match.kind is UNKNOWN


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full generation becomes the older one, and the older one goes; the newest stay readable."""
    monkeypatch.setattr(intentlog, "RECORDS_LIMIT", 2000)
    where = str(tmp_path / "intents")
    for number in range(200):
        journal = intentlog.Journal(where)
        name = journal.keep(b"%d" % number)
        journal.append({"number": number, "name": name})
        journal.close()
    numbers = [record["number"] for record in intentlog.records(where)]
    assert numbers == list(range(numbers[0], 200))
    assert 10 < len(numbers) < 60
    assert all(intentlog.content(where, r["name"]) is not None for r in intentlog.records(where))
    deadline = time.monotonic() + 60
    while list((tmp_path / "intents").glob("waste-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(p.name for p in (tmp_path / "intents").iterdir()) == [
        "current",
        "lock",
        "previous",
    ]


def test_a_large_content_is_kept_as_its_hash(tmp_path: Path) -> None:
    """A content above the limit still compares, by its hash."""
    journal = intentlog.Journal(str(tmp_path / "intents"))
    name = journal.keep(b"x" * (intentlog.CONTENT_LIMIT + 1))
    journal.close()
    assert len(name) == 64
    assert intentlog.content(str(tmp_path / "intents"), name) is None


def test_records_of_many_hooks_at_once_are_all_kept(tmp_path: Path) -> None:
    """Hooks that append at the same time spoil no record of one another."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from sealrun.ownership import intentlog\n"
        "for n in range(100):\n"
        "    j = intentlog.Journal(sys.argv[1]); j.append({'who': sys.argv[3], 'n': n, 'x': 'y' * 3000})\n"
    )
    runner = str(next(p for p in intents.__file__.split("/sealrun/")))
    where = str(tmp_path / "intents")
    started = [
        subprocess.Popen([sys.executable, "-I", "-c", code, where, runner, str(who)])
        for who in range(4)
    ]
    assert [process.wait() for process in started] == [0] * 4
    found = [(record["who"], record["n"]) for record in intentlog.records(where)]
    assert sorted(found) == sorted((str(who), n) for who in range(4) for n in range(100))
