"""``sealrun warm``: everything slow, once, before the loop starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Refused, Status

if TYPE_CHECKING:
    from sealrun.caches.store import Seed
    from sealrun.fetch.prepare import Fetched
    from sealrun.git import Repository
    from sealrun.image.model import SealedImage
    from sealrun.policy import EffectivePolicy
    from sealrun.smoke import Smoke
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: Lines of a command's output that are shown.
_SHOWN = 12


def command(
    argv: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND...]", help="Start this too, until the first line that it prints."
        ),
    ] = None,
    rev: Annotated[
        str, typer.Option("--rev", help="The commit to make ready for.", metavar="REV")
    ] = "HEAD",
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove the image from the engine and load all of it again."),
    ] = False,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=86400,
            help="How long COMMAND gets to print a line, or to compile.",
            metavar="SECONDS",
        ),
    ] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> int:
    """Make base and environment of a commit, load them into the engine, fetch what it names.

    Says beforehand what it takes, and refuses what the disk cannot hold. Killed, it goes on where it
    was; of two at once one does the work. Runs again in a moment when all is there.

    With a COMMAND it also starts that as a run would, sealed and verified, until it prints a line,
    ends, or its time is over. That is no run: it is on no record and has no verdict. Where it fails,
    the status is 125. Under a policy with [sandbox] caches = "warmed" it goes on after its first
    line, and what it compiled is what the caches of later runs begin with.

    Example:  sealrun warm -- uv run train.py
    """
    from sealrun.data import HashCache
    from sealrun.engine import connect
    from sealrun.fetch.prepare import prepare as fetches
    from sealrun.gc.images import note_warmed
    from sealrun.gc.keeping import keeping
    from sealrun.git import Repository
    from sealrun.image.interpreter import pin_line
    from sealrun.image.load import load, reload
    from sealrun.image.prepare import prepare
    from sealrun.image.seal import seal
    from sealrun.image.tree_layer import TreeLayers
    from sealrun.leftovers import identify
    from sealrun.policy import committed_policy
    from sealrun.secrets import SEEN, Seen, in_commit
    from sealrun.smoke import smoke
    from sealrun.state import Places
    from sealrun.tree import Spool, read_commit

    voice = console.current()
    repository = Repository.here()
    places = Places.of_user()
    identity = identify(repository)
    with keeping(places):
        tree = read_commit(
            repository,
            repository.resolve(rev),
            Spool(places.spool(identity), repository.algorithm),
        )
        for line in in_commit(tree, Seen(places.cache / SEEN)).warnings():
            voice.say(line)
        effective = committed_policy(tree)
        policy = effective.policy
        engine = connect(places)
        base, environment = prepare(tree, policy.image, places, engine, voice, make=True)
        # A token is given away by an approved policy alone: whoever can commit could name any server.
        asked = any(one.token is not None for one in policy.fetch)
        may, keeps = True, True
        if asked or argv:
            may, keeps = _approved(tree, effective, repository, places, identity)
        fetched = fetches(policy, tree, places, voice, make=True, tokens=may)
        sealed = seal(tree, base, environment, TreeLayers(places.trees(identity)), voice)
        note_warmed(sealed.image, places)
        loading = (reload if repair else load)(sealed.image, engine.client, progress=voice)
        tried = None
        if argv:
            if not may:
                raise Refused(
                    "the command was not started: the policy of this commit is not the approved one",
                    hint="sealrun policy diff shows what this commit changes.",
                )
            cache = HashCache(places.cache / "hashes.sqlite")
            data = cache.manifest(policy.data, Path.home(), voice)
            tried = smoke(
                argv,
                seconds,
                tree=tree,
                policy=policy,
                sealed=sealed,
                loading=loading,
                engine=engine,
                datasets=(*data, *(one.dataset for one in fetched)),
                places=places,
                repository_id=identity,
                listener=voice,
                unkept=None if keeps else "a protected file is not the approved one",
            )
    if json:
        voice.json(
            {
                "smoke": None if tried is None else _smoke_document(tried),
                "commit": tree.commit,
                "image_id": sealed.image.image_id,
                "engine_image": loading.engine_image,
                "base": base.origin,
                "python": base.python,
                "environment": environment.source,
                "packages": [[p.name, p.version] for p in environment.packages],
                "loading": {"way": loading.way, "sent": loading.sent},
                "fetched": [
                    {
                        "what": one.record.label,
                        "from": one.record.server,
                        "revision": one.record.revision,
                        "digest": one.record.digest,
                        "target": one.wanted.target,
                        "files": one.record.files,
                        "size": one.record.size,
                        "made": one.made,
                    }
                    for one in fetched
                ],
            }
        )
        return Status.OK if tried is None or tried.well else Status.FAULT
    for one in fetched:
        _tell(one)
    if pin := pin_line(base):
        voice.say(f"  what [python] in sealrun.lock binds the interpreter by: {pin}", level=1)
    voice.say(_summary(sealed.image, tree.commit))
    return Status.OK if tried is None else _tell_smoke(tried)


def _smoke_document(tried: Smoke) -> dict[str, object]:
    return {
        "line": tried.line,
        "exit_status": tried.exit_status,
        "seconds": tried.seconds,
        "fault": tried.fault,
        "caches": _caches_document(tried.kept),
    }


def _caches_document(kept: Seed | str | None) -> dict[str, object] | None:
    if kept is None:
        return None
    if isinstance(kept, str):
        return {"digest": None, "why": kept}
    return {
        "digest": kept.digest,
        "files": kept.files,
        "size": kept.size,
        "skipped": kept.skipped,
    }


def _tell_caches(kept: Seed | str | None) -> None:
    voice = console.current()
    if isinstance(kept, str):
        voice.say(f"no compile caches were kept: {kept}", level=-1)
    elif kept is not None:
        left = f", {kept.skipped} that cannot be kept left out" if kept.skipped else ""
        voice.say(
            f"kept for later runs: {kept.files} compiled files, {kept.size / 1e6:.1f} MB{left}: "
            f"{kept.digest[:12]}"
        )


def _tell_smoke(tried: Smoke) -> Status:
    voice = console.current()
    for line in tried.output.rstrip("\n").split("\n")[-_SHOWN:]:
        voice.say(f"  | {line}")
    if not tried.well:
        why = tried.fault or f"it ended with status {tried.exit_status}"
        voice.say(f"error: the command failed after {tried.seconds:.1f} s: {why}", level=-1)
        voice.say("hint: a run would end like this too; see its last lines above.", level=-1)
        _tell_caches(tried.kept)
        return Status.FAULT
    if tried.exit_status == 0:
        voice.say(f"it ended by itself after {tried.seconds:.1f} s")
    elif tried.line is None:
        voice.say(f"it printed no line within {tried.seconds:.0f} s and was ended")
    else:
        when = "printed its first line" if tried.kept is None else "was still at work"
        voice.say(f"it {when} after {tried.seconds:.1f} s and was ended")
    _tell_caches(tried.kept)
    return Status.OK


def _approved(
    tree: CommittedTree,
    effective: EffectivePolicy,
    repository: Repository,
    places: Places,
    identity: str,
) -> tuple[bool, bool]:
    """Tell whether a commit's policy is approved, and its protected files too.

    Where nothing is approved yet, both are.
    """
    import contextlib

    from sealrun.approvals import compared
    from sealrun.ledger import open_ledger
    from sealrun.policy import changed
    from sealrun.reasons import Reason

    pinned = bool(repository.pinned())
    ledger = open_ledger(places.ledger(identity), identity, pinned_refs_exist=pinned)
    if ledger is None:
        return True, True
    with contextlib.closing(ledger):
        found = compared(ledger, tree, effective)
    why = () if found.approved is None else changed(found.approved, found.candidate)
    return Reason.POLICY_CHANGED not in why, not why


def _tell(one: Fetched) -> None:
    from sealrun.fetch.wanted import COMMIT, pin_line
    from sealrun.policy import HubFetch

    voice = console.current()
    record, entry = one.record, one.wanted.entry
    size = f"{record.files} files, {record.size / 1e6:.1f} MB"
    voice.say(
        f"{'fetched' if one.made else 'here'}: {record.label}: {size}, at {one.wanted.target}"
    )
    if isinstance(entry, HubFetch) and one.wanted.pin is None:
        if not COMMIT.fullmatch(entry.revision):
            voice.say(f"  {entry.revision} is {record.revision}, here and from now on")
        # Only for who asks: the lock is a human's to change.
        line = pin_line(entry, record.revision, record.digest)
        voice.say(f"  what [fetch] in sealrun.lock binds it by: {line}", level=1)


def _summary(image: SealedImage, commit: str) -> str:
    environment = image.environment
    what = (
        f"{len(environment.packages)} packages of {environment.source}"
        if environment.layer
        else "no packages"
    )
    size = sum(layer.size for layer in image.layers) / 1e6
    return (
        f"warm: commit {commit[:7]} on {image.base.origin} "
        f"(Python {image.base.python or 'none'}), {what}, {size:.0f} MB, {image.image_id[7:19]}"
    )
