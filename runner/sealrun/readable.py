"""Whether the experiment's user can read what is mounted for it, and what makes it readable.

Rules that this module keeps:

- The caller's files are never changed: no mode, no owner, no access list.
- What the experiment could not read is found before it starts: half a data set is no data.
- Only what is needed is given: a supplementary group of the caller's where that group alone opens
  the data, another owner in the container's view of the mount where the caller is root.
- Directories above a mount do not count: a home of mode 0700 is no obstacle.
- Another owner's view is looked at as it will be: who gains an owner's files in it loses their own.
"""

from __future__ import annotations

import os
import shlex
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import Refused
from sealrun.sandbox.protocol import Mount

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from sealrun.data import Dataset

_READ, _SEARCH = 0o4, 0o1
_ACL = "system.posix_acl_access"
_NAMED_USER, _MASK = 0x02, 0x10


@dataclass(frozen=True)
class Access:
    """What a user finds at and below a path.

    Attributes:
        groups: supplementary groups without which something could not be read.
        closed: the first path that stays closed with them; None where everything is open.
        owners: uid and gid of each file's owner that stays closed.
    """

    groups: frozenset[int] = frozenset()
    closed: bytes | None = None
    owners: frozenset[tuple[int, int]] = frozenset()


def needs(status: os.stat_result, user: tuple[int, int], groups: Collection[int]) -> int | None:
    """Return what a user needs in order to read a file or list a directory (path_resolution(7)).

    Args:
        user: uid and gid.
        groups: the supplementary groups that the user could have.

    Returns:
        0 for nothing, a group's id for that group, None where none of them opens it. Group 0 is
        never lent: in a container it may own what the image holds.
    """
    wanted = _READ | (_SEARCH if stat.S_ISDIR(status.st_mode) else 0)
    uid, gid = user
    if status.st_uid == uid:
        bits = status.st_mode >> 6
    elif status.st_gid == gid:
        bits = status.st_mode >> 3
    elif status.st_gid and status.st_gid in groups:
        if (status.st_mode >> 3) & wanted == wanted:
            # Without the group it may be open to everybody.
            return 0 if status.st_mode & wanted == wanted else status.st_gid
        return None
    else:
        bits = status.st_mode
    return 0 if bits & wanted == wanted else None


def access(
    source: Path,
    user: tuple[int, int],
    groups: Collection[int] = (),
    *,
    shown_from: tuple[int, int] | None = None,
) -> Access:
    """Look at everything at and below a path.

    Args:
        user: uid and gid.
        groups: the supplementary groups that the user could have.
        shown_from: the owner that is swapped with the user in the view that is looked at.

    Raises:
        OSError: a directory cannot be listed by the caller.
    """
    # On the disk an access list names whom the view shows as the user.
    named = user[0] if shown_from is None else shown_from[0]
    lent: set[int] = set()
    owners: set[tuple[int, int]] = set()
    first: bytes | None = None
    for path, status in _each(os.fsencode(source)):
        needed = needs(_swapped(status, user, shown_from), user, groups)
        if needed:
            lent.add(needed)
        elif needed is None and not _listed(path, status, named):
            first = first or path
            owners.add((status.st_uid, status.st_gid))
    return Access(frozenset(lent), first, frozenset(owners))


def _swapped(
    status: os.stat_result, user: tuple[int, int], shown_from: tuple[int, int] | None
) -> os.stat_result:
    if shown_from is None:
        return status
    uids = {user[0]: shown_from[0], shown_from[0]: user[0]}
    gids = {user[1]: shown_from[1], shown_from[1]: user[1]}
    uid, gid = status.st_uid, status.st_gid
    return os.stat_result((*status[:4], uids.get(uid, uid), gids.get(gid, gid), *status[6:10]))


def _listed(path: bytes, status: os.stat_result, uid: int) -> bool:
    """Tell whether a file's access list opens it to a user by name (acl(5), posix_acl_xattr.h)."""
    try:
        content = os.getxattr(path, _ACL, follow_symlinks=False)
    except OSError:
        return False
    wanted = _READ | (_SEARCH if stat.S_ISDIR(status.st_mode) else 0)
    # A version, then entries of tag, permissions and id, little endian.
    entries = list(struct.iter_unpack("<HHI", content[4 : 4 + (len(content) - 4) // 8 * 8]))
    mask = next((bits for tag, bits, _ in entries if tag == _MASK), 0)
    if status.st_uid == uid:
        # Its owner's own bits come first.
        return False
    return any(
        tag == _NAMED_USER and name == uid and bits & mask & wanted == wanted
        for tag, bits, name in entries
    )


def _each(path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    paths = [path]
    while paths:
        path = paths.pop()
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            yield path, status
            with os.scandir(path) as listing:
                # Links are not files: where they lead is another path's matter.
                paths += [entry.path for entry in listing if not entry.is_symlink()]
        elif stat.S_ISREG(status.st_mode):
            yield path, status


def mounted(dataset: Dataset, user: tuple[int, int]) -> tuple[Mount, frozenset[int]]:
    """Return the mount of some data for the experiment's user, and the groups that it needs.

    Raises:
        Refused: the user could not read all of it, and nothing makes it readable.
    """
    uid = os.geteuid()
    plain = Mount(dataset.source, dataset.target)
    own = uid != 0 and user[0] == uid
    try:
        found = access(dataset.source, user, os.getgroups() if own else ())
    except OSError as error:
        raise Refused(f"data mount {dataset.source}: {error.strerror}") from error
    # The caller's own uid: what access lists open to us, they open to the experiment.
    if found.closed is None or own:
        return plain, found.groups
    if uid == 0 and len(found.owners) == 1:
        owner = min(found.owners)
        view = access(dataset.source, user, shown_from=owner)
        if view.closed is None:
            return Mount(dataset.source, dataset.target, shown_from=owner), view.groups
        raise closed(dataset.source, os.fsdecode(view.closed), user)
    raise closed(dataset.source, os.fsdecode(found.closed), user)


def closed(source: Path, path: str, user: tuple[int, int], why: str = "") -> Refused:
    """Return the error for data that the experiment's user cannot read.

    Args:
        path: the first of its files that is closed.
        why: what stands in the way of showing it all the same, as the end of a sentence.
    """
    name = shlex.quote(str(source))
    return Refused(
        f"data mount {source}: the experiment runs as uid {user[0]}, which cannot read {path}{why}",
        hint=f"chmod -R a+rX {name} opens it to every user of this machine, "
        f"setfacl -R -m u:{user[0]}:rX {name} to the experiment's user alone.",
    )
