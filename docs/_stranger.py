"""Makes ``explanation/stranger.md``: somebody with a bare Debian and the README, told by a machine.

Run it as root on Debian or Ubuntu: ``python3 docs/_stranger.py``. It needs mmdebstrap, slirp4netns
and util-linux, a mirror of Debian and PyPI, and some minutes.

Rules that this script keeps:

- What is typed comes from README.md, from its section "Install and start", word for word and in its
  order. What a stranger brings himself (a repository, a tool that rewrites files) is in ``OWN`` and is
  marked as his in the transcript.
- The machine is a fresh minimal Debian in namespaces of its own: mounts, processes, network. Nothing
  of it stays, and nothing of this machine is in it but the kernel, the resolver, the certificates that
  this machine trusts and the settings of its package clients.
- What is shown is what was printed. Only the middle of long outputs is left out, visibly, and whatever
  names this machine is not shown: the script fails if it finds such a name.
- A step whose exit status is not the expected one ends the script: no transcript is written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import IO

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
PAGE = HERE / "explanation" / "stranger.md"
SECTION = "## Install and start"
#: Lines of an output that are shown before and after the gap.
SHOWN = (2, 4)
#: Variables of package clients that hold where from and how, and no secret of their own.
_CLIENTS = re.compile(
    r"^(https?_proxy|no_proxy|PIP_INDEX_URL|UV_DEFAULT_INDEX|UV_INDEX_URL)$", re.IGNORECASE
)
_CERTIFICATES = Path("/usr/local/share/ca-certificates")

_NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child")
_ENVIRONMENT = (
    "HOME=/root",
    "USER=root",
    "TERM=dumb",
    "LC_ALL=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)
_MOUNTS = (
    "hostname debian",
    "mount --make-rprivate /",
    'mount --bind "$root" "$root"',
    'cd "$root"',
    "mount -t proc proc proc",
    # Of this network namespace: an engine looks there for its bridge.
    "mount -t sysfs sysfs sys",
    "mount --rbind /sys/fs/cgroup sys/fs/cgroup",
    "mount --rbind /dev dev",
    "mount -t tmpfs tmpfs run",
    "mount -t tmpfs -o mode=1777 tmpfs tmp",
    "ip link set lo up",
)

TRAIN = """\
import time

SCALAR_LR = 0.5
for step in range(20):
    time.sleep(0.1)
print(f"val_bpb: {2 - SCALAR_LR:.3f}")
"""


@dataclass(frozen=True)
class Step:
    """One thing that is typed.

    Attributes:
        command: as typed.
        status: the exit status that it has to have.
        before: what the page says before it; empty for nothing.
    """

    command: str
    status: int = 0
    before: str = ""


#: What the stranger does in his own repository, before the commands of the README that need one.
OWN = (
    Step(
        "mkdir ~/experiment && cd ~/experiment && git init -q",
        before="A repository of his own, with a script that prints a metric:",
    ),
    Step(f"cat > train.py <<'END'\n{TRAIN}END"),
    Step("git config --global user.name Stranger && git config --global user.email s@example.org"),
    Step("git add train.py && git commit -q -m 'baseline'"),
)
#: What happens to him, and what he then types; the commands are in the README too.
STRUCK = (
    Step(
        "(sleep 1; sed -i 's/SCALAR_LR = 0.5/SCALAR_LR = 0.3/' train.py) &",
        before="A tool that nobody thinks of rewrites the file while a run goes on. The first caught mutation:",
    ),
    Step("sealrun run -- python3 train.py"),
    Step("sealrun alerts"),
    Step(
        "sealrun run -- python3 train.py",
        121,
        "The file is still changed. A run now would not test the commit, and is refused:",
    ),
    Step("sealrun log"),
)


def commands(readme: str) -> list[str]:
    """Return the commands of the README's section on installing, in order, comments left out."""
    _, _, rest = readme.partition(f"{SECTION}\n")
    section = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s+#.*", "", line).rstrip() for line in found if line.strip()]


def story(readme: str) -> Iterator[Step]:
    """Yield everything that is typed, in order.

    Raises:
        ValueError: the section has no commands, or none that runs an experiment.
    """
    said = commands(readme)
    if "sealrun run -- python3 train.py" not in said:
        raise ValueError(f"README.md: {SECTION!r} does not say how to run an experiment")
    started = False
    for command in said:
        if command.startswith("sealrun warm") and not started:
            started = True
            yield from OWN
            yield Step(command, before="From here on the README again:")
        elif command == "sealrun show RUN":
            yield Step(
                command.replace("RUN", "$(sealrun log --json | grep -om1 '01[0-9A-Z]\\{24\\}')")
            )
        else:
            yield Step(command)
    yield from STRUCK


def shortened(output: str) -> str:
    """Return an output with its middle left out, visibly, if it is long."""
    lines = output.rstrip("\n").splitlines()
    first, last = SHOWN
    if len(lines) <= 24:  # noqa: PLR2004 - a screen's height
        return "\n".join(lines)
    gap = f"[… {len(lines) - first - last} lines …]"
    return "\n".join([*lines[:first], gap, *lines[-last:]])


def told(step: Step, output: str, status: int) -> str:
    """Return a step as the page shows it."""
    typed = "\n".join(
        f"{'> ' if number else '# '}{line}" for number, line in enumerate(step.command.splitlines())
    )
    end = f"\n(exit status {status})" if status else ""
    before = f"{step.before}\n\n" if step.before else ""
    shown = shortened(output)
    return f"{before}```text\n{typed}\n{shown}{end}".rstrip() + "\n```\n"


class Machine:
    """A fresh Debian, entered once: a shell that stays, so that ``cd`` and ``export`` hold."""

    def __init__(self, root: Path) -> None:
        self._end = f"end-{os.urandom(8).hex()}"
        clients = [f"{k}={v}" for k, v in os.environ.items() if _CLIENTS.match(k)]
        shell = [
            "env",
            "-i",
            *_ENVIRONMENT,
            *clients,
            "sh",
            "-c",
            "cd ~/sealrun && exec bash --norc",
        ]
        inside = " && ".join([*_MOUNTS, "echo here >&2", f"exec chroot . {shlex.join(shell)}"])
        self._shell = subprocess.Popen(
            [*_NAMESPACES, "sh", "-ec", f"root=$1; {inside}", "stranger", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
        )
        if self._printed().readline() != "here\n":
            raise RuntimeError("the namespaces could not be made: this needs root")
        # slirp4netns(1): a network in user space, which changes nothing on this machine.
        (child,) = (
            Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text().split()
        )
        self._network = subprocess.Popen(
            ["slirp4netns", "--configure", "--mtu=65520", child, "tap0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def type(self, command: str) -> tuple[str, int]:
        """Type a command; return what it printed and its exit status."""
        if self._shell.stdin is not None:
            self._shell.stdin.write(
                f"{{ {command}\n}} </dev/null\nprintf '\\n{self._end} %d\\n' $?\n"
            )
            self._shell.stdin.flush()
        lines: list[str] = []
        for line in self._printed():
            if line.startswith(self._end):
                return "".join(lines).removesuffix("\n"), int(line.split()[1])
            lines.append(line)
            sys.stderr.write(line)
        raise RuntimeError("the machine went away:\n" + "".join(lines[-20:]))

    def _printed(self) -> IO[str]:
        if self._shell.stdout is None:
            raise RuntimeError("the shell has no output")
        return self._shell.stdout

    def close(self) -> None:
        """End every process of the machine and its network."""
        self._network.terminate()
        self._shell.kill()
        self._shell.wait()
        self._network.wait()


@contextlib.contextmanager
def debian(mirror: str) -> Generator[Path]:
    """Make a minimal Debian with a checkout in it, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="stranger-", dir="/var/tmp") as directory:
        root = Path(directory) / "root"
        subprocess.run(
            ["mmdebstrap", "--variant=minbase", "--quiet", "bookworm", str(root), mirror],
            check=True,
        )
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        (root / "etc/hostname").write_text("debian\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost debian\n")
        if _CERTIFICATES.is_dir():
            shutil.copytree(
                _CERTIFICATES, root / _CERTIFICATES.relative_to("/"), dirs_exist_ok=True
            )
        # By transport: a clone of the same disk would borrow objects that are not there inside.
        checkout = str(root / "root/sealrun")
        subprocess.run(["git", "clone", "-q", f"file://{CHECKOUT}", checkout], check=True)
        subprocess.run(["git", "-C", checkout, "remote", "remove", "origin"], check=True)
        yield root
        # What the engine left mounted is gone with its namespace.


def names_of_this_machine() -> set[str]:
    """Return words that must not stand in the page."""
    addresses = set(re.findall(r"\d+\.\d+\.\d+\.\d+", Path("/etc/resolv.conf").read_text()))
    return {socket.gethostname(), str(CHECKOUT), *addresses} - {"debian", "localhost", "127.0.0.1"}


def _ended(_number: int, _frame: object) -> None:
    sys.exit(143)


def main() -> int:
    """Make the page anew."""
    parser = argparse.ArgumentParser(description="Make docs/explanation/stranger.md anew.")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _ended)
    steps = list(story((CHECKOUT / "README.md").read_text("utf-8")))
    parts: list[str] = []
    began = time.monotonic()
    with debian(options.mirror) as root:
        machine = Machine(root)
        try:
            for step in steps:
                output, status = machine.type(step.command)
                parts.append(told(step, output, status))
                if status != step.status:
                    sys.stderr.write(f"\n{step.command}: status {status}, not {step.status}\n")
                    return 1
        finally:
            machine.close()
    minutes = (time.monotonic() - began) / 60
    text = _HEAD.format(minutes=minutes) + "\n".join(parts)
    for name in names_of_this_machine():
        if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text):
            sys.stderr.write(f"\nthe transcript names this machine: {name}\n")
            return 1
    options.page.write_text(text, "utf-8")
    return 0


_HEAD = """# A stranger's first hour

Somebody has a bare Debian 12, root, the checkout in `~/sealrun`, and the README. This is everything typed and what was
printed, {minutes:.0f} minutes in all; the middle of long outputs is left out where a line says so. `docs/_stranger.py` made
this page: it takes the commands from the README's section "Install and start".

"""

if __name__ == "__main__":
    sys.exit(main())
