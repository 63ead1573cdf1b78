"""Compiles the container init for every architecture into ``images/init/build``.

Rules that this script keeps:

- The same source and the same compiler give the same bytes: no debug information, no build id, no
  path of the machine that compiles, no time.
- The binaries are static, so that they run in any image, and are replaced atomically, so that
  builds at the same time do not disturb each other.
- Nothing but the standard library is needed to run it as a script, besides ``ziglang``, which
  brings the compiler and the C library for both architectures.

Run by Hatchling when a wheel or an editable installation is made, and as a script:
``python images/init/build.py [--force]``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "init.c"
NAME = "sealrun-init"
#: OCI's name of an architecture, and the compiler's.
TARGETS = {"amd64": "x86_64-linux-musl", "arm64": "aarch64-linux-musl"}
FLAGS = ("-std=c11", "-Os", "-static", "-s", "-g0", "-Wall", "-Wextra", "-Werror")
LINKER_FLAGS = ("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--gc-sections")


def binary(architecture: str) -> Path:
    """Return where the init of an architecture stands once it is compiled."""
    return HERE / "build" / architecture / NAME


def is_current(architecture: str) -> bool:
    """Tell whether the init is there and no older than what it is made from."""
    try:
        made = binary(architecture).stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return all(made >= source.stat().st_mtime_ns for source in (SOURCE, Path(__file__)))


def compile_init(architecture: str, target: Path) -> None:
    """Compile the init of one architecture.

    Args:
        architecture: a key of ``TARGETS``.
        target: file to write; replaced atomically, mode 0755.

    Raises:
        RuntimeError: the compiler failed; its messages are part of the text.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=target.parent) as scratch:
        draft = Path(scratch) / NAME
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[architecture]),
                *FLAGS,
                *LINKER_FLAGS,
                # Relative to its directory: an absolute path could find its way into the binary.
                *("-o", str(draft), SOURCE.name),
            ],
            cwd=SOURCE.parent,
            env={**os.environ, "ZIG_LOCAL_CACHE_DIR": str(Path(scratch) / "cache")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"cannot compile {SOURCE} for {architecture} with ziglang:\n{done.stderr.strip()}"
            )
        draft.chmod(0o755)
        draft.replace(target)


def build(*, force: bool = False) -> list[Path]:
    """Compile what is missing or older than its source; return all binaries."""
    for architecture in TARGETS:
        if force or not is_current(architecture):
            compile_init(architecture, binary(architecture))
    return [binary(architecture) for architecture in TARGETS]


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, where only the compiler is needed
    pass
else:

    class InitBuildHook(BuildHookInterface[Any]):
        """Compiles ``init.c`` before a wheel or an editable installation is put together."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - Hatchling's signature
            """Compile what is missing or older than its source; an sdist carries source only."""
            if self.target_name == "wheel":
                build()


if __name__ == "__main__":
    for made in build(force="--force" in sys.argv[1:]):
        print(made)  # noqa: T201 - a script that says what it made
