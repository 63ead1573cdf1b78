"""``sealrun verify``: is the workspace what HEAD says, byte for byte?"""

from __future__ import annotations

from typing import Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status


def command(
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Compare every tracked file with HEAD by content, and say what differs.

    Git's own opinion is not asked: an edit of the same size with its time put back, or a file that
    an index flag hides, is found. Exits with 121 when something differs. (Whether the record was
    tampered with, sealrun alerts --verify-chain says.)

    Example:  sealrun verify
    """
    from sealrun.findings import text
    from sealrun.git import Repository
    from sealrun.leftovers import identify
    from sealrun.state import Places
    from sealrun.tree import Spool, read_commit
    from sealrun.workspace import compare, replaced_objects, unified_diff

    voice = console.current()
    repository = Repository.here()
    places = Places.of_user()
    identity = identify(repository)
    spool = Spool(places.spool(identity), repository.algorithm)
    tree = read_commit(repository, repository.resolve(), spool)
    comparison = compare(tree, repository)
    replaced = replaced_objects(repository, tree)
    ok = not (comparison.differences or replaced)
    if json:
        voice.json(
            {
                "commit": tree.commit,
                "files": comparison.files,
                "bytes": comparison.size,
                "differences": [
                    {"path": text(d.path), "kind": d.kind.value, "hidden": d.hidden, "why": d.why}
                    for d in comparison.differences
                ],
                "configured": [
                    {"setting": str(c.setting), "paths": [text(path) for path in c.paths]}
                    for c in comparison.configured
                ],
                "replaced_objects": list(replaced),
                "ok": ok,
            }
        )
        return Status.OK if ok else Status.REFUSED
    for difference in comparison.differences:
        hidden = ", hidden from git by an index flag" if difference.hidden else ""
        voice.data(console.printable(f"{difference.kind.value}: {text(difference.path)}{hidden}"))
        if difference.why:
            voice.data(console.printable(f"  {difference.why}"))
        if difference.kind == "modified":
            for line in unified_diff(tree, repository.workspace, difference.path):
                voice.data(console.printable(f"  {line}"))
    for oid in replaced:
        voice.data(f"replaced: git shows another object for {oid}")
    for configured in comparison.configured:
        voice.say(
            console.printable(
                f"{len(configured.paths)} files are as git checks them out here by "
                f"{configured.setting}, {text(configured.paths[0])} first"
            )
        )
    voice.say(
        f"{comparison.files} files, {comparison.size} bytes compared with {tree.commit[:7]}: "
        + ("all equal" if ok else f"{len(comparison.differences)} differ")
    )
    return Status.OK if ok else Status.REFUSED
