"""``sealrun init``: what it recognises, what it shows, what it writes, and that it takes it back."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _cli import Cli
from sealrun import policy
from sealrun.init import draft, program, shape, teaching
from sealrun.init.shape import Found, Kind, Metric, recognise

if TYPE_CHECKING:
    from pathlib import Path

    from _git import Repo

PROGRAM = """# research

Start it with `uv run train.py`. The goal: get the lowest val_bpb. Prepare: `uv run prepare.py > p.log 2>&1`.

4. Run it: `uv run train.py > run.log 2>&1` (never use tee)
5. Read it: `grep "^val_bpb:\\|^peak_vram_mb:" run.log`
8. If val_bpb improved (lower), keep.
"""
TRAIN = """import torch
from kernels import get_kernel
repo = "someone/attention" if torch.cuda.is_available() else "others/attention"
fa = get_kernel(repo)
model = torch.compile(object())
print("val_bpb: 1.0")
"""
PREPARE = """import os
TIME_BUDGET = 300
CACHE_DIR = os.path.join(os.path.expanduser("~"), ".cache", "autoresearch")
HUB = os.path.expanduser("~/.cache/huggingface/hub")
"""
RESEARCH = {
    "program.md": PROGRAM,
    "train.py": TRAIN,
    "prepare.py": PREPARE,
    "uv.lock": """version = 1
requires-python = ">=3.10"

[[package]]
name = "kernels"
version = "0.12.1"

[[package]]
name = "torch"
version = "2.9.1+cu128"
""",
    "pyproject.toml": '[project]\nname = "r"\nversion = "0"\nrequires-python = ">=3.10"\n',
    ".gitignore": "CLAUDE.md\nAGENTS.md\n",
}


def found(files: dict[str, str]) -> Found:
    """Return files as the recognition sees them."""
    return Found(frozenset(files), {path: text.encode() for path, text in files.items()})


@pytest.fixture
def cli(repo: Repo, tmp_path: Path) -> Cli:
    """The command line in a repository, with a home in which no agent was ever used."""
    home = tmp_path / "user"
    home.mkdir()
    # Whatever agents this machine has, the test's user has none.
    return Cli(
        repo.path,
        tmp_path / "home",
        {
            "HOME": str(home),
            "CLAUDE_CONFIG_DIR": str(home / "claude"),
            "CODEX_HOME": str(home / "codex"),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        },
    )


def state(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of every file below a directory, git's own left out."""
    files = (p for p in directory.rglob("*") if ".git" not in p.relative_to(directory).parts[:1])
    return {
        str(p.relative_to(directory)): (p.lstat().st_mode, b"" if p.is_dir() else p.read_bytes())
        for p in files
    }


# --- recognition ----------------------------------------------------------------------------------


def test_an_autoresearch_repository_is_recognised_whole() -> None:
    """Metric, direction, deadline, data, compiler, protected files and fetched code are found."""
    assert recognise(found(RESEARCH)) == shape.Shape(
        Kind.AUTORESEARCH,
        lock="uv.lock",
        script="train.py",
        metric=Metric("val_bpb", "minimize"),
        deadline=600,
        data=("~/.cache/autoresearch",),
        protected=("prepare.py", "uv.lock"),
        compiles=True,
        kernels=(
            shape.Kernel("others/attention", "model", ("build/torch29-*", "build/torch-*")),
            shape.Kernel("someone/attention", "model", ("build/torch29-*", "build/torch-*")),
        ),
    )


@pytest.mark.parametrize(
    ("files", "kind", "lock"),
    [
        ({"pyproject.toml": "", "uv.lock": "", "a.py": ""}, Kind.UV, "uv.lock"),
        ({"pyproject.toml": "", "a.py": ""}, Kind.UV, None),
        ({"pylock.toml": "", "uv.lock": ""}, Kind.PYLOCK, "pylock.toml"),
        ({"requirements.txt": "", "a.py": ""}, Kind.REQUIREMENTS, "requirements.txt"),
        ({"a.py": ""}, Kind.SCRIPT, None),
        ({"note.ipynb": "{}"}, Kind.SCRIPT, None),
        ({"Makefile": "", "main.c": ""}, Kind.OTHER, None),
        ({}, Kind.OTHER, None),
        ({"program.md": "", "train.py": "", "prepare.py": ""}, Kind.SCRIPT, None),
    ],
)
def test_the_other_shapes_are_told_apart(
    files: dict[str, str], kind: Kind, lock: str | None
) -> None:
    """What is no loop of that kind is named by where its packages come from."""
    recognised = recognise(found(files))
    assert (recognised.kind, recognised.lock) == (kind, lock)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ('grep "^val_acc:" run.log\nget the highest val_acc', Metric("val_acc", "maximize")),
        ("grep '^loss:' log\nloss should be minimised", Metric("loss", "minimize")),
        ('grep "^score:" log\nlook at score', Metric("score", None)),
        ('grep "^x:" log\nx is lower or higher', Metric("x", None)),
        ("no grep here", None),
    ],
)
def test_a_direction_is_read_or_left_open(text: str, metric: Metric | None) -> None:
    """A fork's metric is taken with its direction where the text says it, never guessed."""
    assert shape.metric_of(text) == metric


def test_a_longer_budget_gives_a_longer_deadline() -> None:
    """A fork that trains for an hour is not ended after ten minutes."""
    longer = RESEARCH | {"prepare.py": "TIME_BUDGET = 3600\n"}
    assert recognise(found(longer)).deadline == 7200


@pytest.mark.parametrize(
    ("lock", "kernel"),
    [
        ("", shape.Kernel("a/b", "kernel", (), "v1")),
        (
            "kernels==0.13.0\ntorch==2.10.0",
            shape.Kernel("a/b", "model", ("build/torch210-*", "build/torch-*"), "v1"),
        ),
        ('name = "kernels"\nversion = "0.14.0"\n', shape.Kernel("a/b", "kernel", (), "v1")),
        ("torch==2.9.1\ntorch==2.8.0", shape.Kernel("a/b", "kernel", (), "v1")),
    ],
)
def test_the_lock_says_how_a_kernel_is_fetched(lock: str, kernel: shape.Kernel) -> None:
    """The client's version decides the kind, torch's the builds; without a lock all are taken."""
    assert shape.kernels(b'k = kernels.get_kernel("a/b", revision="v1")', lock) == (kernel,)


@pytest.mark.parametrize(
    ("source", "caches"),
    [
        ('Path.home() / ".cache" / "mine" / "data"', ("~/.cache/mine",)),
        ('os.path.expanduser("~/.cache/mine/x")', ("~/.cache/mine",)),
        ('Path("~/.cache/mine").expanduser()', ("~/.cache/mine",)),
        ('os.path.join(os.path.expanduser("~"), ".ssh")', ()),
        ('"~/.cache/huggingface"', ()),
        ('"~/.cache/.."', ()),
        ("this is no Python", ()),
        ("(" * 500, ()),
    ],
)
def test_only_a_cache_of_its_own_is_data(source: str, caches: tuple[str, ...]) -> None:
    """Directories that hold keys or tokens of other programs are never proposed."""
    assert shape.home_caches(f"d = {source}\n".encode()) == caches


@pytest.mark.parametrize(
    ("files", "base"),
    [
        ({"a.py": "import torch\n@torch.compile\ndef f(x): ...\n"}, "debian-python-build"),
        ({"a.py": "from torch import compile, nn\n"}, "debian-python-build"),
        ({"a.py": "from torch.utils.cpp_extension import load_inline\n"}, "debian-python-build"),
        ({"a.py": "if True:\n    import triton.language as tl\n"}, "debian-python-build"),
        ({"a.py": "import re\nre.compile('x')\nfrom re import compile\n"}, "debian-python"),
        (
            {"a.py": "x", "uv.lock": '[[package]]\nname = "triton"\nversion = "3.5.0"\n'},
            "debian-python-build",
        ),
        (
            {"a.py": "x", "requirements.txt": "triton==3.5.0 \\\n    --hash=sha256:0\n"},
            "debian-python-build",
        ),
        ({"a.py": "x", "uv.lock": '[[package]]\nname = "triton-help"\n'}, "debian-python"),
    ],
)
def test_a_compiler_is_proposed_where_a_run_needs_one(files: dict[str, str], base: str) -> None:
    """What is called and what is locked both tell."""
    text = draft.policy_text(recognise(found(files)))
    assert policy.load(text.encode(), source="draft").policy.image.base == base


@given(st.binary(max_size=200))
def test_no_source_breaks_the_recognition(source: bytes) -> None:
    """Whatever bytes a repository holds, it is recognised as something."""
    paths = frozenset(RESEARCH)
    recognise(Found(paths, dict.fromkeys(paths, source)))
    assert program.with_sealrun(source).replace(program.WORDS, b"") == source.replace(
        program.WORDS, b""
    )


# --- the policy, the command, the section ---------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [RESEARCH, {}, {"a.py": "import torch\ntorch.compile\n"}, {"requirements.txt": "x"}],
    ids=["research", "empty", "compiles", "requirements"],
)
def test_a_proposed_policy_is_valid_and_loosens_nothing(files: dict[str, str]) -> None:
    """The policy model accepts every draft, and names nothing in it as weaker than shipped."""
    recognised = recognise(found(files))
    loaded = policy.load(draft.policy_text(recognised).encode(), source="draft")
    assert loaded.loosened() == ()
    assert loaded.policy.guard.protected == (*recognised.protected, "sealrun.toml")
    assert loaded.policy.limits.deadline == recognised.deadline
    assert (loaded.policy.image.base == "debian-python-build") == recognised.compiles
    assert tuple(d.source for d in loaded.policy.data) == recognised.data
    fetched = [f.repository for f in loaded.policy.fetch if isinstance(f, policy.HubFetch)]
    assert fetched == [kernel.repository for kernel in recognised.kernels]


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        (b"`uv run train.py > run.log 2>&1` (x)", b"`#uv run train.py > run.log 2>&1` (x)"),
        (b"run `uv run train.py`.", b"run `uv run train.py`."),
        (b"uv run train.py >run.log 2>&1\r\n", b"#uv run train.py >run.log 2>&1\r\n"),
        (b"A=1 python3 train.py 2>&1 | tee l\n", b"A=1 #python3 train.py 2>&1 | tee l\n"),
        (b"timeout 9 uv run -m train > l\n", b"timeout 9 #uv run -m train > l\n"),
        (b"uv run prepare.py > p.log\n", b"uv run prepare.py > p.log\n"),
        (b"`sealrun run -- uv run train.py > l`", b"`sealrun run -- uv run train.py > l`"),
        (b"\xff uv run t.py > l\n\xfe", b"\xff #uv run t.py > l\n\xfe"),
    ],
)
def test_only_the_loops_run_command_changes(text: bytes, becomes: bytes) -> None:
    """The words go before a command whose output goes somewhere; every other byte stays."""
    assert program.with_sealrun(text) == becomes.replace(b"#", program.WORDS)


def test_the_section_names_no_way_around() -> None:
    """What agents read tells them neither to approve or accept anything nor to stop the guard."""
    text = teaching.section("uv run train.py", ("prepare.py",)).lower()
    for word in ("approve", "accept", "guard", "--policy", "undo", "/dev/tty", "bypass"):
        assert word not in text, word
    assert "a human decides" in text


@pytest.mark.parametrize("text", [b"", b"# A\n", b"# A", b"# A\r\nb\r\n"])
def test_a_section_is_added_once_in_the_files_own_line_endings(text: bytes) -> None:
    """What was there stays at the front, and a second time nothing changes."""
    body = teaching.section("x", ())
    made = teaching.with_section(text, body)
    assert made.startswith(text)
    assert teaching.with_section(made, body) == made
    assert (b"\r\n" in made) == (b"\r\n" in text)
    if b"\r\n" in text:
        assert made.count(b"\n") == made.count(b"\r\n")


# --- the command ----------------------------------------------------------------------------------


def test_without_a_terminal_it_only_shows(cli: Cli, repo: Repo) -> None:
    """One diff over all files comes to stdout; no byte of the workspace or of git changes."""
    repo.commit(RESEARCH)
    before = state(repo.path), repo.git("status", "--porcelain", "--ignored")
    done = cli("init", "--agent", "claude-code")
    for path in ("sealrun.toml", "program.md", ".claude/settings.local.json"):
        assert f"+++ b/{path}\n" in done.stdout
    assert "+4. Run it: `sealrun run -- uv run train.py > run.log 2>&1` (never use tee)" in (
        done.stdout
    )
    assert "nothing was written" in done.stderr
    assert (state(repo.path), repo.git("status", "--porcelain", "--ignored")) == before
    assert not (repo.path / ".git" / "sealrun").exists()


def test_what_was_shown_is_written_and_undone(cli: Cli, repo: Repo) -> None:
    """The files become what the diff said, nothing is staged, and --undo gives back every byte."""
    repo.commit(RESEARCH)
    before, index = state(repo.path), (repo.path / ".git" / "index").read_bytes()
    shown = cli("init", "--agent", "claude-code").stdout
    done = cli("init", "--yes", "--agent", "claude-code")
    assert done.stdout == shown
    applied = subprocess.run(
        ["git", "apply", "--check", "--reverse"],
        cwd=repo.path,
        input=shown,
        text=True,
        capture_output=True,
        check=False,
    )
    assert applied.returncode == 0, applied.stderr
    changed = set(state(repo.path)) - set(before)
    assert {p for p in changed if (repo.path / p).is_file()} == {
        "sealrun.toml",
        ".claude/settings.local.json",
        ".claude/skills/sealrun/SKILL.md",
    }
    assert (repo.path / ".git" / "index").read_bytes() == index
    assert "nothing to write" in cli("init", "--yes", "--agent", "claude-code").stderr
    cli("init", "--undo")
    assert state(repo.path) == before
    assert "nothing" in cli("init", "--undo", status=2).stderr


def test_undo_refuses_where_somebody_changed_a_file(cli: Cli, repo: Repo) -> None:
    """It names the file and touches none; when the file is as before, the rest is taken back."""
    repo.commit(RESEARCH)
    before = state(repo.path)
    cli("init", "--yes")
    written = state(repo.path)
    edited = repo.path / "program.md"
    edited.write_text(edited.read_text() + "more\n")
    refused = cli("init", "--undo", status=121)
    assert "program.md" in refused.stderr
    assert "sealrun.toml" not in refused.stderr
    assert {p: v for p, v in state(repo.path).items() if p != "program.md"} == {
        p: v for p, v in written.items() if p != "program.md"
    }
    edited.write_text(PROGRAM)
    cli("init", "--undo")
    assert state(repo.path) == before


def test_undo_after_a_second_init_restores_what_was_first(cli: Cli, repo: Repo) -> None:
    """What a later call adds is taken back together with the first."""
    repo.commit(RESEARCH | {".gitignore": "", "AGENTS.md": "# Agents\n"})
    before = state(repo.path)
    cli("init", "--yes", "--no-hooks")
    cli("init", "--yes", "--agent", "codex")
    assert (repo.path / ".codex" / "hooks.json").exists()
    cli("init", "--undo")
    assert state(repo.path) == before


def test_a_policy_that_is_there_stays(cli: Cli, repo: Repo) -> None:
    """An existing sealrun.toml is never overwritten, an empty one neither."""
    repo.commit(RESEARCH | {"sealrun.toml": ""})
    done = cli("init", "--yes", "--no-hooks")
    assert "sealrun.toml is there already" in done.stderr
    assert (repo.path / "sealrun.toml").read_bytes() == b""


@pytest.mark.parametrize(
    ("files", "taught"),
    [
        ({}, {"AGENTS.md"}),
        ({"AGENTS.md": "a\n"}, {"AGENTS.md"}),
        ({"CLAUDE.md": "c\n"}, {"CLAUDE.md"}),
        ({"AGENTS.md": "a\n", "CLAUDE.md": "c\n"}, {"AGENTS.md", "CLAUDE.md"}),
        ({"AGENTS.md": "a\n", "CLAUDE.md": "@AGENTS.md\n"}, {"AGENTS.md"}),
        ({".gitignore": "AGENTS.md\nCLAUDE.md\n"}, {".claude/skills/sealrun/SKILL.md"}),
        ({".gitignore": "*.md\n"}, set[str]()),
    ],
)
def test_the_section_goes_where_a_commit_can_hold_it(
    cli: Cli, repo: Repo, files: dict[str, str], taught: set[str]
) -> None:
    """Files that agents read and git does not ignore get the section, each once."""
    repo.commit({"a.py": "x\n"} | files)
    cli("init", "--yes", "--no-hooks")
    holds = {p for p, (_, content) in state(repo.path).items() if b"sealrun: begin" in content}
    assert holds == taught


def test_an_ignored_file_is_its_owners(cli: Cli, repo: Repo) -> None:
    """An AGENTS.md that git ignores is left alone, because a launcher writes it anew."""
    repo.commit(RESEARCH)
    repo.write({"AGENTS.md": "mine\n"})
    cli("init", "--yes", "--no-hooks")
    assert (repo.path / "AGENTS.md").read_text() == "mine\n"


def test_links_are_never_written_through(cli: Cli, repo: Repo, tmp_path: Path) -> None:
    """A link in the place of a file, or of a directory, leads nothing of ours outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs\n")
    repo.commit({"a.py": "x\n", "CLAUDE.md": "real\n"})
    (repo.path / "AGENTS.md").symlink_to("CLAUDE.md")
    (repo.path / "sealrun.toml").symlink_to(outside / "file")
    (repo.path / ".claude").symlink_to(outside)
    done = cli("init", "--yes", "--agent", "claude-code")
    assert "sealrun.toml is there already" in done.stderr
    assert "no hooks for claude-code" in done.stderr
    assert b"sealrun: begin" in (repo.path / "CLAUDE.md").read_bytes()
    assert state(outside) == {"file": (0o100644, b"theirs\n")}
    assert (repo.path / "AGENTS.md").is_symlink()


def test_modes_and_line_endings_stay(cli: Cli, repo: Repo) -> None:
    """A rewritten file keeps its mode, and its carriage returns."""
    repo.commit({"CLAUDE.md": "a\r\nb\r\n", "a.py": ""})
    (repo.path / "CLAUDE.md").chmod(0o640)
    cli("init", "--yes", "--no-hooks")
    content = (repo.path / "CLAUDE.md").read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n")
    assert (repo.path / "CLAUDE.md").stat().st_mode & 0o777 == 0o640


def test_hostile_names_and_bytes_are_shown_escaped(cli: Cli, repo: Repo) -> None:
    """A terminal obeys nothing that stands in a file that the diff shows."""
    repo.commit(
        {
            "CLAUDE.md": "a\x1b[2Jb\n",
            "a.py": "",
            "\x1b[2J.py": "",
            b"\xff.py".decode("utf-8", "surrogateescape"): "",
        }
    )
    done = cli("init")
    assert "\x1b" not in done.stdout + done.stderr
    assert r"a\x1b[2Jb" in done.stdout


def test_the_question_is_asked_at_a_terminal(cli: Cli, repo: Repo) -> None:
    """On a terminal the diff comes first; only a yes writes."""
    repo.commit(RESEARCH)
    assert "nothing was written" in _at_a_terminal(cli, b"n\n")
    assert not (repo.path / "sealrun.toml").exists()
    assert "not committed" in _at_a_terminal(cli, b"y\n")
    assert (repo.path / "sealrun.toml").exists()


def _at_a_terminal(cli: Cli, answer: bytes) -> str:
    ours, theirs = pty.openpty()
    options: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = cli.start("init", "--no-hooks", **options)
    os.close(theirs)
    shown, answered = b"", False
    while True:
        ready, _, _ = select.select([ours], [], [], 120)
        assert ready, shown
        try:
            more = os.read(ours, 65536)
        except OSError:
            break
        if not more:
            break
        shown += more
        if b"[y/N]" in shown and not answered:
            assert b"+++ b/sealrun.toml" in shown
            os.write(ours, answer)
            answered = True
    os.close(ours)
    assert process.wait(120) == 0
    assert answered
    return shown.decode()


def test_it_works_before_the_first_commit_and_from_below(cli: Cli, repo: Repo) -> None:
    """In an empty repository, started in a directory of it, the files stand at the top."""
    below = repo.path / "deep"
    below.mkdir()
    Cli(below, cli.home, cli.extra)("init", "--yes")
    assert {p.name for p in repo.path.iterdir()} == {".git", "deep", "sealrun.toml", "AGENTS.md"}


def test_outside_of_a_repository_it_says_so(cli: Cli, tmp_path: Path) -> None:
    """Where there is no repository nothing is written."""
    alone = tmp_path / "alone"
    alone.mkdir()
    done = Cli(alone, cli.home, cli.extra)("init", "--yes", status=2)
    assert "not in a git repository" in done.stderr
    assert list(alone.iterdir()) == []


def test_the_pure_parts_read_and_write_nothing() -> None:
    """Recognising and proposing import no module that opens files or starts processes."""
    code = (
        "import sys; import sealrun.init.proposal; "
        "print([m for m in ('subprocess', 'pydantic', 'sealrun.git') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
