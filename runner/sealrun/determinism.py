"""What makes a run repeat: the variables that are set for it, and the notes that it leaves.

Rules that this module keeps:

- The image is not touched, so neither is its id: settings are variables of the container, and the
  module that acts inside Python lies beside the container init, read-only.
- ``record`` sets nothing that decides a number. Its module is there only where the image holds
  torch; no other run gets as much as a variable more.
- What the policy's own ``[sandbox] variables`` say wins over what is set here.
- What is set is what PyTorch's notes on reproducibility (pytorch.org/docs/stable/notes/randomness)
  name, and, for ``strict``, what oneMKL ("Conditional Numerical Reproducibility") and oneDNN ("CPU
  dispatcher control") document for the same results on unlike processors.
- Notes come out of a container and are hostile: bounded, no link followed, known names only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from typing import TYPE_CHECKING, Any, cast

from sealrun.regular import beginning
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from sealrun.image.model import SealedImage
    from sealrun.policy import Policy

#: The module that Python imports by itself at its start (site's documentation).
MODULE = "sitecustomize.py"
#: Where a container finds it: beside the init.
DIRECTORY = "/.sealrun"
#: Where the notes are written, below what the experiment may write; they never become outputs.
NOTES = ".sealrun"
_NOTES_AT = f"/out/{NOTES}"
#: Bounds of what is read: processes that left notes, bytes of one, characters of a text, devices.
_FILES, _BYTES, _TEXT, _DEVICES = 64, 64 << 10, 200, 64
#: Names in the notes that are kept.
_TORCH = (
    *("version", "cuda", "hip", "cudnn", "driver", "cpu_capability", "threads"),
    *("interop_threads", "mkl", "onednn", "deterministic", "cudnn_benchmark", "seed"),
)
_DEVICE = ("name", "capability", "memory")
#: Instruction sets that numeric libraries choose their code by (``flags`` of proc(5), cpuinfo).
_DECISIVE = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "asimd", "sve", "sve2", "bf16", "i8mm"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
)


def is_traced(policy: Policy, image: SealedImage) -> bool:
    """Tell whether our module runs in the Pythons of a run."""
    if policy.determinism.mode != "record":
        return True
    packages = (*image.environment.packages, *image.base.packages)
    return any(package.name.lower() == "torch" for package in packages)


def module() -> dict[str, bytes]:
    """Return the module's file, to be placed beside the init."""
    return {MODULE: shipped("images", "determinism", MODULE).read_bytes()}


def variables(policy: Policy) -> dict[str, str]:
    """Return what the policy's mode sets in a container; ``record`` sets nothing.

    Thread counts are set as a number, so that the record holds it and another machine can be told.
    """
    asked = policy.determinism
    if asked.mode == "record":
        return {}
    threads = str(asked.threads or usable_cpus(policy))
    found = {
        "PYTHONHASHSEED": str(asked.seed),
        # Without it cuBLAS may choose another sum's order in each run (cuBLAS, "Results
        # reproducibility"; PyTorch names this value).
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        # oneMKL takes fewer threads than asked for where it sees fit, unless told not to.
        "MKL_DYNAMIC": "FALSE",
        "OMP_DYNAMIC": "FALSE",
    }
    if asked.mode == "strict":
        found |= {
            "MKL_CBWR": "COMPATIBLE",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
        }
    return found


def tracing(policy: Policy, python_path: str | None) -> dict[str, str]:
    """Return the variables that bring our module into each Python of a run.

    Args:
        policy: of the run.
        python_path: ``PYTHONPATH`` as the container would have it otherwise.
    """
    asked = policy.determinism
    return {
        "PYTHONPATH": f"{DIRECTORY}:{python_path}" if python_path else DIRECTORY,
        "SEALRUN_DETERMINISM": f"{asked.mode}:{asked.seed}",
        "SEALRUN_NOTES": _NOTES_AT,
    }


def usable_cpus(policy: Policy) -> int:
    """Return how many threads can run at once: the caller's CPUs, or what the policy allows."""
    here = len(os.sched_getaffinity(0))
    allowed = policy.sandbox.cpus
    return here if allowed is None else max(1, min(here, math.floor(allowed)))


def take(out: Path) -> dict[str, object]:
    """Take the notes of an ended run out of its outputs.

    Args:
        out: the host's directory behind ``/out``.

    Returns:
        ``torch``: facts of the first process that imported it; ``python``; ``processes``: how many
        did. What is not known is not there.
    """
    notes = list(_notes(out))
    return {**notes[0], "processes": len(notes)} if notes else {}


def _notes(out: Path) -> Iterator[dict[str, object]]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        directory = os.open(out / NOTES, flags)
    except OSError:
        return
    try:
        with os.scandir(directory) as listing:
            names = [entry.name for entry, _ in zip(listing, range(_FILES * 4), strict=False)]
        # By process id, so that the first is the one that started the others.
        for name in sorted(filter(_is_note, names), key=_process)[:_FILES]:
            found = _read(directory, name)
            if found is not None:
                yield found
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)
        with contextlib.suppress(OSError):
            # Whatever else the experiment put there is its own, and stays.
            (out / NOTES).rmdir()


def _is_note(name: str) -> bool:
    stem = name.removesuffix(".json")
    return stem != name and stem.isascii() and stem.isdigit() and len(stem) <= 10  # noqa: PLR2004 - a pid


def _process(name: str) -> int:
    return int(name.removesuffix(".json"))


def _read(directory: int, name: str) -> dict[str, object] | None:
    text = beginning(name, _BYTES + 1, within=directory)
    if text is None or len(text) > _BYTES:
        return None
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _sifted(document)


def _sifted(document: object) -> dict[str, object] | None:
    """Return what of a note is known by name and of a plain type."""
    if not isinstance(document, dict):
        return None
    note = cast("dict[str, Any]", document)
    torch = note.get("torch")
    if not isinstance(torch, dict):
        return None
    facts: dict[str, object] = _plain(cast("dict[str, Any]", torch), _TORCH)
    devices = cast("dict[str, Any]", torch).get("devices")
    if isinstance(devices, list):
        facts["devices"] = [
            _plain(one, _DEVICE) for one in devices[:_DEVICES] if isinstance(one, dict)
        ]
    return {**_plain(note, ("python",)), "torch": facts}


def _plain(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in names:
        value = values.get(name)
        if isinstance(value, str):
            found[name] = value[:_TEXT]
        elif isinstance(value, bool | int | float):
            # A whole number beyond 64 bits is no fact about a machine.
            found[name] = value if abs(value) < 1 << 64 else None
    return found


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Return the instruction sets of a processor that numeric libraries choose their code by.

    Args:
        cpuinfo: text of ``/proc/cpuinfo``.
    """
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            has = set(value.split())
            return tuple(name for name in _DECISIVE if name in has)
    return ()
