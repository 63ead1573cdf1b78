"""Composes techniques from a seed, each of a writer, a path, a phase and a way of hiding.

Rules that this module keeps:

- The same seed composes the same techniques, in any version of Python that we support.
- What must be found follows from the parts, never from what was found.
- Parts that cannot go together are never composed; nothing is tried and left out afterwards.
"""

from __future__ import annotations

import random
import shlex
from dataclasses import dataclass

from mutations.technique import RECORDED, By, Phase, Technique, python


@dataclass(frozen=True)
class Writer:
    """One way of changing a file, ``{path}`` standing for it.

    Attributes:
        program: who must be named.
        leaves_file: a regular file stands at the path afterwards.
    """

    name: str
    script: str
    program: str
    leaves_file: bool = True


@dataclass(frozen=True)
class Hiding:
    """Something done so that a change is not seen; ``{path}`` is the file, ``{act}`` the change.

    Attributes:
        also: what finds it besides content and event.
        content: the changed bytes still stand there at the end.
        file: it needs a file that stands there afterwards.
        shared: it opens the file for writing itself.
    """

    name: str
    script: str
    also: tuple[By, ...] = ()
    content: bool = True
    file: bool = False
    shared: bool = False


_PYTHON = (
    "import os, sys\nf = os.open(sys.argv[1], os.O_RDWR)\nold = os.read(f, 1)\n"
    "os.pwrite(f, bytes([old[0] ^ 1]), 0)\nos.close(f)"
)
_RENAME = (
    "import os, sys\nat = os.fsencode(sys.argv[1])\nnew = open(at, 'rb').read() + b'#'\n"
    "open(at + b'.tmp', 'wb').write(new)\nos.rename(at + b'.tmp', at)"
)
_MAPPED = (
    "import mmap, os, sys\nwith open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n"
    " m[0] ^= 1"
)

WRITERS = (
    Writer("echo", "echo '# x' >> {path}", "bash"),
    Writer("printf", "printf 'other\\n' > {path}", "bash"),
    Writer("sed", "sed -i '1s/^/#/' {path}", "sed"),
    Writer("perl", "perl -pi -e 's/^/#/ if $. == 1' {path}", "perl"),
    Writer("tee", "echo '# x' | tee -a {path} >/dev/null", "tee"),
    Writer("dd", "printf '~' | dd of={path} conv=notrunc bs=1", "dd"),
    Writer("truncate", "truncate -s +7 {path}", "truncate"),
    Writer("cp", "cp prepare.py {path}", "cp"),
    Writer("mv", "cp prepare.py .t\nmv .t {path}", "mv"),
    Writer("rsync", "rsync --checksum prepare.py {path}", "rsync"),
    Writer("rsync in place", "rsync --checksum --inplace prepare.py {path}", "rsync"),
    Writer("python", python(_PYTHON) + " {path}", "python"),
    Writer("python, by a rename", python(_RENAME) + " {path}", "python"),
    Writer("python, by a mapping", python(_MAPPED) + " {path}", "python"),
    Writer("rm", "rm {path}", "rm", leaves_file=False),
    Writer("ln", "ln -sf /dev/null {path}", "ln", leaves_file=False),
    Writer("mv away", 'mv {path} "$OUT/gone"', "mv", leaves_file=False),
)

#: Paths as the shell writes them. ``prepare.py`` is what writers copy from.
PATHS = {
    "train.py": b"train.py",
    "pkg/deep/model.py": b"pkg/deep/model.py",
    "weights.bin": b"weights.bin",
    "config.json": b"config.json",
    "pkg/caf$'\\xe9'.py": b"pkg/caf\xe9.py",
}

HIDINGS = (
    Hiding("", "{act}"),
    Hiding(
        "time put back",
        'touch -r {path} "$OUT/r"\n{act}\ntouch -r "$OUT/r" {path}',
        file=True,
        # touch(1) opens the file for writing.
        shared=True,
    ),
    Hiding(
        "assume-unchanged",
        "git update-index --assume-unchanged {path}\n{act}",
        also=(By.FLAG,),
    ),
    Hiding(
        "skip-worktree",
        "git update-index --skip-worktree {path}\n{act}",
        also=(By.FLAG,),
    ),
    Hiding(
        "clean filter",
        "git config filter.x.clean 'git show HEAD:%f'\necho '* filter=x' > .git/info/attributes\n{act}",
        also=(By.CONFIGURATION, By.INFO),
    ),
    Hiding("other namespaces", "unshare --mount --pid --net --fork bash -ec {quoted}"),
    Hiding("new session", "setsid -w bash -ec {quoted}"),
    Hiding("storm", "{act}\nfor n in $(seq 200); do echo $n >> run.log; done"),
    Hiding(
        "undone after a while",
        "{act}\n" + RECORDED + "git checkout -q -- {path}",
        content=False,
    ),
)


def compose(seed: int, count: int) -> tuple[Technique, ...]:
    """Return techniques, the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    return tuple(_one(dice, seed, number) for number in range(count))


def _one(dice: random.Random, seed: int, number: int) -> Technique:
    writer, where = dice.choice(WRITERS), dice.choice(list(PATHS))
    phase = dice.choice(list(Phase))
    fitting = [one for one in HIDINGS if writer.leaves_file or not one.file]
    hiding = dice.choice(fitting)
    act = writer.script.replace("{path}", where)
    script = hiding.script.replace("{path}", where).replace("{quoted}", shlex.quote(act + "\n:"))
    names = (f"{seed}.{number}", writer.name, PATHS[where].decode("latin-1"), phase, hiding.name)
    return Technique(
        name=", ".join(filter(None, names)),
        act=script.replace("{act}", act),
        writer=writer.program,
        found=_found(hiding),
        path=PATHS[where],
        phase=phase,
        shared=hiding.shared,
        final=hiding.content,
    )


def _found(hiding: Hiding) -> tuple[By, ...]:
    content = (By.CONTENT,) if hiding.content else ()
    return (*content, By.EVENT, *hiding.also)
