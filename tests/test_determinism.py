"""What is set so that a run repeats, what Python is made to note, and how notes are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from sealrun import determinism
from sealrun.policy import load
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from pathlib import Path

MODULE = shipped("images", "determinism")
#: Stands in for the library: what our module asks of it, and what it was told.
TORCH = """\
import os
__version__ = "2.13.0+cpu"
told = []
class version:
    cuda = hip = None
class cuda:
    @staticmethod
    def is_initialized():
        return False
class backends:
    class cpu:
        @staticmethod
        def get_cpu_capability():
            return "AVX2"
    class cudnn:
        benchmark = True
def get_num_threads():
    return 3
def manual_seed(seed):
    told.append(("seed", seed))
def use_deterministic_algorithms(mode):
    told.append(("deterministic", mode))
"""


def python(
    tmp_path: Path, program: str, *, path: tuple[Path, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python that finds our module first, as one in a container does."""
    entries = os.pathsep.join(map(str, (MODULE, *path)))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=clean
        | {"PYTHONPATH": entries, "PYTHONDONTWRITEBYTECODE": "1"}
        | {"SEALRUN_NOTES": str(tmp_path / "out" / ".sealrun")}
        | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A directory with a stand-in for torch, for the path of a Python."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "torch.py").write_text(TORCH)
    (tmp_path / "out").mkdir()
    return tmp_path / "library"


def settings(text: str) -> dict[str, str]:
    """Return the variables of a policy."""
    return determinism.variables(load(text.encode(), source="sealrun.toml").policy)


def test_record_sets_nothing() -> None:
    """The default mode gives a container no variable: it decides no number."""
    assert settings("") == {}


def test_seeded_and_strict_set_what_the_notes_on_randomness_name() -> None:
    """Seeds, threads and cuBLAS's workspace; strict also instruction sets and exact sums."""
    seeded = settings('[determinism]\nmode = "seeded"\nseed = 7\nthreads = 3\n')
    assert seeded["PYTHONHASHSEED"] == "7"
    assert seeded["OMP_NUM_THREADS"] == seeded["MKL_NUM_THREADS"] == "3"
    assert seeded["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "MKL_CBWR" not in seeded
    strict = settings('[determinism]\nmode = "strict"\n')
    assert strict["MKL_CBWR"] == "COMPATIBLE"
    assert strict["ATEN_CPU_CAPABILITY"] == "default"
    assert strict["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_a_limit_of_cpus_limits_threads() -> None:
    """More threads than CPU time would only wait for each other."""
    text = '[determinism]\nmode = "seeded"\n[sandbox]\ncpus = 1.5\n'
    assert settings(text)["OMP_NUM_THREADS"] == "1"


def test_record_notes_the_library_and_changes_nothing(tmp_path: Path, library: Path) -> None:
    """The note is there after the import; the library was told nothing, and the path is as usual."""
    done = python(
        tmp_path,
        "import sys, torch, random\n"
        "assert torch.told == [] and torch.backends.cudnn.benchmark\n"
        f"assert {str(MODULE)!r} not in sys.path\n"
        "import os; os._exit(0)",
        path=(library,),
        SEALRUN_DETERMINISM="record:0",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    facts = determinism.take(tmp_path / "out")
    assert facts["processes"] == 1
    torch = facts["torch"]
    assert isinstance(torch, dict)
    assert (torch["version"], torch["threads"], torch["cpu_capability"]) == (
        "2.13.0+cpu",
        3,
        "AVX2",
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_strict_seeds_and_asks_for_repeatable_algorithms(tmp_path: Path, library: Path) -> None:
    """The library is told at its import, and Python's own generator begins with the seed."""
    done = python(
        tmp_path,
        "import torch, random; print(torch.told, torch.backends.cudnn.benchmark, random.random())",
        path=(library,),
        SEALRUN_DETERMINISM="strict:5",
    )
    told = "[('seed', 5), ('deterministic', True)] False 0.6229016948897019"
    assert done.stdout.strip() == told, done.stderr


def test_a_sitecustomize_of_the_image_runs_too(tmp_path: Path, library: Path) -> None:
    """The image's own module runs as if ours were not there, errors included."""
    (library / "sitecustomize.py").write_text("print('the image')\n")
    done = python(
        tmp_path,
        "import sys; print(sys.modules['sitecustomize'].__file__)",
        path=(library,),
        SEALRUN_DETERMINISM="record:0",
    )
    assert done.stdout.splitlines() == ["the image", str(library / "sitecustomize.py")]


@pytest.mark.parametrize("notes", ["/proc/nowhere", "", "/dev/null"])
def test_notes_that_cannot_be_written_end_nothing(
    tmp_path: Path, library: Path, notes: str
) -> None:
    """An experiment never fails because of its notes."""
    done = python(
        tmp_path,
        "import torch; print('done')",
        path=(library,),
        SEALRUN_DETERMINISM="seeded:0",
        SEALRUN_NOTES=notes,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_library_that_looks_for_another_finds_it(tmp_path: Path, library: Path) -> None:
    """Asking whether torch is there, without importing it, works as ever and notes nothing."""
    done = python(
        tmp_path,
        "import importlib.util as u; s = u.find_spec('torch'); print(s.origin, type(s.loader).__name__)"
        "; print(u.find_spec('no_such_module'))",
        path=(library,),
        SEALRUN_DETERMINISM="seeded:0",
    )
    assert done.stdout.splitlines() == [f"{library}/torch.py SourceFileLoader", "None"]
    assert determinism.take(tmp_path / "out") == {}


def hostile(directory: Path) -> dict[str, Any]:
    """Fill a directory of notes with what a container might leave there; return the good note."""
    good = {
        "python": "3.11",
        "torch": {"version": "2.13", "threads": 2, "devices": [{"name": "x"}]},
    }
    (directory / "7.json").write_text(json.dumps(good))
    (directory / "8.json").symlink_to("/etc/shadow")
    os.mkfifo(directory / "9.json")
    (directory / "10.json").write_text("[" * 100_000)
    (directory / "11.json").write_bytes(b"\xff" * 100)
    (directory / "12.json").write_text(json.dumps({"torch": {"x": "y" * (1 << 20)}}))
    (directory / "13.json").write_text(json.dumps({"torch": ["no object"]}))
    (directory / "...json").write_text("{}")
    return good


def test_hostile_notes_are_left_out(tmp_path: Path) -> None:
    """Links, pipes, bombs and nonsense are skipped; what is good is kept, and known names only."""
    directory = tmp_path / "out" / ".sealrun"
    directory.mkdir(parents=True)
    hostile(directory)
    (directory / "14.json").write_text(
        json.dumps({"torch": {"version": "v" * 5000, "threads": 10**400, "secret": "no"}})
    )
    facts = determinism.take(tmp_path / "out")
    assert facts == {
        "python": "3.11",
        "torch": {"version": "2.13", "threads": 2, "devices": [{"name": "x"}]},
        "processes": 2,
    }
    assert not directory.exists()


def test_a_link_in_the_place_of_the_notes_is_not_followed(tmp_path: Path) -> None:
    """What the link leads to is neither read nor removed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "7.json").write_text('{"torch": {"version": "1"}}')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".sealrun").symlink_to(elsewhere)
    assert determinism.take(tmp_path / "out") == {}
    assert (elsewhere / "7.json").exists()


def test_instruction_sets_are_those_that_decide_numbers() -> None:
    """Flags that choose another kernel are kept, in a fixed order; the others are not."""
    text = "processor: 0\nflags\t\t: fpu sse2 avx512f fma avx2 avx ht\nbugs: none\n"
    assert determinism.instruction_sets(text) == ("avx", "avx2", "fma", "avx512f")
    assert determinism.instruction_sets("") == ()
