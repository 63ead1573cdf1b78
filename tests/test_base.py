"""The bottom of an image: recipes, references and Dockerfiles."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from _base import no_tree, shared_base
from _image import Workshop, commit, committed, engine, layer_of, repository
from sealrun.errors import EnvironmentFault, SealRefused, UsageError
from sealrun.image import contents, dockerfile, normal, recipe, reference
from sealrun.image.base import find_base, host_platform, make_base, source
from sealrun.image.model import MTIME, Layer, Platform
from sealrun.image.store import LayerStore, chunks
from sealrun.progress import Silent
from sealrun.state import Places, private

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from _image import Content
    from sealrun.image.model import Base
    from sealrun.tree import CommittedTree


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Places of one test."""
    root = tmp_path / "home"
    return Places(root / "state", root / "data", root / "cache", root / "runtime")


def tree_of(tmp_path: Path, files: Mapping[bytes, Content]) -> CommittedTree:
    """Commit files in a repository of their own and read them back."""
    return Workshop(private(tmp_path / hashlib.sha256(repr(files).encode()).hexdigest()[:8])).tree(
        files
    )


def infos(layer: Layer) -> list[tarfile.TarInfo]:
    """Return the headers of a layer."""
    with tarfile.open(layer.path) as archive:
        return archive.getmembers()


# recipes


def test_a_recipe_base_holds_nothing_of_the_machine_that_made_it(places: Places) -> None:
    """Its one layer has constant times and owners, no set-user-id bit, no device, no machine id."""
    base = shared_base(places)
    members = infos(base.layers[0])
    assert {m.mtime for m in members} == {MTIME}
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert not [m.name for m in members if m.mode & 0o6000]
    assert all(m.isfile() or m.isdir() or m.issym() or m.islnk() for m in members)
    names = {m.name.rstrip("/") for m in members}
    assert not names & {"etc/machine-id", "etc/resolv.conf", "etc/shadow", "etc/apt", "var/log"}
    assert {"workspace", "opt/env", "out", "home/run", ".sealrun", "tmp", "var/tmp"} <= names
    modes = {m.name.rstrip("/"): m.mode for m in members}
    assert modes["tmp"] == modes["var/tmp"] == 0o1777
    assert len(names) == len(members)


def test_a_recipe_base_knows_its_python_libc_and_packages(places: Places) -> None:
    """Version, path and C library are found by reading; each package has its archive's hash."""
    base = shared_base(places)
    assert base.origin == "recipe:debian-python"
    assert base.python is not None
    assert base.python.startswith("3.11.")
    assert base.python_path == "/usr/bin/python3"
    assert base.libc == "glibc-2.36"
    versions = {p.name: p for p in base.packages}
    assert {"python3", "libc6", "libstdc++6", "ca-certificates"} <= versions.keys()
    assert "perl" not in versions
    assert all(p.sha256 and len(p.sha256) == 64 for p in base.packages)


def test_a_base_is_found_by_its_record_alone(places: Places) -> None:
    """There is none at first; once made it is found; with a damaged layer it is to be made again."""
    tree, platform = no_tree(), host_platform()
    assert find_base("debian-python", tree, places, platform) is None
    base = shared_base(places)
    assert find_base("debian-python", tree, places, platform) == base
    assert make_base("debian-python", tree, places, platform, None, Silent()) == base
    base.layers[0].path.unlink()
    assert find_base("debian-python", tree, places, platform) is None


@pytest.mark.engine
def test_python_of_the_base_runs_as_a_stranger_from_a_read_only_root(places: Places) -> None:
    """Python starts with its bytecode, TLS, SQLite and time zones, without network or privilege."""
    program = (
        "import ssl, sqlite3, ctypes, zoneinfo, json, os;"
        "zoneinfo.ZoneInfo('Europe/Berlin');"
        "assert os.path.exists(json.__cached__), json.__cached__;"
        "print(os.getuid(), open('/etc/passwd').read().count(chr(10)))"
    )
    with loaded(shared_base(places)) as image:
        assert contained(image, "python3", "-c", program) == "10001 3\n"


def test_source_lines_are_this_hosts_where_it_has_debian() -> None:
    """Debian's archive in the wanted suite is taken from the host; others' archives are not."""
    targets = (
        "Debian|bookworm|bookworm|http://mirror.example/debian/|main\n"
        "Debian|bookworm-security|bookworm-security|http://mirror.example/security/|main\n"
        "Debian|bookworm-backports|bookworm-backports|http://mirror.example/debian/|main\n"
        "Debian|bookworm|bookworm|http://mirror.example/debian/|non-free\n"
        "Somebody|bookworm|bookworm|http://other.example/|main\n"
    )
    assert recipe.source_lines(targets, "bookworm") == [
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/security bookworm-security main",
    ]
    for other in ("", "Ubuntu|noble|noble|http://mirror.example/ubuntu/|main\n"):
        assert "deb http://deb.debian.org/debian bookworm main" in recipe.source_lines(
            other, "bookworm"
        )


def test_the_inventory_joins_what_is_installed_with_the_mirrors_hashes() -> None:
    """A package that is only configured away is not listed; one without a hash is, without."""
    status = (
        "Package: a\nStatus: install ok installed\nVersion: 1\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: b\nStatus: install ok installed\nVersion: 2\n"
    )
    lists = ["Package: a\nVersion: 0\nSHA256: old\n\nPackage: a\nVersion: 1\nSHA256: new\n"]
    found = recipe.inventory(status, lists)
    assert [(p.name, p.version, p.sha256) for p in found] == [("a", "1", "new"), ("b", "2", None)]


def test_an_unknown_recipe_is_named_with_those_that_exist() -> None:
    """A name that is neither a recipe nor a reference is a usage error."""
    with pytest.raises(UsageError) as caught:
        source("debian-pyhton", no_tree(), host_platform())
    assert "debian-pyhton" in caught.value.message
    assert "debian-python-build" in (caught.value.hint or "")


def test_without_privilege_the_hint_says_what_an_administrator_must_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user without subordinate ids or fakechroot learns exactly what to install."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault) as caught:
        recipe.mode()
    assert "apt-get install uidmap" in (caught.value.hint or "")


def test_a_failing_mmdebstrap_is_a_fault_with_its_last_words(
    places: Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the tool printed last stands in the error, its control characters escaped."""
    tools = private(tmp_path / "tools")
    fake = tools / "mmdebstrap"
    fake.write_text("#!/bin/sh\nprintf 'E: no \\033[2Jroute\\n' >&2\nexit 25\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(EnvironmentFault) as caught:
        make_base("debian-python", no_tree(), places, host_platform(), None, Silent())
    assert "E: no \\x1b[2Jroute" in caught.value.message
    assert find_base("debian-python", no_tree(), places, host_platform()) is None


@pytest.mark.soak
def test_two_builds_of_a_recipe_are_the_same_bytes(tmp_path: Path) -> None:
    """Made twice on one state of the mirror, with other umask and time zone, the digest is one."""
    made: list[str] = []
    old = os.umask(0o022)
    try:
        for name, mask in (("a", 0o022), ("b", 0o077)):
            os.umask(mask)
            layer, _ = recipe.make(
                recipe.load("debian-python"),
                host_platform(),
                LayerStore(private(tmp_path / name)),
                private(tmp_path / "scratch"),
                Silent(),
            )
            made.append(layer.diff_id)
    finally:
        os.umask(old)
    assert made[0] == made[1]


@pytest.mark.soak
@pytest.mark.engine
def test_the_build_base_compiles_an_extension(places: Places) -> None:
    """The base with a compiler builds and loads a C extension of its Python."""
    source_code = (
        "#include <Python.h>\n"
        'static struct PyModuleDef m = {PyModuleDef_HEAD_INIT, "ext"};\n'
        "PyMODINIT_FUNC PyInit_ext(void) { return PyModule_Create(&m); }\n"
    )
    script = (
        f"cd /tmp && printf '%s' '{source_code}' > ext.c && gcc -shared -fPIC "
        "$(python3-config --includes) ext.c -o ext.so && python3 -c 'import ext; print(ext)' "
        "&& echo 'int main(){}' > a.cc && g++ a.cc && ./a.out && make --version >/dev/null"
    )
    with loaded(shared_base(places, "debian-python-build")) as image:
        assert "module 'ext'" in contained(image, "sh", "-c", script)


# reading what a base holds


def test_layers_are_merged_as_an_engine_would(tmp_path: Path) -> None:
    """Whiteouts hide files, opaque markers hide directories, links stay inside, loops end."""
    store = LayerStore(private(tmp_path))
    link = b"120000"
    below = layer_of(store, {b"a/x": b"1", b"a/y": b"2", b"b/z": b"3", b"c": b"4"})
    above = layer_of(
        store,
        {
            b"a/.wh.x": b"",
            b"b/.wh..wh..opq": b"",
            b"b/new": b"5",
            b"up": (link, b"../../../a/y"),
            b"abs": (link, b"/a"),
            b"loop": (link, b"loop"),
        },
    )
    with contents.reading((below, above), "test") as found:
        assert found.read("a/x") is None
        assert found.read("b/z") is None
        assert (found.read("b/new"), found.read("c")) == (b"5", b"4")
        assert (found.read("up"), found.read("abs/y")) == (b"2", b"2")
        assert found.read("loop") is None
        assert found.names("") == ["a", "abs", "b", "c", "loop", "up"]


def test_a_foreign_pythons_version_is_found_without_running_it(tmp_path: Path) -> None:
    """The header says it, else the interpreter's own bytes; an ambiguous one is not guessed."""
    store = LayerStore(private(tmp_path))
    link = b"120000"
    bare: dict[bytes, Content] = {
        b"usr/local/bin/python3": (link, b"python3.12"),
        b"usr/local/bin/python3.12": b"\x7fELF\0 3.12.7 \0003.12.7\0tail",
    }
    cases: list[tuple[dict[bytes, Content], str | None]] = [
        (bare, "3.12.7"),
        (
            bare | {b"usr/local/include/python3.12/patchlevel.h": b'#define PY_VERSION "3.12.9"'},
            "3.12.9",
        ),
        (bare | {b"usr/local/bin/python3.12": b"\0003.12.7\0003.12.8\0\0003.12.8\0"}, None),
    ]
    for files, expected in cases:
        with contents.reading((layer_of(store, files),), "test") as found:
            python = contents.find_python(found)
            assert (python.version if python else None) == expected


def test_packages_of_other_distributions_are_listed(tmp_path: Path) -> None:
    """Alpine's, conda's and distroless databases are read; what is malformed is left out."""
    store = LayerStore(private(tmp_path))
    files: dict[bytes, Content] = {
        b"lib/apk/db/installed": b"C:Q1\nP:musl\nV:1.2.5-r0\n\nP:zlib\nV:1.3\n",
        b"var/lib/dpkg/status.d/base": b"Package: base-files\nVersion: 12\n",
        b"opt/conda/conda-meta/x.json": b'{"name": "x", "version": "1", "sha256": "ab"}',
        b"opt/conda/conda-meta/bad.json": b"{",
        b"lib/ld-musl-x86_64.so.1": b"ELF\0001.2.5\0",
    }
    with contents.reading((layer_of(store, files),), "test") as found:
        names = [(p.name, p.version) for p in contents.find_packages(found)]
        assert contents.find_libc(found, "amd64") == "musl-1.2"
    assert names == [("base-files", "12"), ("musl", "1.2.5-r0"), ("x", "1"), ("zlib", "1.3")]


def test_hard_links_carry_their_content_wherever_the_archive_put_it(tmp_path: Path) -> None:
    """The first kept path of one file holds the bytes, so that every link's target precedes it."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo("z/file")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = tarfile.LNKTYPE, "z/file"
        archive.addfile(link)
    raw.seek(0)
    with tarfile.open(fileobj=raw) as archive:
        members = normal.members_of(archive, lambda _: True)
        layer = normal.write_layer(members, LayerStore(private(tmp_path)))
    with tarfile.open(layer.path) as written:
        assert written.getmember("z/file").linkname == "a/link"
        found = written.extractfile("z/file")
        assert found is not None
        assert found.read() == b"abc"


# references


def export(layers: list[bytes], *, oci: bool = False, lie: bool = False) -> io.BytesIO:
    """Return an image as an engine exports it: Docker's older layout, or OCI's with gzip."""
    diff_ids = ["sha256:" + hashlib.sha256(x + b"!" * lie).hexdigest() for x in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    files: dict[str, bytes] = {}
    if oci:
        blobs = [gzip.compress(x) for x in layers]
        digests = [hashlib.sha256(x).hexdigest() for x in (config, *blobs)]
        files |= {f"blobs/sha256/{d}": x for d, x in zip(digests, (config, *blobs), strict=True)}
        manifest = json.dumps(
            {
                "config": {"digest": f"sha256:{digests[0]}"},
                "layers": [{"digest": f"sha256:{d}"} for d in digests[1:]],
            }
        ).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        files[f"blobs/sha256/{digest}"] = manifest
        files["index.json"] = json.dumps({"manifests": [{"digest": f"sha256:{digest}"}]}).encode()
    else:
        names = [f"{n}/layer.tar" for n in range(len(layers))]
        files |= dict(zip(names, layers, strict=True)) | {"config.json": config}
        files["manifest.json"] = json.dumps([{"Config": "config.json", "Layers": names}]).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    out.seek(0)
    return out


@pytest.mark.parametrize("oci", [False, True])
def test_both_layouts_of_an_export_give_the_same_layers(tmp_path: Path, *, oci: bool) -> None:
    """Docker's and OCI's layout, gzip or not: layers are stored uncompressed under their digest."""
    store = LayerStore(private(tmp_path))
    raw = [b"one" * 1000, b"two" * 1000]
    found = reference.read_export(export(raw, oci=oci), Platform(), store, "test")
    assert [b"".join(chunks(layer)) for layer in found] == raw


def test_a_layer_that_is_not_what_the_config_says_is_refused(tmp_path: Path) -> None:
    """A layer whose bytes do not hash to the config's diff_id never enters the store."""
    store = LayerStore(private(tmp_path))
    with pytest.raises(EnvironmentFault, match="hashes to"):
        reference.read_export(export([b"x"], lie=True), Platform(), store, "test")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_no_archive_is_a_fault(tmp_path: Path) -> None:
    """Rubbish, a cut stream and a hostile manifest are faults, not tracebacks."""
    store = LayerStore(private(tmp_path))
    whole = export([b"x" * 4000]).getvalue()
    for content in (b"", b"rubbish" * 1000, whole[:2000]):
        with pytest.raises(EnvironmentFault):
            reference.read_export(io.BytesIO(content), Platform(), store, "test")


@pytest.mark.parametrize(
    "text", ["base = 3", '[base]\n"python:3" = "python:3.11"', "not toml at all ]"]
)
def test_pins_that_pin_nothing_are_refused(tmp_path: Path, text: str) -> None:
    """A sealrun.lock that is malformed, or pins a tag to a tag, is refused."""
    tree = tree_of(tmp_path, {b"sealrun.lock": text.encode()})
    with pytest.raises(SealRefused):
        source("python:3", tree, host_platform())


def test_a_pin_in_the_commit_decides_what_a_tag_means(tmp_path: Path) -> None:
    """With a pin, the base is looked for under the digest that the commit names."""
    pin = "python@sha256:" + "a" * 64
    tree = tree_of(tmp_path, {b"sealrun.lock": f'[base]\n"python:3" = "{pin}"\n'.encode()})
    assert source("python:3", tree, host_platform()).name == pin
    assert source("python:3", no_tree(), host_platform()).name == "python:3"


def test_a_reference_without_an_engine_is_a_fault_with_a_hint(places: Places) -> None:
    """Where no engine answers, an image cannot be taken, and the hint says what starts one."""
    with pytest.raises(EnvironmentFault) as caught:
        make_base("python:3", no_tree(), places, host_platform(), None, Silent())
    assert "sealrun engine up" in (caught.value.hint or "")


def loading(base: Base, name: str) -> str:
    """Import a base's layers into the engine as one image, by the engine's own builder."""
    client: Any = engine()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        lines = ["FROM scratch"]
        for number, layer in enumerate(base.layers):
            archive.add(layer.path, f"{number}.tar")
            lines.append(f"ADD {number}.tar /")
        text = "\n".join(lines).encode()
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    context.seek(0)
    for line in client.build(fileobj=context, custom_context=True, decode=True, tag=name, rm=True):
        assert "error" not in line, line
    return name


class loaded:  # noqa: N801 - reads as a statement: with loaded(base) as image
    """Have a base in the engine for the length of a block."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def __enter__(self) -> str:
        self.name = loading(self.base, f"sealrun-test-base:{os.getpid()}")
        return self.name

    def __exit__(self, *_: object) -> None:
        engine().remove_image(self.name)


def contained(image: str, *argv: str) -> str:
    """Run a command in a hardened container; return its output."""
    command = ["docker", "run", "--rm", "--network=none", "--user=10001", "--read-only"]
    command += ["--tmpfs=/tmp:exec", "--cap-drop=ALL", image, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tagged() -> Iterator[str]:
    """Name of an image of the engine that is gone afterwards."""
    name = f"sealrun-test-reference:{os.getpid()}"
    yield name
    subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)


def small_image(name: str, mark: str) -> str:
    """Build a tiny image with everything in its config that must be dropped; return its id."""
    text = (
        f"FROM scratch\nCOPY mark /workspace/{mark}\nCOPY mark /etc/mark\nENV LD_PRELOAD=/evil\n"
        'VOLUME /data\nENTRYPOINT ["/evil"]\nUSER 0\n'
    )
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for path, content in (("Dockerfile", text.encode()), ("mark", mark.encode())):
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    context.seek(0)
    client: Any = engine()
    for line in client.build(fileobj=context, custom_context=True, decode=True, tag=name, rm=True):
        assert "error" not in line, line
    return str(client.inspect_image(name)["Id"])


@pytest.mark.engine
def test_only_files_are_taken_from_an_image(places: Places, tagged: str) -> None:
    """Layers hash to the image's own, ours come on top and hide what it put into the workdir."""
    image = small_image(tagged, "planted")
    client: Any = engine()
    base = make_base(image, no_tree(), places, host_platform(), client, Silent())
    inside = client.inspect_image(image)["RootFS"]["Layers"]
    assert [layer.diff_id for layer in base.layers[:-1]] == inside
    assert base.python is None
    with contents.reading(base.layers, "test") as found:
        assert found.read("etc/mark") == b"planted"
        assert found.names("workspace") == []
        assert {"opt", "out", "home", "tmp", ".sealrun"} <= set(found.names(""))
    assert find_base(image, no_tree(), places, host_platform()) == base


@pytest.mark.engine
def test_a_tag_is_resolved_once(places: Places, tagged: str) -> None:
    """When the tag moves to another image, the base stays what it was, and the record names it."""
    first = small_image(tagged, "first")
    base = make_base(tagged, no_tree(), places, host_platform(), engine(), Silent())
    small_image(tagged, "second")
    again = make_base(tagged, no_tree(), places, host_platform(), engine(), Silent())
    assert again == base
    assert base.origin == f"reference:{first}"


@pytest.mark.engine
def test_an_image_that_nobody_has_is_a_fault_with_the_engines_words(places: Places) -> None:
    """A local id that is not there, and a name that cannot be pulled, say so with a hint."""
    for name in ("sha256:" + "0" * 64, "localhost:1/nothing:here"):
        with pytest.raises(EnvironmentFault) as caught:
            make_base(name, no_tree(), places, host_platform(), engine(), Silent())
        assert caught.value.hint


# Dockerfiles


def test_the_sources_of_a_dockerfile_are_read() -> None:
    """Literal sources are found over continued lines; anything uncertain is not guessed."""
    text = "FROM x\nCOPY --chown=1:1 a b/c /d/\nCOPY --from=y /z /z\nADD \\\n  e \\\n  /f\n"
    assert dockerfile.sources(text) == ("a", "b/c", "e")
    assert dockerfile.sources("FROM x\nRUN true\n") == ()
    assert dockerfile.sources("FROM x\nCOPY . /a\n") == ("",)
    for line in ("COPY *.txt /", "COPY $A /", 'COPY ["a", "b"]', "RUN --mount=type=bind true"):
        assert dockerfile.sources(f"FROM x\n{line}\n") is None


def test_only_what_a_dockerfile_takes_in_makes_it_another_base(tmp_path: Path) -> None:
    """An edit of the script keeps the base's key; an edit of a copied file changes it."""
    files: dict[bytes, Content] = {
        b"Dockerfile": b"FROM scratch\nCOPY etc /etc\n",
        b"etc/a": b"1",
        b"train.py": b"1",
    }
    platform = host_platform()
    keys = [
        source("dockerfile:Dockerfile", tree_of(tmp_path, files | change), platform).key
        for change in ({}, {b"train.py": b"2"}, {b"etc/a": b"2"}, {b"etc/a": (b"100755", b"1")})
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_dockerfile_that_is_not_committed_is_refused(tmp_path: Path) -> None:
    """A Dockerfile beside the commit does not count."""
    with pytest.raises(SealRefused, match=r"build/Dockerfile"):
        source("dockerfile:build/Dockerfile", tree_of(tmp_path, {b"a": b"b"}), host_platform())


@pytest.mark.engine
def test_a_dockerfile_builds_from_the_committed_bytes(places: Places, tmp_path: Path) -> None:
    """The context is the commit, not the working directory; the engine keeps nothing of it."""
    directory = repository(tmp_path / "repository")
    unique = os.urandom(8).hex().encode()
    commit(
        directory,
        {
            b"Dockerfile": b"FROM scratch\nLABEL mark=" + unique + b"\nCOPY data /etc/data\n",
            b"data": unique,
            b".dockerignore": b"secret\n",
        },
    )
    (directory / "data").write_bytes(b"not committed")
    tree = committed(directory, tmp_path / "spool")
    spec = "dockerfile:Dockerfile"
    base = make_base(spec, tree, places, host_platform(), engine(), Silent())
    listed = subprocess.run(
        ["docker", "images", "--all", "--quiet", "--filter", f"label=mark={unique.decode()}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout == ""
    with contents.reading(base.layers, "test") as found:
        assert found.read("etc/data") == unique
    assert find_base(spec, tree, places, host_platform()) == base


@pytest.mark.engine
def test_a_failing_build_shows_the_engines_last_words(places: Places, tmp_path: Path) -> None:
    """A Dockerfile that does not build is a fault that names it and says what the engine said."""
    tree = tree_of(tmp_path, {b"Dockerfile": b"FROM scratch\nCOPY nothing /x\n"})
    with pytest.raises(EnvironmentFault) as caught:
        make_base("dockerfile:Dockerfile", tree, places, host_platform(), engine(), Silent())
    assert "Dockerfile does not build" in caught.value.message
    assert "nothing" in caught.value.message
