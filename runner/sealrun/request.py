"""What a run asks of its sandbox: policy, tree, image and caller become one ``Request``.

Rules that this module keeps:

- The container's environment is an allow-list, built here from nothing; what the policy lets
  through from the caller is named in it.
- What decides a result (threads, caches, offline switches) is set here, once, for every run.
- The numeric user is 10001 where the caller is root, else the caller's: files that come out belong
  to the caller, and nothing in the container is root.
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from sealrun import caches, determinism
from sealrun.data import CONTAINER_HOME
from sealrun.devices.access import LABEL as DEVICES
from sealrun.errors import Refused
from sealrun.image.model import PATH, WORKDIR
from sealrun.readable import mounted
from sealrun.sandbox.init import place_init
from sealrun.sandbox.protocol import Mount, Request
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sealrun.data import Dataset
    from sealrun.devices.access import Access
    from sealrun.image.model import Loading, SealedImage
    from sealrun.policy import Policy
    from sealrun.sandbox.protocol import Seed
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: The user of every experiment that root starts; not 65534, which owns whatever cannot be mapped.
EXPERIMENT_USER = 10001
#: What the experiment may write to besides the workdir.
OUT = "/out"

_VARIABLES = {
    "HOME": CONTAINER_HOME,
    "USER": "run",
    "LOGNAME": "run",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",  # noqa: S108 - a path inside the container
    "PATH": PATH,
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_DIR": f"{OUT}/wandb",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}


def request_for(  # noqa: PLR0913 - everything that decides how an experiment runs
    *,
    run_id: str,
    repository_id: str,
    argv: Sequence[str],
    tree: CommittedTree,
    policy: Policy,
    image: SealedImage,
    loading: Loading,
    datasets: Sequence[Dataset],
    out: Path,
    places: Places,
    join_stderr: bool,
    devices: Access | None = None,
    seed: Seed | None = None,
    filled: Path | None = None,
) -> Request:
    """Return the container that a run asks for.

    Args:
        out: the host's directory behind ``/out``; made writable for the experiment's user.
        devices: GPUs that are this run's.
        seed: what the compile caches begin with.
        filled: the host's directory behind the compile caches, where they are to be kept.

    Raises:
        Refused: the policy passes a variable that the caller does not have, or the experiment's
            user could not read all of the data.
        EnvironmentFault: there is no init for this machine.
    """
    user = experiment_user()
    writable = {OUT: out} if filled is None else {OUT: out, caches.CACHES: filled}
    if os.getuid() == 0:
        for directory in writable.values():
            os.chown(directory, *user)
    traced = determinism.is_traced(policy, image)
    init = place_init(places.init, platform.machine(), determinism.module() if traced else None)
    variables = environment(policy, image.environment.variables)
    if traced:
        variables |= determinism.tracing(policy, variables.get("PYTHONPATH"))
    if devices is not None:
        # Last: what a program counts has to fit what it gets.
        variables |= devices.variables
    shown = [mounted(dataset, user) for dataset in datasets]
    return Request(
        name=f"sealrun-{run_id.lower()}",
        image=loading.engine_image,
        argv=tuple(argv),
        workdir=WORKDIR,
        environment=variables,
        user=user,
        # Those that the data needs; the sandbox adds the devices'.
        groups=sorted(frozenset[int]().union(*(groups for _, groups in shown))),
        mounts=(
            *(mount for mount, _ in shown),
            *(Mount(source, target, read_only=False) for target, source in writable.items()),
        ),
        limits=policy.sandbox.limits(),
        labels={
            "sealrun.run": run_id,
            "sealrun.repository": repository_id,
            "sealrun.commit": tree.commit,
            "sealrun.image": image.image_id,
            **({DEVICES: ",".join(d.uuid for d in devices.devices)} if devices else {}),
        },
        passwd=passwd(*user),
        group=group(user[1]),
        seccomp=seccomp(policy),
        init=init.path,
        init_digest=init.digest,
        join_stderr=join_stderr,
        network=policy.sandbox.network,
        writable_workdir=policy.sandbox.workdir == "new-files",
        devices=devices,
        seed=seed,
    )


def experiment_user() -> tuple[int, int]:
    """Return the numeric uid and gid of experiments."""
    uid = os.getuid()
    return (EXPERIMENT_USER, EXPERIMENT_USER) if uid == 0 else (uid, os.getgid())


def environment(policy: Policy, layer: Mapping[str, str]) -> dict[str, str]:
    """Return the container's environment variables: ours, the layer's, the mode's, the policy's.

    Raises:
        Refused: a variable that the policy passes is not set.
    """
    passed: dict[str, str] = {}
    for name in policy.sandbox.pass_variables:
        if name not in os.environ:
            raise Refused(
                f"the policy passes the variable {name}, which is not set",
                hint=f"Set {name}, or take it out of [sandbox] pass_variables.",
            )
        passed[name] = os.environ[name]
    settings = determinism.variables(policy)
    ours = {**_VARIABLES, **caches.VARIABLES}
    return {**ours, **layer, **settings, **policy.sandbox.variables, **passed}


def passwd(uid: int, gid: int) -> bytes:
    """Return the container's ``/etc/passwd`` (passwd(5)): root, nobody and the experiment."""
    return (
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        f"run:x:{uid}:{gid}:sealrun experiment:{CONTAINER_HOME}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ).encode()


def group(gid: int) -> bytes:
    """Return the container's ``/etc/group`` (group(5))."""
    return f"root:x:0:\nrun:x:{gid}:\nnogroup:x:65534:\n".encode()


def seccomp(policy: Policy) -> str | None:
    """Return our profile's JSON text, or None where the policy leaves the engine's own."""
    if policy.sandbox.seccomp == "engine":
        return None
    return shipped("images", "seccomp", "sealrun.json").read_text("utf-8")
