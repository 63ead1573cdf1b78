"""The founding story is told for real, in its short form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from _base import shared_base
from _cli import Cli

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.mark.engine
@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_the_demo_turns_out_as_it_is_told(tmp_path: Path) -> None:
    """Both nights, real training, a real rewriter and a lost machine; it checks each of its claims."""
    cli = Cli(tmp_path, tmp_path / "home")
    shared_base(cli.places)
    done = subprocess.run(
        [sys.executable, str(DEMO), "--short", "--home", str(cli.home)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "claims of this story were checked" in done.stdout
