"""Makes a base from a recipe that ships with sealrun, by mmdebstrap.

Rules that this module keeps:

- Two builds on one state of the mirror are the same bytes: versions come from the mirror alone,
  times from one constant, order and owners from ``normal``; logs, caches, ids, host names, account
  databases and everything else that a build leaves behind is dropped.
- The standard library's bytecode is made anew with hash seed 0 in the ``unchecked-hash`` form
  (PEP 552), which holds no time and is not compared with its source when it is loaded. Source and
  bytecode stand in one read-only layer that is verified as a whole, and a Python without bytecode
  would compile its standard library in each run.
- The inventory is dpkg's own status joined with the hashes in the mirror's signed package lists.
- Debian's archive is taken from where this host's APT takes it; a host that has no Debian archive
  uses deb.debian.org.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import EnvironmentFault, UsageError
from sealrun.image import normal, tar, tool
from sealrun.image.model import ENVIRONMENT, MTIME, WORKDIR, Package
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sealrun.image.model import Layer, Platform
    from sealrun.image.store import LayerStore
    from sealrun.progress import Progress, Task

#: Counts up when the same recipe is made into other bytes.
LAYOUT = 1
#: Directories of ours in a container: empty in every base.
OURS = tuple(path.encode().strip(b"/") for path in (WORKDIR, ENVIRONMENT, "/out", "/.sealrun"))
#: Directories that a container needs to be there, because its root is read-only.
MOUNT_POINTS = (
    *OURS,
    *(b"home/run", b"proc", b"sys", b"dev", b"run", b"root", b"mnt"),
)
SCRATCH = (b"tmp", b"var/tmp")

PASSWD = b"""root:x:0:0:root:/root:/usr/sbin/nologin
run:x:10001:10001:sealrun:/home/run:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = b"""root:x:0:
run:x:10001:
nogroup:x:65534:
"""

_LISTS = b"var/lib/apt/lists/"
_STATUS = b"var/lib/dpkg/status"
#: Whole directories of a Debian root that an experiment never needs or that a build colours.
_DROPPED = (
    *(b"boot", b"dev", b"etc/apt", b"etc/cron.d", b"etc/cron.daily", b"etc/dpkg", b"etc/init.d"),
    *(b"etc/logrotate.d", b"etc/opt", b"etc/pam.d", b"etc/rc0.d", b"etc/rc1.d", b"etc/rc2.d"),
    *(b"etc/rc3.d", b"etc/rc4.d", b"etc/rc5.d", b"etc/rc6.d", b"etc/rcS.d", b"etc/security"),
    *(b"etc/skel", b"etc/systemd", b"home", b"media", b"mnt", b"proc", b"root", b"run", b"srv"),
    *(b"sys", b"tmp", b"usr/games", b"usr/local/games", b"usr/share/bash-completion"),
    *(b"usr/share/bug", b"usr/share/debconf", b"usr/share/doc", b"usr/share/doc-base"),
    *(b"usr/share/gdb", b"usr/share/info", b"usr/share/lintian", b"usr/share/locale"),
    *(b"usr/share/man", b"usr/share/menu", b"usr/share/pixmaps", b"usr/share/polkit-1"),
    *(b"var/backups", b"var/cache", b"var/lib/apt", b"var/lib/debconf", b"var/lib/dpkg"),
    *(b"var/lib/pam", b"var/lib/systemd", b"var/log", b"var/mail", b"var/spool", b"var/tmp"),
)
#: Single files likewise; the account databases are replaced.
_DROPPED_FILES = frozenset(
    b"etc/" + name
    for name in (
        *(b".pwd.lock", b"fstab", b"group", b"group-", b"gshadow", b"gshadow-", b"hostname"),
        *(b"hosts", b"machine-id", b"mtab", b"passwd", b"passwd-", b"resolv.conf", b"shadow"),
        *(b"shadow-", b"subgid", b"subgid-", b"subuid", b"subuid-"),
    )
)

#: Debian's Python by suite: a release keeps the upstream version that it came with.
_PYTHONS = {"bookworm": "3.11.2"}
_INSTALL_HINT = (
    "Install mmdebstrap (as root: apt-get install mmdebstrap debian-archive-keyring), or name an "
    'image by digest in sealrun.toml: [image] base = "NAME@sha256:...".'
)
#: Configuration of APT that decides whether the mirror can be reached from here, and nothing else.
_APT_OPTIONS = re.compile(
    r"Acquire::(?:(?:http|https)::(?:Proxy|CaInfo|Timeout)|Retries|Check-Valid-Until|Check-Date)\b"
)


@dataclass(frozen=True)
class Recipe:
    """A recipe in ``images/NAME/recipe.toml``.

    Attributes:
        content: the file's bytes; they are part of the key of what is made from it.
        suite: Debian's code name.
        python: path of the interpreter in the base.
        packages: what is installed beside Debian's essential packages.
    """

    name: str
    content: bytes
    suite: str
    python: str
    packages: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Return the names of the shipped recipes."""
    return tuple(sorted(path.parent.name for path in shipped("images").glob("*/recipe.toml")))


def load(name: str) -> Recipe:
    """Read a shipped recipe.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in names():
        raise UsageError(
            f"there is no base recipe {name!r}",
            hint=f"[image] base takes {', '.join(names())}, an image by digest "
            "(NAME@sha256:...), or dockerfile:PATH.",
        )
    content = shipped("images", name, "recipe.toml").read_bytes()
    document = tomllib.loads(content.decode())
    return Recipe(name, content, document["suite"], document["python"], tuple(document["packages"]))


def shipped_pythons() -> dict[str, str]:
    """Return the Python that each shipped base has, by the recipe's name, without making it."""
    return {name: _PYTHONS[load(name).suite] for name in names()}


def make(
    recipe: Recipe, platform: Platform, layers: LayerStore, scratch: Path, progress: Progress
) -> tuple[Layer, tuple[Package, ...]]:
    """Make a recipe's one layer; return it with the inventory.

    Args:
        scratch: a directory with room for the unpacked base.
        progress: is told what mmdebstrap does.

    Raises:
        EnvironmentFault: mmdebstrap is missing or fails (no network, no room, no privilege).
    """
    with progress.task(f"making the base {recipe.name}") as task:
        _require_mmdebstrap(task)
        with tempfile.TemporaryDirectory(dir=scratch, prefix="base-") as directory:
            archive = Path(directory) / "root.tar"
            tool.run_tool(
                command(recipe, platform, archive, mode(), mirrors(recipe.suite), apt_options()),
                task=task,
                what=f"making the base {recipe.name}",
                env=tool.environment(
                    {"SOURCE_DATE_EPOCH": str(MTIME), "DEBIAN_FRONTEND": "noninteractive"}
                ),
                hint="Check that Debian's mirror can be reached and that the disk has 2 GB free.",
            )
            task.describe("normalising")
            with tarfile.open(archive) as opened:
                members = normal.members_of(opened, lambda _: True)
                packages = inventory(_text(members, _STATUS), _package_lists(members))
                kept = {path: member for path, member in members.items() if keep(path)}
                layer = normal.write_layer(kept | additions(), layers)
    return layer, packages


def command(
    recipe: Recipe,
    platform: Platform,
    archive: Path,
    how: str,
    sources: Sequence[str],
    options: Sequence[str],
) -> list[str]:
    """Return the mmdebstrap command (mmdebstrap(1))."""
    compile_library = (
        'rm -rf $(find "$1/usr" -name __pycache__) && '
        'chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 '
        f"PYTHONHASHSEED=0 {recipe.python} -m compileall -q -f --invalidation-mode unchecked-hash "
        "/usr/lib/python3*"
    )
    chosen = ['APT::Install-Recommends "false"', *options]
    return [
        "mmdebstrap",
        "--variant=essential",
        f"--mode={how}",
        "--format=tar",
        f"--architectures={platform.architecture}",
        # the lists carry the hashes for the inventory; they are dropped from the layer
        "--skip=cleanup/apt/lists",
        # /usr is merged from the start: usrmerge, which would do it later, needs all of Perl
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        f"--include={','.join(sorted({*recipe.packages, 'usr-is-merged'}))}",
        *(f"--aptopt={option}" for option in chosen),
        f"--customize-hook={compile_library}",
        recipe.suite,
        str(archive),
        *sources,
    ]


def mode() -> str:
    """Return how mmdebstrap can make a root here: ``root``, ``unshare`` or ``fakechroot``.

    Raises:
        EnvironmentFault: not at all.
    """
    if os.geteuid() == 0:
        return "root"
    if shutil.which("newuidmap") and _has_subordinate_ids():
        return "unshare"
    if shutil.which("fakechroot") and shutil.which("fakeroot"):
        return "fakechroot"
    raise EnvironmentFault(
        "a base cannot be made by this user: there are no subordinate ids and no fakechroot",
        hint="Have an administrator run: apt-get install uidmap, and add a line for this user to "
        "/etc/subuid and /etc/subgid; or apt-get install fakechroot fakeroot; or name an image by "
        'digest in sealrun.toml: [image] base = "NAME@sha256:...".',
    )


def _has_subordinate_ids() -> bool:
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
        lines = Path("/etc/subuid").read_text("utf-8").splitlines()
    except (OSError, KeyError):
        return False
    return any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines)


def _require_mmdebstrap(task: Task) -> None:
    if shutil.which("mmdebstrap"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise EnvironmentFault("mmdebstrap is not installed", hint=_INSTALL_HINT)
    task.describe("installing mmdebstrap through apt-get")
    env = tool.environment({"DEBIAN_FRONTEND": "noninteractive"})
    what = "installing mmdebstrap"
    install = ["apt-get", "install", "--yes", "--no-install-recommends"]
    wanted = ["mmdebstrap", "debian-archive-keyring"]
    try:
        tool.run_tool([*install, *wanted], task=task, what=what, env=env)
    except EnvironmentFault:
        # A fresh machine has no package lists yet.
        tool.run_tool(["apt-get", "update"], task=task, what=what, env=env, hint=_INSTALL_HINT)
        tool.run_tool([*install, *wanted], task=task, what=what, env=env, hint=_INSTALL_HINT)


def _ask(*argv: str) -> str:
    """Return what a program prints; nothing where it is missing or fails."""
    try:
        done = subprocess.run(
            argv, env=tool.environment(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout


def mirrors(suite: str) -> list[str]:
    """Return APT source lines for a suite: this host's where it has Debian's archive."""
    fields = "$(ORIGIN)|$(CODENAME)|$(RELEASE)|$(REPO_URI)|$(COMPONENT)"
    text = _ask("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    return source_lines(text, suite)


def source_lines(targets: str, suite: str) -> list[str]:
    """Choose Debian's own archives for a suite among APT's index targets.

    Args:
        targets: lines of origin, code name, release, URI and component, separated by ``|``.
        suite: Debian's code name.
    """
    found: list[str] = []
    for line in targets.splitlines():
        origin, codename, release, uri, component = line.split("|")
        ours = origin == "Debian" and component == "main"
        if ours and codename in (suite, f"{suite}-updates", f"{suite}-security"):
            found.append(f"deb {uri.rstrip('/')} {release} main")
    if any(line.split()[2] == suite for line in found):
        return sorted(set(found))
    archive = "http://deb.debian.org"
    return [
        f"deb {archive}/debian {suite} main",
        f"deb {archive}/debian {suite}-updates main",
        f"deb {archive}/debian-security {suite}-security main",
    ]


def apt_options() -> list[str]:
    """Return this host's APT options that decide whether a mirror can be reached."""
    lines = _ask("apt-config", "dump").splitlines()
    return [line.rstrip(";") for line in lines if _APT_OPTIONS.match(line) and '""' not in line]


def keep(path: bytes) -> bool:
    """Say whether a path of a Debian root belongs into a base."""
    if path == _STATUS:
        return True
    if path in _DROPPED_FILES:
        return False
    return not any(path == d or path.startswith(d + b"/") for d in _DROPPED)


def additions() -> dict[bytes, normal.Member]:
    """Return what every recipe's base holds beside Debian's files."""
    accounts = [normal.file(b"etc/passwd", PASSWD), normal.file(b"etc/group", GROUP)]
    return mount_points() | {member.path: member for member in accounts}


def mount_points() -> dict[bytes, normal.Member]:
    """Return the directories that our containers need to be there."""
    members = [normal.directory(path) for path in MOUNT_POINTS]
    members += [normal.directory(path, 0o1777) for path in SCRATCH]
    return {member.path: member for member in members}


def _text(members: Mapping[bytes, normal.Member], path: bytes) -> str:
    member = members.get(path)
    if member is None or member.kind != tar.FILE or member.open is None:
        raise EnvironmentFault(f"the new base has no {path.decode()}: mmdebstrap left it out")
    with member.open() as content:
        return content.read().decode("utf-8", "replace")


def _package_lists(members: Mapping[bytes, normal.Member]) -> list[str]:
    return [
        _text(members, path)
        for path in sorted(members)
        if path.startswith(_LISTS) and path.endswith(b"_Packages")
    ]


def inventory(status: str, lists: Iterable[str]) -> tuple[Package, ...]:
    """Join dpkg's status with the hashes of the mirror's package lists.

    Args:
        status: ``/var/lib/dpkg/status``.
        lists: the ``Packages`` files of the mirror (deb822 paragraphs).
    """
    installed = {
        (p["Package"], p["Version"])
        for p in paragraphs(status, ("Package", "Version", "Status"))
        if p.get("Status", "").endswith(" installed")
    }
    hashes: dict[tuple[str, str], str] = {}
    for text in lists:
        for p in paragraphs(text, ("Package", "Version", "SHA256")):
            if (p["Package"], p["Version"]) in installed and "SHA256" in p:
                hashes[p["Package"], p["Version"]] = p["SHA256"]
    return tuple(Package(*pair, hashes.get(pair)) for pair in sorted(installed))


def paragraphs(text: str, wanted: tuple[str, ...]) -> Iterable[dict[str, str]]:
    """Yield the wanted fields of each deb822 paragraph that has the first two (deb822(5))."""
    field = re.compile(rf"^({'|'.join(wanted)}): (.*)$", re.MULTILINE)
    for paragraph in text.split("\n\n"):
        found = dict(field.findall(paragraph))
        if all(name in found for name in wanted[:2]):
            yield found
