"""The example has the shape that loops rely on, the fixer fixes, and the loop script loops."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sealrun.policy import load

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NANOGPT = EXAMPLES / "nanogpt"
SUMMARY = [
    "val_bpb",
    "training_seconds",
    "total_seconds",
    "peak_vram_mb",
    "mfu_percent",
    "total_tokens_M",
    "num_steps",
    "num_params_M",
    "depth",
]
#: A training script without the training: the same summary, made from the setting alone.
STAND_IN = """\
import hashlib, pathlib
SCALAR_LR = 0.5
if SCALAR_LR > 2:
    raise SystemExit("diverged")
print("train_py_sha256:", hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest())
print("---")
print(f"val_bpb:          {3 + (SCALAR_LR - 0.3) ** 2:.6f}")
print("peak_vram_mb:     2048.0")
"""


def settings(source: str) -> dict[str, object]:
    """Return the module constants of a script."""
    found: dict[str, object] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found |= {t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)}
    return found


def test_the_settings_of_train_are_plain_module_constants() -> None:
    """An agent edits constants; the line that the story is about is there, once, as it was."""
    source = (NANOGPT / "train.py").read_text()
    found = settings(source)
    assert found["SCALAR_LR"] == 0.5
    assert found["SEED"] == 42
    assert found["TRAIN_SECONDS"] == 20
    assert source.count("\nSCALAR_LR = 0.5\n") == 1


def test_the_summary_has_the_names_and_the_order_that_loops_grep_for() -> None:
    """After ``---`` come autoresearch's names in its order, each at the start of a line."""
    source = (NANOGPT / "train.py").read_text()
    printed = re.findall(r'print\(f?"(---|\w+):? *', source)
    assert printed[printed.index("---") + 1 :] == SUMMARY
    assert printed[printed.index("---") - 1] == "train_py_sha256"


def test_the_lock_pins_each_package_by_version_and_hash() -> None:
    """Each requirement of the lock names one version and at least one sha256."""
    lock = (NANOGPT / "requirements.txt").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE).strip())
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+( ; [^\\]+)? \\\n", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    project = tomllib.loads((NANOGPT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert any(entry.startswith(requirement) for entry in entries), requirement


def test_the_policy_of_the_example_protects_files_that_are_there() -> None:
    """The example's policy is valid and each file that it protects exists."""
    policy = load((NANOGPT / "sealrun.toml").read_bytes(), source="sealrun.toml").policy
    assert policy.metric.name == "val_bpb"
    assert all((NANOGPT / path).is_file() for path in policy.guard.protected)


@pytest.mark.parametrize(
    ("before", "after"),
    [("SCALAR_LR = 0.5\n", "SCALAR_LR = 0.3\n"), ("SCALAR_LR = 0.2\n", "SCALAR_LR = 0.2\n")],
)
def test_the_fixer_rewrites_what_is_above_its_ceiling(
    tmp_path: Path, before: str, after: str
) -> None:
    """The fixer is a process that changes a file on disk, and only a file that its rule is about."""
    script = tmp_path / "train.py"
    script.write_text(before)
    fixer = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "tidy.py"), str(tmp_path), "--idle", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert fixer.stdout is not None
    try:
        if before != after:
            assert str(fixer.pid) in fixer.stdout.readline()
    finally:
        fixer.communicate(timeout=30)
    assert fixer.returncode == 0
    assert script.read_text() == after
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def git(workspace: Path, *arguments: str) -> str:
    """Call git in a workspace."""
    command = ["git", "-c", "user.name=loop", "-c", "user.email=loop@example.invalid", *arguments]
    return subprocess.run(command, cwd=workspace, check=True, capture_output=True, text=True).stdout


def test_the_loop_keeps_what_is_better_and_resets_the_rest(tmp_path: Path) -> None:
    """Three ideas, one kept, one discarded, one crashed: rows, commits and files agree."""
    (tmp_path / "train.py").write_text(STAND_IN)
    git(tmp_path, "init", "-q", "-b", "night")
    git(tmp_path, "config", "user.name", "loop")
    git(tmp_path, "config", "user.email", "loop@example.invalid")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "-q", "-m", "Start")
    ideas = tmp_path / "ideas.tsv"
    ideas.write_text(
        "lower\ts/^SCALAR_LR = .*/SCALAR_LR = 0.4/\n"
        "higher\ts/^SCALAR_LR = .*/SCALAR_LR = 0.9/\n"
        "much higher\ts/^SCALAR_LR = .*/SCALAR_LR = 9/\n"
        "nothing\ts/no such line//\n"
    )
    subprocess.run(
        ["/bin/sh", str(EXAMPLES / "loop.sh"), "ideas.tsv"],
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "RUN": "python3 train.py"},
        check=True,
        capture_output=True,
    )
    rows = [row.split("\t") for row in (tmp_path / "results.tsv").read_text().splitlines()]
    assert rows[0] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert [row[1:] for row in rows[1:]] == [
        ["3.010000", "2.0", "keep", "lower"],
        ["3.360000", "2.0", "discard", "higher"],
        ["0.000000", "0.0", "crash", "much higher"],
    ]
    assert git(tmp_path, "log", "--format=%s").split("\n")[:2] == ["lower", "Start"]
    assert git(tmp_path, "rev-parse", "--short", "HEAD").strip() == rows[1][0]
    assert "SCALAR_LR = 0.4\n" in (tmp_path / "train.py").read_text()
