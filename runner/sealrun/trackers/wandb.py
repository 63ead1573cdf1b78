"""Weights & Biases: runs that its client logged offline, uploaded by ``wandb sync``.

Rules that this module keeps:

- The client is found on the caller's PATH, never in what a run left; it is started in a directory of
  ours, where no file of the run is taken for its settings.
- Uploaded is what the client has marked as uploaded: its exit status is 0 also where it was not.
- The key is the client's business: sealrun neither reads, passes nor stores it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from sealrun.errors import Fault, Refused, StorageFault, UsageError
from sealrun.secrets import Found, in_files
from sealrun.trackers.taking import Missing
from sealrun.trackers.tracker import Judged, Logged, Target
from sealrun.trackers.wandb_log import Malformed, sift

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.trackers.taking import Outputs

#: Where the client writes: WANDB_DIR, and what scripts that set their own directory leave.
_PLACES = ("out/wandb", "workdir/wandb")
#: A directory by another name is none of the client's, and could be one of its options.
_LOG = re.compile(
    r"(?P<run>(?:.*/)?(?:offline-)?run-[0-9]{8}_[0-9]{6}-(?P<id>[\w-]{1,128}))/run-(?P=id)\.wandb"
)
_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
#: What the caller may have set for runs of its own and must not change what is uploaded.
_NOT_PASSED = {
    *("WANDB_MODE", "WANDB_DISABLED", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_RESUME"),
    *("WANDB_TAGS", "WANDB_NOTES", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB__SERVICE_WAIT"),
    *("WANDB_SERVICE", "WANDB_SILENT", "WANDB_CONSOLE", "WANDB_PROGRAM"),
}


class WeightsAndBiases:
    """The tracker Weights & Biases."""

    name = "wandb"

    def copy(self, outputs: Outputs, judged: Judged, into: Path) -> Sequence[Logged]:
        """Copy what a run logged offline, checked and with what sealrun says of the run."""
        files = [path for place in _PLACES for path in outputs.files(place)]
        found = [match for path in files if (match := _LOG.fullmatch(path))]
        return [
            _copied(outputs, match["run"], match[0], files, judged, into / f"{number}")
            for number, match in enumerate(found)
        ]

    def upload(self, logged: Sequence[Logged], target: Target) -> None:
        """Upload copies with ``wandb sync``."""
        program = _client()
        options = [
            *(("--project", target.project) if target.project else ()),
            *(("--entity", target.entity) if target.entity else ()),
        ]
        for one in logged:
            done = subprocess.run(
                [*program, "sync", *options, one.directory.name],
                cwd=one.directory.parent,
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                # Ours is for data; what the client says is for people.
                stdout=2,
                check=False,
            )
            if not any(one.directory.glob("*.wandb.synced")):
                raise Fault(
                    f"wandb did not upload {one.name} (it ended with status {done.returncode})",
                    hint="Its own words stand above; `wandb login` sets its key. Then repeat.",
                )


def _client() -> list[str]:
    """Return how the caller's client is called.

    Raises:
        UsageError: there is none.
    """
    if (found := shutil.which("wandb")) is not None:
        return [found]
    for name in ("python3", "python"):
        python = shutil.which(name)
        if python is None:
            continue
        asked = [python, "-P", "-c", "import wandb"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return [python, "-P", "-m", "wandb"]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "tool", "run", "wandb"]
    raise UsageError(
        "there is no client of Weights & Biases on PATH",
        hint="Install it where you call sealrun: uv tool install wandb.",
    )


def _environment(caller: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in caller.items() if name not in _NOT_PASSED}


def _copied(
    outputs: Outputs, run: str, log: str, files: Sequence[str], judged: Judged, into: Path
) -> Logged:
    name = log.rpartition("/")[2].removeprefix("run-").removesuffix(".wandb")
    directory = into / run.rpartition("/")[2]
    try:
        (directory / "files").mkdir(parents=True)
        with (directory / f"run-{name}.wandb").open("xb") as copy, outputs.open(log) as source:
            sifted = sift(source, copy, judged.facts, judged.tags)
            size = copy.tell()
    except (Malformed, Missing) as error:
        raise Refused(
            f"{log!r} cannot be uploaded: {error}",
            hint="sealrun outputs lists and copies what the run left.",
        ) from error
    except OSError as error:
        raise StorageFault(f"cannot write {directory}: {error.strerror}") from error
    if sifted.name != name or not _NAME.fullmatch(name):
        raise Refused(f"{log!r} is the log of a run by another name")
    left_out = [(kind, f"{count} left out of the log") for kind, count in sifted.left_out.items()]
    if sifted.cut:
        left_out.append((log, sifted.cut))
    count = 1
    for path, target in _files(run, files):
        try:
            size += outputs.copy(path, directory / "files" / target)
            count += 1
        except Missing as error:
            left_out.append((path, str(error)))
    looked = in_files((directory / "files",), directory, None)
    in_log = (Found(f"its log, {place},", key, lined=False) for place, key in sifted.keys)
    return Logged(
        name=name,
        project=sifted.project,
        entity=sifted.entity,
        directory=directory,
        files=count,
        size=size,
        left_out=tuple(left_out),
        keys=(*in_log, *looked.found),
    )


def _files(run: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each file that the run saved, with its path below the copy's folder of files."""
    front = f"{run}/files/"
    for path in files:
        if path.startswith(front) and path.isprintable():
            yield path, path.removeprefix(front)
