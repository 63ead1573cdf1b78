"""An autoresearch-style loop runs through sealrun with only its command changed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import SEALRUN, Cli

if TYPE_CHECKING:
    from _git import Repo

pytestmark = pytest.mark.engine

LOOP = Path(__file__).parents[1] / "examples" / "loop.sh"
ITERATIONS = 20

TRAIN = """\
import hashlib, pathlib, time
SCALAR_LR = 0.5
print("sha256", hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(), flush=True)
time.sleep(0.5)
print("---")
print(f"val_bpb:          {abs(SCALAR_LR - 0.37):.6f}")
print("peak_vram_mb:     1024.0")
"""

#: Strikes as a linter would: every third run before it starts, every third while it is under way.
WRAPPER = """\
#!/bin/sh
# The loop's command is the one line with sealrun; the rest of this file is the mutating machine.
n=$(($(cat "{state}" 2>/dev/null || echo 0) + 1)); echo $n > "{state}"
strike() {{ "{python}" -c '
import pathlib, re
p = pathlib.Path("train.py")
p.write_text(re.sub(r"SCALAR_LR = .*", "SCALAR_LR = 0.371", p.read_text()))'; }}
case $((n % 3)) in
  1) strike ;;
  2) (for i in $(seq 600); do grep -q ^sha256 run.log && break; sleep 0.05; done; strike) & ;;
esac
"{sealrun}" run -- python3 train.py
status=$?
wait
cp run.log "{logs}/$(git rev-parse --short HEAD).$n.log"
exit $status
"""


@pytest.mark.soak
def test_twenty_iterations_under_mutations(repo: Repo, tmp_path: Path) -> None:
    """The script's own SHA-256 equals the commit's blob each time that anything ran.

    A strike before the start is refused and looks like a crash to the loop; a strike during the run
    changes nothing that runs. No number of the foreign 0.371 ever enters results.tsv.
    """
    repo.commit({"train.py": TRAIN, ".gitignore": "run.log\nresults.tsv\n"}, "baseline")
    cli = Cli(repo.path, tmp_path / "home").with_base()
    logs = tmp_path / "logs"
    logs.mkdir()
    wrapper = tmp_path / "run.sh"
    wrapper.write_text(
        WRAPPER.format(state=tmp_path / "n", python=sys.executable, sealrun=SEALRUN, logs=logs)
    )
    ideas = tmp_path / "ideas.tsv"
    ideas.write_text(
        "".join(
            f"lr {i}\ts/^SCALAR_LR = .*/SCALAR_LR = 0.{40 + i}/\n" for i in range(1, ITERATIONS + 1)
        )
    )
    identity = {
        f"GIT_{role}_{key}": "loop@example.invalid"
        for role in ("AUTHOR", "COMMITTER")
        for key in ("NAME", "EMAIL")
    }
    try:
        subprocess.run(
            ["sh", str(LOOP), str(ideas)],
            cwd=repo.path,
            env=cli.environment | identity | {"RUN": f"sh {wrapper}"},
            check=True,
            capture_output=True,
            timeout=280,
        )
    finally:
        cli.stop_guard()
    runs = cli.json("log", "-n", "100")["runs"]
    assert len(runs) == ITERATIONS
    ran = 0
    for log in logs.iterdir():
        commit, text = log.name.split(".")[0], log.read_text()
        blob = subprocess.run(
            ["git", "show", f"{commit}:train.py"], cwd=repo.path, capture_output=True, check=True
        ).stdout
        assert b"0.371" not in blob
        if "[sealrun] refused" in text:
            # Every line is ours, the diff's included: nothing for the loop to take for a metric.
            assert not re.search("^val_bpb:", text, re.MULTILINE)
        else:
            ran += 1
            assert f"sha256 {hashlib.sha256(blob).hexdigest()}\n" in text
    verdicts = [run["verdict"]["kind"] for run in runs]
    assert verdicts.count("refused") == 7
    assert verdicts.count("flagged") == 7
    assert verdicts.count("clean") == ran - 7 == 6
    rows = (repo.path / "results.tsv").read_text().splitlines()
    assert all(len(row.split("\t")) == 5 for row in rows)
    assert len(rows) == ITERATIONS + 1
    assert not any(row.split("\t")[1] == "0.001000" for row in rows)
