"""Runs a commit's command in the container that a run gets, with what was fetched for it.

Rules: everything is the product's own: base, environment, sealing, loading, request and sandbox;
only the guard and the record are left out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.engine import connect
from sealrun.fetch.prepare import datasets
from sealrun.image.load import load
from sealrun.image.prepare import prepare
from sealrun.image.seal import seal
from sealrun.image.tree_layer import TreeLayers
from sealrun.ledger import new_ulid
from sealrun.policy import committed_policy
from sealrun.progress import Silent
from sealrun.request import request_for
from sealrun.sandbox.docker import DockerSandbox, default_owner
from sealrun.state import private

if TYPE_CHECKING:
    from _git import Repo
    from sealrun.state import Places


def run_offline(repo: Repo, places: Places, *argv: str) -> tuple[int | None, str]:
    """Run a command of HEAD in a hardened container; return its status and all of its output."""
    engine = connect(places)
    tree = repo.tree()
    policy = committed_policy(tree).policy
    found = datasets(policy, tree, places, Silent(), make=False)
    base, environment = prepare(tree, policy.image, places, engine, Silent(), make=False)
    sealed = seal(tree, base, environment, TreeLayers(private(places.cache / "trees")), Silent())
    loading = load(sealed.image, engine.client, progress=Silent())
    with tempfile.TemporaryDirectory(dir=repo.path.parent) as directory:
        out = private(Path(directory) / "out")
        request = request_for(
            run_id=new_ulid(),
            repository_id="0" * 32,
            argv=argv,
            tree=tree,
            policy=policy,
            image=sealed.image,
            loading=loading,
            datasets=found,
            out=out,
            places=places,
            join_stderr=True,
        )
        sandbox = DockerSandbox(
            engine.client, engine.mapping.translate, owner=default_owner(places.state)
        )
        container = sandbox.create(request)
        try:
            container.open_gate()
            with (Path(directory) / "output").open("w+b") as output:
                handle = output.fileno()
                container.pump(handle, handle, Path(directory) / "log", 1 << 20)
                ended = container.finish()
                output.seek(0)
                return ended.exit_status, output.read().decode("utf-8", "replace")
        finally:
            container.remove()
