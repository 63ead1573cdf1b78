"""Engines: which one is found, what its paths mean, and a private one beside another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _engine import INFO, speaking
from sealrun.engine import connect, endpoints, install, probe, survey
from sealrun.engine.bridge import choose_subnet, parse_networks
from sealrun.engine.endpoints import candidates
from sealrun.engine.install import System, advice, parse_families
from sealrun.engine.mapping import PathMapping
from sealrun.engine.private import Private, down, process_of, remedy, storage_for, up
from sealrun.errors import EngineUnavailable, UsageError
from sealrun.guard.filesystem import boot_id
from sealrun.progress import Silent
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Iterator


def places_in(root: Path) -> Places:
    """Return places below one directory, as SEALRUN_HOME makes them."""
    return Places(root / "state", root / "data", root / "cache", root / "runtime")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Places of this test alone."""
    return places_in(tmp_path)


def environment(**variables: str) -> dict[str, str]:
    """Return an environment that names no engine and no home with docker's configuration."""
    return {"HOME": "/nonexistent", "PATH": os.environ["PATH"], **variables}


# -- the mapping ----------------------------------------------------------------------------------


def test_no_mapping_leaves_paths_alone() -> None:
    """Without a declared mapping a path has the same name on both sides, made absolute."""
    assert PathMapping.parse("").translate(Path("/srv/a/../b")) == "/srv/b"


def test_longest_directory_wins() -> None:
    """A mount within a mount is translated by its own pair."""
    mapping = PathMapping.parse("/w:/home/me/w, /w/data:/mnt/data")
    assert mapping.translate(Path("/w/data/x")) == "/mnt/data/x"
    assert mapping.translate(Path("/w/src")) == "/home/me/w/src"
    assert mapping.translate(Path("/w")) == "/home/me/w"


def test_uncovered_path_is_an_error() -> None:
    """A path outside every declared directory has no name; nothing is guessed."""
    with pytest.raises(EngineUnavailable, match="no name for /web"):
        PathMapping.parse("/w:/home/me/w").translate(Path("/web"))


@pytest.mark.parametrize("text", ["/a", "a:/b", "/a:b", "/a:/b,/a/:/c", ":"])
def test_malformed_mapping_is_a_usage_error(text: str) -> None:
    """What is not a list of pairs of absolute paths is refused with the form that is wanted."""
    with pytest.raises(UsageError):
        PathMapping.parse(text)


# -- where engines are looked for -----------------------------------------------------------------


def test_docker_host_is_the_only_candidate(tmp_path: Path) -> None:
    """A named engine has no stand-ins, whatever context is current."""
    _context(tmp_path, "other", "unix:///run/other.sock")
    found = candidates({"DOCKER_HOST": "/run/mine.sock"}, tmp_path, Path("/run/p"))
    assert [(c.endpoint, c.named) for c in found] == [("unix:///run/mine.sock", True)]


def test_current_context_is_used(tmp_path: Path) -> None:
    """The context that `docker context use` picked is the only candidate."""
    _context(tmp_path, "lab", "unix:///run/lab.sock")
    (found,) = candidates({}, tmp_path, Path("/run/p"))
    assert found.endpoint == "unix:///run/lab.sock"
    assert "lab" in found.source


def test_default_context_means_the_usual_sockets(tmp_path: Path) -> None:
    """The usual sockets are tried in order, the private engine's last."""
    found = candidates(
        {"DOCKER_CONTEXT": "default", "XDG_RUNTIME_DIR": "/run/user/7"}, tmp_path, Path("/run/p")
    )
    assert [c.endpoint for c in found] == [
        "unix:///var/run/docker.sock",
        "unix:///run/user/7/docker.sock",
        f"unix://{tmp_path}/.docker/run/docker.sock",
        "unix:///run/p",
    ]
    assert [c.private for c in found] == [False, False, False, True]


def test_missing_context_names_its_file(tmp_path: Path) -> None:
    """A context that does not exist is an error, not a reason to use another engine."""
    with pytest.raises(EngineUnavailable, match="'gone'"):
        candidates({"DOCKER_CONTEXT": "gone"}, tmp_path, Path("/run/p"))


def test_broken_client_configuration_is_named(tmp_path: Path) -> None:
    """A damaged config.json is an error that names the file."""
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text("{")
    with pytest.raises(EngineUnavailable, match=r"config\.json"):
        candidates({}, tmp_path, Path("/run/p"))


def _context(home: Path, name: str, host: str) -> None:
    folder = home / ".docker"
    meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"currentContext": name}))
    described = {"Name": name, "Endpoints": {"docker": {"Host": host}}}
    (meta / "meta.json").write_text(json.dumps(described))


# -- what answers ---------------------------------------------------------------------------------


def test_named_engine_that_is_not_there(places: Places) -> None:
    """A named engine that does not answer is an error that names it, and nothing stands in."""
    with pytest.raises(EngineUnavailable, match=r"/nonexistent/x\.sock, which DOCKER_HOST names"):
        connect(places, environment(DOCKER_HOST="unix:///nonexistent/x.sock"))


def test_hanging_engine_is_given_up(places: Places, tmp_path: Path) -> None:
    """An engine that accepts and never answers is given up within its two seconds."""
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with pytest.raises(EngineUnavailable, match="no answer within 2 s"):
            connect(places, environment(DOCKER_HOST=f"unix://{path}"))


def test_old_engine_is_refused(places: Places, tmp_path: Path) -> None:
    """An engine without API 1.41 is refused with what is needed."""
    with (
        speaking(tmp_path / "old.sock", api="1.40") as endpoint,
        pytest.raises(EngineUnavailable, match=r"speaks API 1\.40; 1\.41 is needed"),
    ):
        connect(places, environment(DOCKER_HOST=endpoint))


@pytest.mark.parametrize("body", [b"[]", b"{}", b"nonsense", b'"x"'])
def test_answer_that_is_no_engines(places: Places, tmp_path: Path, body: bytes) -> None:
    """Something else behind the socket is said to be no engine."""
    with (
        speaking(tmp_path / "odd.sock", body) as endpoint,
        pytest.raises(EngineUnavailable, match="not an engine's answer"),
    ):
        connect(places, environment(DOCKER_HOST=endpoint))


def test_facts_of_a_containerd_engine(places: Places, tmp_path: Path) -> None:
    """Store, rootlessness and cgroup version are read from what the engine says."""
    with speaking(tmp_path / "new.sock") as endpoint:
        found = survey(places, environment(DOCKER_HOST=endpoint))
    assert found.engine is not None
    assert (found.engine.store, found.engine.rootless) == ("containerd", True)
    assert (found.engine.cgroup_version, found.engine.version) == ("2", INFO["ServerVersion"])


def test_silence_of_all_is_listed(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody answers, each place that was asked is named with its reason."""
    monkeypatch.setattr(endpoints, "SYSTEM_SOCKET", Path("/nonexistent/docker.sock"))
    with pytest.raises(EngineUnavailable, match=r"/nonexistent/docker\.sock: no such socket"):
        connect(places, environment())


# -- the real engine ------------------------------------------------------------------------------


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    """Where this machine's engine listens."""
    return connect(places_in(tmp_path / "for-endpoint")).endpoint


@pytest.mark.engine
def test_real_engine_is_found_and_probed(places: Places) -> None:
    """The engine of this machine is found; a nonce of ours is read back through it."""
    found = survey(places)
    assert found.error is None
    assert found.engine is not None
    assert found.probe is not None
    assert found.probe.agrees
    assert not found.probe.cached
    assert found.engine.client.ping()


@pytest.mark.engine
def test_a_probe_removes_what_a_killed_one_left(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that no probe can be using any more goes with the next one; a young one stays."""
    engine = connect(places)
    body = {"Image": "sealrun/probe:1", "Cmd": ["/never-started"], "Labels": {"sealrun.probe": "1"}}
    left = engine.client.create_container_from_config(body, None)["Id"]
    assert probe.run_probe(engine, [tmp_path]).agrees
    created = engine.client.containers(all=True, filters={"id": left})[0]["Created"]
    monkeypatch.setattr(probe, "_LONGEST", 3.0)
    while time.time() - created <= 3.0:
        time.sleep(0.1)
    assert probe.run_probe(engine, [tmp_path]).agrees
    assert engine.client.containers(all=True, filters={"id": left}) == []


@pytest.mark.engine
def test_probe_leaves_no_container_and_no_file(places: Places) -> None:
    """A probe removes its container and its nonce."""
    engine = connect(places)
    left = engine.client.containers(all=True, filters={"label": "sealrun.probe"})
    assert left == []
    assert list(places.data.glob(".probe-*")) == []
    assert list(places.state.glob(".probe-*")) == []


@pytest.mark.engine
def test_second_connect_uses_what_is_known(places: Places) -> None:
    """A probe that agreed is remembered, and docker-py is not even imported again."""
    connect(places)
    code = (
        "import sys; from pathlib import Path; from sealrun.engine import survey;"
        "from sealrun.state import Places;"
        "f = survey(Places.of_user()); assert f.probe.cached, f;"
        "assert 'docker' not in sys.modules and 'requests' not in sys.modules"
    )
    root = places.state.parent
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"SEALRUN_HOME": str(root)}
    )


@pytest.mark.engine
def test_other_meaning_of_paths_is_refused(places: Places, endpoint: str) -> None:
    """A mapping to where the engine sees other files, or none, is found out and refused."""
    for other in ("/nonexistent-for-the-engine", "/usr"):
        mapped = environment(
            SEALRUN_PATH_MAP=f"{places.state.parent}:{other}", DOCKER_HOST=endpoint
        )
        found = survey(places, mapped)
        assert found.probe is not None
        assert not found.probe.agrees
        assert found.error is not None
        assert "mapping does not hold" in found.error.message
        with pytest.raises(EngineUnavailable, match="mapping does not hold"):
            connect(places, mapped)


@pytest.mark.engine
def test_true_mapping_is_used(places: Places, endpoint: str, tmp_path: Path) -> None:
    """A mapping that names the same directory by another path agrees and is handed out."""
    alias = tmp_path.parent / f"{tmp_path.name}-alias"
    alias.symlink_to(tmp_path)
    try:
        mapped = environment(SEALRUN_PATH_MAP=f"{tmp_path}:{alias}", DOCKER_HOST=endpoint)
        engine = connect(places, mapped)
        assert engine.mapping.translate(tmp_path / "x") == f"{alias}/x"
    finally:
        alias.unlink()


@pytest.mark.engine
def test_partial_mapping_is_refused(places: Places, endpoint: str) -> None:
    """A mapping that leaves one of our directories out is refused, naming that directory."""
    mapped = environment(SEALRUN_PATH_MAP=f"{places.data}:{places.data}", DOCKER_HOST=endpoint)
    with pytest.raises(EngineUnavailable, match="no name for"):
        connect(places, mapped)


# -- a private engine -----------------------------------------------------------------------------


def test_subnet_avoids_what_is_there() -> None:
    """The bridge's network overlaps no route and no address; the default route does not count."""
    routes = json.dumps([{"dst": "default"}, {"dst": "10.213.0.0/23"}, {"dst": "192.0.2.7"}])
    addresses = json.dumps(
        [{"addr_info": [{"family": "inet", "local": "10.213.2.9", "prefixlen": 24}]}]
    )
    taken = parse_networks(routes, addresses)
    assert choose_subnet(taken) == IPv4Network("10.213.3.0/24")


def test_no_free_subnet_is_said() -> None:
    """Where the whole pool is in use, that is the error."""
    with pytest.raises(EngineUnavailable, match="no free network"):
        choose_subnet([IPv4Network("10.0.0.0/8")])


@pytest.mark.parametrize(
    ("file_system", "fuse", "driver"),
    [("ext4", False, None), ("overlay", True, "fuse-overlayfs"), ("overlay", False, "vfs")],
)
def test_no_overlay_on_an_overlay(file_system: str, fuse: bool, driver: str | None) -> None:  # noqa: FBT001 - a table's column
    """On an overlay file system another storage driver is chosen, as no overlay mounts there."""
    assert storage_for(file_system, fuse=fuse) == driver


def test_socket_path_fits(tmp_path: Path) -> None:
    """The socket's path stays below 108 bytes however deep the data directory is."""
    deep = places_in(tmp_path.joinpath(*["a-rather-long-directory-name"] * 8))
    ours = Private.of(deep)
    assert len(os.fsencode(ours.socket)) < 60
    assert len(ours.name) <= 15


def _system(families: str, *programs: str, root: bool = False, systemd: bool = True) -> System:
    return System(
        kernel="Linux",
        families=frozenset(families.split()),
        root=root,
        systemd=systemd,
        wsl=False,
        programs=frozenset(programs),
    )


def test_advice_is_a_command_for_the_system() -> None:
    """Each system gets its own commands; root on Debian gets ours."""
    assert advice(_system("debian", "apt-get", root=True)) == "sealrun engine up"
    assert "sudo apt-get install -y docker.io" in advice(_system("ubuntu debian", "apt-get"))
    assert "usermod -aG docker" in advice(_system("ubuntu debian", "apt-get"))
    assert advice(_system("fedora", root=True)).startswith(
        "dnf install -y moby-engine && systemctl"
    )
    assert "systemctl" not in advice(_system("alpine", root=True, systemd=False))
    assert "DOCKER_HOST" in advice(_system("plan9"))
    assert "Docker Desktop" in advice(replace(_system(""), kernel="Darwin"))


def test_families_of_os_release() -> None:
    """ID and every word of ID_LIKE count, quoted or not."""
    text = 'NAME="X"\nID=pop\nID_LIKE="ubuntu debian"\nVERSION_ID=1\n'
    assert parse_families(text) == {"pop", "ubuntu", "debian"}


def test_down_without_up_changes_nothing(places: Places) -> None:
    """Where no private engine was ever started, stopping it is no error and makes nothing."""
    assert down(places) is False
    assert not places.data.exists()


def test_down_signals_only_our_process(places: Places) -> None:
    """A record that names another process, by a pid used again, stops nothing."""
    ours = Private.of(places)
    ours.home.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as other:
        record: dict[str, Any] = {"pid": other.pid, "started": 1, "boot": boot_id()}
        ours.record.write_text(json.dumps(record))
        assert process_of(ours) is None
        assert down(places) is False
        assert other.poll() is None
        other.kill()


@pytest.mark.engine
def test_failing_start_shows_log_and_remedy(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that ends at once is an error with its last words and what to do; nothing stays."""
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / "dockerd"
    fake.write_text(
        "#!/bin/sh\necho failed to start daemon: Devices cgroup is not mounted\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(EngineUnavailable, match="Devices cgroup is not mounted") as raised:
        up(places, Silent())
    assert "cgroupfs-mount" in (raised.value.hint or "")
    ours = Private.of(places)
    assert not Path("/sys/class/net", ours.name).exists()
    assert not ours.runtime.exists()


def test_remedy_falls_back_to_the_log(places: Places) -> None:
    """An unknown failure names the log."""
    assert str(Private.of(places).log) in remedy("what is this", Private.of(places))


def _network() -> dict[str, str]:
    """Return what another engine's network consists of, without what carries our names."""

    def said(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return "\n".join(line for line in done.stdout.splitlines() if "sealrun-" not in line)

    return {
        "bridges": str(
            sorted(
                (d.parent.name, (d.parent / "ifindex").read_text())
                for d in Path("/sys/class/net").glob("*/bridge")
                if not d.parent.name.startswith("sealrun-")
            )
        ),
        "addresses": said("ip", "-o", "-4", "addr", "show", "type", "bridge"),
        "filter": said("iptables", "-w", "-S"),
        "nat": said("iptables", "-w", "-t", "nat", "-S"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def _default_networks(client: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - docker-py ships no types
    return sorted(
        (n["Name"], n["Id"]) for n in client.networks() if n["Name"] in {"bridge", "host", "none"}
    )


@pytest.fixture
def stopped(places: Places) -> Iterator[Places]:
    """Places whose private engine is stopped and removed after the test, whatever happens."""
    yield places
    down(places, purge=True)


@pytest.mark.engine
def test_private_engine_beside_another(stopped: Places) -> None:
    """Up, twice at once, then down: our engine answers, and the other one notices nothing."""
    theirs = connect(stopped)
    networks = _default_networks(theirs.client)
    before = _network()
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: up(stopped, Silent()), range(2))
    assert first == second
    pid = process_of(first)
    assert pid is not None
    assert os.getsid(pid) == pid
    engine = connect(stopped, environment(DOCKER_HOST=f"unix://{first.socket}"))
    assert engine.private
    assert engine.id != theirs.id
    assert Path(engine.root) == first.data
    assert _network() == before
    assert down(stopped, purge=True) is True
    assert process_of(first) is None
    assert not first.runtime.exists()
    assert not first.data.exists()
    assert not Path("/sys/class/net", first.name).exists()
    assert _network() == before
    assert _default_networks(theirs.client) == networks


def _run_for_ever(client: Any) -> None:  # noqa: ANN401 - docker-py ships no types
    """Start a container that sleeps: an empty image, with this machine's programs mounted."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    client.import_image_from_data(packed.getvalue(), repository="empty")
    mounted = [f"{path}:{path}:ro" for path in ("/usr", "/bin", "/lib", "/lib64")]
    body = {
        "Image": "empty",
        "Cmd": ["/usr/bin/sleep", "600"],
        "NetworkDisabled": True,
        "HostConfig": {"Binds": [pair for pair in mounted if Path(pair.split(":")[0]).exists()]},
    }
    client.start(client.create_container_from_config(body, None)["Id"])


def _shims(ours: Private) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [
        line
        for line in listed.stdout.splitlines()
        if "containerd-shim" in line and ours.name in line
    ]


@pytest.mark.engine
def test_killed_private_engine_is_cleared_and_started_again(stopped: Places) -> None:
    """After SIGKILL the next start clears what the engine left, a running container's shim too."""
    ours = up(stopped, Silent())
    client = connect(stopped, environment(DOCKER_HOST=f"unix://{ours.socket}")).client
    _run_for_ever(client)
    pid = process_of(ours)
    assert pid is not None
    assert _shims(ours)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process_of(ours) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    again = up(stopped, Silent())
    assert process_of(again) not in {None, pid}
    assert not _shims(ours)
    assert connect(stopped, environment(DOCKER_HOST=f"unix://{again.socket}")).client.ping()


@pytest.mark.engine
def test_down_keeps_the_images(stopped: Places) -> None:
    """Without --purge the data directory stays, and the next start has its images again."""
    ours = up(stopped, Silent())
    socket_of = environment(DOCKER_HOST=f"unix://{ours.socket}")
    assert connect(stopped, socket_of).client.images("sealrun/probe")
    assert down(stopped) is True
    assert ours.data.is_dir()
    up(stopped, Silent())
    assert connect(stopped, socket_of).client.images("sealrun/probe")


@pytest.mark.engine
def test_commands_where_nothing_answers(stopped: Places) -> None:
    """With the machine's engine out of sight: up starts ours, status names it, down removes it."""
    script = """
        mount --bind /dev/null /var/run/docker.sock || exit 99
        engine() { "$0" -c 'from sealrun.cli import main; main()' engine "$@"; }
        engine status; test $? = 125 || exit 1
        engine up && engine up && engine status && engine down --purge || exit 2
        engine status; test $? = 125 || exit 3
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable],
        env=environment(SEALRUN_HOME=str(stopped.state.parent)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("a private engine answers at") == 1
    assert "/var/run/docker.sock: nobody listens there" in done.stdout
    assert f"engine:      unix://{Private.of(stopped).socket} private" in done.stdout
    assert "the private engine is stopped" in done.stderr


def test_without_root_exact_commands_are_named(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who may not start an engine learns what to do, and nothing is made."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(EngineUnavailable, match="only root") as raised:
        up(places, Silent())
    assert raised.value.hint
    assert not places.data.exists()


def test_services_are_kept_still_only_while_installing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start script refuses during an installation and is gone after it; another's stays."""
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(install, "_POLICY", policy)
    with install._services_kept_still():
        assert subprocess.run([policy], check=False).returncode == 101
    assert not policy.exists()
    policy.write_text("#!/bin/sh\nexit 0\n")
    with install._services_kept_still():
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.exists()
