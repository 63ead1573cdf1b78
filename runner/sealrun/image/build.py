"""Builds source distributions: in a container of the base, never on the host.

Rules that this module keeps:

- A build runs somebody's code with network. It runs as nobody's user, without capabilities, on the
  base's files and copies of what it needs; it sees no file, no socket and no key of the host. Index
  addresses are passed on, since it has to fetch what it builds with; an address with a password is
  not.
- What comes out is hostile: wheels are found by their names, read as bytes, and installed like any
  other wheel. Nothing is extracted.
- A container is removed when its build ends; one whose owner died is removed by the next build of
  the same environment, whose lock proves that nobody else uses it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import index, normal, tool
from sealrun.image.archive import stack
from sealrun.image.load import load
from sealrun.image.model import MTIME, Environment
from sealrun.image.reference import engine_words
from sealrun.image.seal import assemble

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sealrun.image.lock import Target, Wheel
    from sealrun.image.model import Base
    from sealrun.image.store import LayerStore
    from sealrun.progress import Progress, Task

#: Marks our build containers; its value is the environment's key.
LABEL = "sealrun.build"
_DIRECTORY = "sealrun-build"
_USER = 10001
#: Seconds that one build may take before it is ended, also when its owner is gone.
_LONGEST = 3600
#: Bytes of the largest source distribution, and of all that a build hands back.
_LARGEST = 4 << 30
_HINT = (
    "A package with C or C++ code needs a base with a compiler: [image] base = "
    '"debian-python-build" in sealrun.toml. Or lock a version that has a wheel.'
)


@dataclass(frozen=True)
class Workbench:
    """Where builds run.

    Attributes:
        engine: docker-py's low-level client; None where no engine answers.
        key: of the environment; its lock is held.
        binary: the uv that runs in the container.
    """

    engine: Any
    base: Base
    target: Target
    layers: LayerStore
    key: str
    binary: Path
    progress: Progress

    def resolve(self, files: Mapping[str, bytes], directory: str, name: str, task: Task) -> str:
        """Resolve requirements that may need builds; return a ``pylock.toml``.

        Args:
            files: what uv reads, by path.
            directory: of the requirements, among these files.
            name: of the requirements file.

        Raises:
            EnvironmentFault: it fails.
        """
        inputs = [normal.file(f"in/{path}".encode(), c) for path, c in files.items()]
        script = (
            'cd "$HOME/in/$1" && "$HOME/uv" pip compile --quiet --no-header --format pylock.toml '
            '--output-file pylock.sealrun.toml "$2" && cp pylock.sealrun.toml "$HOME/out/"'
        )
        found = self._run("resolving", script, [directory, name], inputs, task)
        return found["pylock.sealrun.toml"].decode("utf-8", "replace")

    def build(
        self, sources: Sequence[Wheel], committed: Path, into: Path, task: Task
    ) -> list[Wheel]:
        """Build source distributions; return the wheels, which stand below ``into``.

        Raises:
            SealRefused: a source distribution is not the one that was locked.
            EnvironmentFault: a build fails.
        """
        built: list[Wheel] = []
        for source in sources:
            task.describe(f"building {source.name} {source.version}")
            name = Path(source.filename).name
            content = fetch(source, committed)
            script = '"$HOME/uv" build --quiet --wheel --out-dir "$HOME/out" "$HOME/in/$1"'
            inputs = [normal.file(f"in/{name}".encode(), content)]
            found = self._run(
                f"building {source.name} {source.version}", script, [name], inputs, task
            )
            wheel = only_wheel(found, source)
            into.mkdir(exist_ok=True)
            (into / wheel).write_bytes(found[wheel])
            digest = hashlib.sha256(found[wheel]).hexdigest()
            path = str((into / wheel).absolute())
            built.append(
                replace(source, filename=wheel, sha256=digest, url=None, path=path, source=False)
            )
        return built

    def _run(
        self,
        what: str,
        script: str,
        arguments: Sequence[str],
        inputs: Sequence[normal.Member],
        task: Task,
    ) -> dict[str, bytes]:
        """Run a script in a new container; return the files that it leaves in ``out``."""
        if self.engine is None:
            raise EnvironmentFault(
                f"{what} needs a container engine, and none answers",
                hint="sealrun engine up starts one.",
            )
        with engine_words(what):
            self._sweep()
            image = bare(self.base, self.layers, self.engine, self.progress)
            container = self.engine.create_container(
                image,
                command=["timeout", str(_LONGEST), "sh", "-euc", script, "build", *arguments],
                user=f"{_USER}:{_USER}",
                working_dir="/",
                environment=self._environment(),
                labels={LABEL: self.key},
                host_config=self.engine.create_host_config(
                    network_mode="host",
                    cap_drop=["ALL"],
                    security_opt=["no-new-privileges"],
                    pids_limit=4096,
                ),
            )["Id"]
            try:
                self.engine.put_archive(container, "/", self._inputs(inputs))
                self.engine.start(container)
                words = ""
                for line in self.engine.logs(container, stream=True, follow=True):
                    words = "\n".join(
                        [*words.split("\n"), f"  {tool.visible(line.decode('utf-8', 'replace'))}"][
                            -tool.LAST_LINES :
                        ]
                    )
                    task.describe(words.rpartition("\n")[2].strip())
                status = self.engine.wait(container)["StatusCode"]
                if status != 0:
                    raise tool.ToolFailed(
                        f"{what} in a container ended with status {status}; it printed last:\n"
                        f"{words.strip(chr(10))}",
                        words,
                        hint=_HINT,
                    )
                return self._outputs(container)
            finally:
                self.engine.remove_container(container, force=True, v=True)

    def _sweep(self) -> None:
        filters = {"label": f"{LABEL}={self.key}"}
        for container in self.engine.containers(all=True, filters=filters):
            self.engine.remove_container(container["Id"], force=True, v=True)

    def _environment(self) -> dict[str, str]:
        home = f"/{_DIRECTORY}"
        passed = {k: v for k, v in index.uv_environment().items() if may_enter(k, v)}
        return {
            **passed,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": home,
            "LC_ALL": "C.UTF-8",
            "SOURCE_DATE_EPOCH": str(MTIME),
            "SSL_CERT_FILE": f"{home}/certificates.pem",
            "TMPDIR": f"{home}/scratch",
            "UV_CACHE_DIR": f"{home}/cache",
            "UV_PYTHON": self.base.python_path or "",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_CONFIG": "1",
            "UV_NO_PROGRESS": "1",
        }

    def _inputs(self, inputs: Sequence[normal.Member]) -> bytes:
        home = _DIRECTORY.encode()
        members = [
            normal.directory(b""),
            *(normal.directory(name) for name in (b"in", b"out", b"cache", b"scratch")),
            normal.file(b"certificates.pem", certificates()),
            normal.file_at(b"uv", self.binary, 0o755),
            *inputs,
        ]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            made: set[bytes] = set()
            for member in normal.in_order(
                normal.with_parents({m.path: m for m in members}).values()
            ):
                path = (home + b"/" + member.path).rstrip(b"/")
                if path in made:
                    continue
                made.add(path)
                info = tarfile.TarInfo(os.fsdecode(path))
                info.uid = info.gid = _USER
                info.mode, info.size, info.mtime = member.mode, member.size, MTIME
                if member.open is None:
                    info.type = tarfile.DIRTYPE
                    archive.addfile(info)
                else:
                    with member.open() as content:
                        archive.addfile(info, content)
        return out.getvalue()

    def _outputs(self, container: str) -> dict[str, bytes]:
        stream, _ = self.engine.get_archive(container, f"/{_DIRECTORY}/out")
        spooled = io.BytesIO()
        for chunk in stream:
            spooled.write(chunk)
            if spooled.tell() > _LARGEST:
                raise EnvironmentFault("a build left more than 4 GiB behind")
        spooled.seek(0)
        return dict(_regular(spooled))


def bare(base: Base, layers: LayerStore, engine: Any, progress: Progress) -> str:  # noqa: ANN401 - docker-py ships no types
    """Bring a base without anything on top into an engine; return what the engine calls it.

    Raises:
        EngineError: the engine failed.
        StorageFault: a layer that has to be sent is missing or damaged.
    """
    image = assemble(base, Environment("build", None, None), normal.write_layer({}, layers))
    return load(image, engine, stack(image).reference, progress).engine_image


def _regular(spooled: io.BytesIO) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=spooled) as archive:
            for info in archive:
                file = archive.extractfile(info) if info.isreg() else None
                if file is not None:
                    yield info.name.rpartition("/")[2], file.read()
    except tarfile.TarError as error:
        raise EnvironmentFault(f"what a build left behind cannot be read: {error}") from error


def only_wheel(found: Mapping[str, bytes], source: Wheel) -> str:
    """Return the name of the one wheel that a build left for a source distribution.

    Raises:
        EnvironmentFault: it left none, more than one, or another package's.
    """
    wheels = [name for name in found if name.endswith(".whl")]
    try:
        (name,) = wheels
        package = parse_wheel_filename(name)[0]
    except (ValueError, InvalidWheelFilename) as error:
        raise EnvironmentFault(
            f"the build of {source.name} left {len(wheels)} usable wheels instead of one"
        ) from error
    if package != source.name:
        raise EnvironmentFault(f"the build of {source.name} left a wheel of {package}")
    return name


def may_enter(name: str, value: str) -> bool:
    """Say whether a setting of the host's may be seen by a build: no credentials, no host paths."""
    if name in ("UV_HTTP_TIMEOUT", "UV_HTTP_RETRIES", "UV_INDEX_STRATEGY", "UV_INSECURE_HOST"):
        return True
    if name not in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        return False
    addresses = [urlsplit(word) for word in value.split()]
    return all(a.scheme in ("http", "https") and "@" not in a.netloc for a in addresses)


def certificates() -> bytes:
    """Return the certificates that this host trusts: a company's index may have its own."""
    for path in (os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"):
        try:
            if path:
                return Path(path).read_bytes()
        except OSError:
            continue
    return b""


def fetch(source: Wheel, committed: Path) -> bytes:
    """Return a source distribution's bytes, checked.

    Args:
        committed: where files of the commit stand that ``Wheel.path`` names.

    Raises:
        SealRefused: it is not the file that was locked.
        EnvironmentFault: it cannot be fetched.
    """
    import urllib.request

    try:
        if source.path is not None:
            content = (committed / source.path).read_bytes()
        elif (address := urlsplit(source.url or "")).scheme == "file":
            content = Path(unquote(address.path)).read_bytes()
        elif address.scheme in ("http", "https"):
            with urllib.request.urlopen(address.geturl(), timeout=60) as answer:  # noqa: S310 - scheme checked
                content = answer.read(_LARGEST)
        else:
            raise SealRefused(f"{source.name}: {source.url} is no address to fetch from")
    except OSError as error:
        raise EnvironmentFault(
            f"{source.filename} cannot be fetched: {tool.visible(str(error))}",
            hint="Check the network, then run sealrun warm again.",
        ) from error
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise SealRefused(
            f"{source.filename} is not the file that the lock names: its sha256 differs",
            hint="The index serves other bytes than those that were locked. Find out why before "
            "you lock again.",
        )
    return content
