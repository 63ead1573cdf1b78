"""Says in one line what is served on a kind of machine, what is missing, and what helps.

Rules that this module keeps:

- No IO: facts go in, words come out.
- What nobody has tried is called untried; the guide on machines says the same of each kind.
- A fix is something that a person can do on that machine; where nothing helps, the line says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.doctor.model import Check, Grade

if TYPE_CHECKING:
    from sealrun.doctor.surroundings import Surroundings
    from sealrun.engine import Engine

_DESKTOP = "Docker Desktop"
_OUT_OF_SIGHT = (
    "capabilities, system call filter, mounts and limits of a container are then as the engine"
    " says, and the record says so"
)
_CGROUP_2 = (
    "Boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1 on the kernel's command line), where"
    " systemd hands a user the controllers."
)
_CONTROLLERS = (
    "Give the engine's control group the controllers: for a rootless engine Delegate=cpu memory pids"
    " in user@.service; otherwise list them in cgroup.subtree_control of each group above it."
)


def judge_machine(here: Surroundings, engine: Engine | None) -> Check:
    """Say what is served on this kind of machine.

    Args:
        here: what kind of machine it is.
        engine: the one that runs would use, or None where none answers.
    """
    if here.kernel != "Linux":
        return _not_linux(here.kernel)
    if here.wsl is not None:
        return _windows(here.wsl)
    if here.container is not None:
        return _inside(here.container, engine)
    if here.root:
        return Check(
            "machine",
            Grade.OK,
            "Linux, root: runs, events, contents and the names of writers are served",
        )
    return Check(
        "machine",
        Grade.OK,
        "Linux without root: runs, events and contents are served; names of writers need an"
        " administrator (row writers)",
    )


def _not_linux(kernel: str) -> Check:
    called = {"Darwin": "macOS"}.get(kernel, kernel or "an unknown system")
    better = "WSL 2" if kernel == "Windows" else "a Linux virtual machine"
    return Check(
        "machine",
        Grade.FAIL,
        f"{called}: not served: the guard needs Linux's inotify and process files",
        f"Run sealrun inside {better}, with the workspace on that machine's own disk.",
    )


def _windows(version: int) -> Check:
    if version == 1:
        return Check(
            "machine",
            Grade.FAIL,
            "WSL 1: not served: it has no Linux kernel",
            "In Windows: wsl --set-version DISTRIBUTION 2",
        )
    return Check(
        "machine",
        Grade.WARN,
        "WSL 2, untried: runs and contents; events only for files on the distribution's own disk;"
        " what Windows programs write below /mnt makes none",
        "Keep workspace and SEALRUN_HOME in the distribution's own file system, not below /mnt.",
    )


def _inside(kind: str, engine: Engine | None) -> Check:
    if engine is None:
        return Check(
            "machine",
            Grade.FAIL,
            f"inside a container ({kind}) without an engine, as pods are rented: nothing can run;"
            " a sandbox that needs no engine is not built yet",
            "In a privileged container, as root: sealrun engine up. Otherwise rent a virtual"
            " machine, or have the engine's socket mounted.",
        )
    if engine.private:
        return Check(
            "machine",
            Grade.OK,
            f"inside a privileged container ({kind}) with an engine of its own: served as on Linux;"
            " writers outside this container are not named",
        )
    return Check(
        "machine",
        Grade.WARN,
        f"inside a container ({kind}) beside its engine: runs, events and contents; writers outside"
        f" are not named, and {_OUT_OF_SIGHT}",
        "Nothing, where the row engine paths is ok; otherwise see the guide on containers.",
    )


def judge_engine(engine: Engine) -> Check:
    """Say what the kind of engine means for a run; one that cannot be used never comes here."""
    named = f"Docker {engine.version}"
    if _DESKTOP in engine.system:
        return Check(
            "engine kind",
            Grade.WARN,
            f"{_DESKTOP}, untried: it runs containers in a virtual machine of its own;"
            f" {_OUT_OF_SIGHT}",
            "An engine in the same Linux as sealrun is seen in full: apt-get install docker.io",
        )
    if not engine.endpoint.startswith("unix:"):
        return Check(
            "engine kind",
            Grade.WARN,
            f"{named} at the other end of a network, untried: {_OUT_OF_SIGHT}",
            "Use an engine of this machine.",
        )
    if engine.rootless:
        return Check(
            "engine kind",
            Grade.WARN,
            f"{named}, rootless: runs are served; where its containers cannot be told from other"
            f" processes of yours, {_OUT_OF_SIGHT}",
            "An engine of root's is seen in full, where you may have one.",
        )
    if engine.store == "containerd":
        return Check(
            "engine kind",
            Grade.OK,
            f"{named} with containerd's image store: served; images have another name there, the"
            " record holds both",
        )
    return Check("engine kind", Grade.OK, f"{named}: served")


def judge_limits(engine: Engine) -> Check:
    """Say which limits the engine can enforce."""
    if not engine.unenforced:
        return Check("engine limits", Grade.OK, "memory, processes and CPU time can be limited")
    fix = _CGROUP_2 if engine.rootless and engine.cgroup_version == "1" else _CONTROLLERS
    return Check(
        "engine limits",
        Grade.WARN,
        f"cannot limit {', '.join(engine.unenforced)} (cgroup {engine.cgroup_version}): a policy that"
        " limits memory or CPUs is refused, and the record says that nothing limits processes",
        fix,
    )
