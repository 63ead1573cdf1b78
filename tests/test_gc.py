"""What ``sealrun gc`` removes, what it keeps whatever happens, and that its death harms nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from _image import base_of, engine, environment_of, layer_of
from _ledger import REPOSITORY, alert, ended, ledger_at, opened
from sealrun.errors import StorageFault
from sealrun.gc import keeping
from sealrun.gc.images import EngineSearch
from sealrun.gc.model import Kind
from sealrun.gc.sweep import Collection
from sealrun.image.store import LayerStore, Records
from sealrun.ledger import CacheFacts, DataFacts, HostFacts, LayerFacts, Ledger, RunProgress
from sealrun.progress import Silent
from sealrun.state import Places, private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _git import Repo
    from sealrun.gc.model import Collected
    from sealrun.image.model import Layer

YEAR = 365 * 86400.0
DIGEST = "ab" * 32
SEED = "ba" * 32


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Places of a user who has nothing yet."""
    root = tmp_path / "home"
    return Places(root / "state", root / "data", root / "cache", root / "runtime")


def collection(places: Places, *, later: float = YEAR) -> Collection:
    """Return a collection of everything that can go without an engine, at a later time."""
    return Collection(places, Silent(), unused=0, recent=0, connect=None, now=time.time() + later)


def collect(places: Places, *, later: float = YEAR) -> Collected:
    """Collect, at a later time."""
    return collection(places, later=later).collect()


def stored(places: Places, mark: bytes) -> Layer:
    """Put a layer into the store."""
    return layer_of(LayerStore(places.layers), {b"mark": mark})


def recorded_run(
    ledger: Ledger, *layers: Layer, data: str = DIGEST, end: bool = True, kind: str | None = "clean"
) -> str:
    """Write a run that was made of layers, the last of them its environment."""
    opening = opened(host=HostFacts(architecture="x86_64"))
    run = opening.run or ""
    roles = ["base"] * (len(layers) - 1) + ["environment"]
    facts = [
        LayerFacts(role=role, diff_id=layer.diff_id, size=layer.size)
        for role, layer in zip(roles, layers, strict=True)
    ]
    facts.append(LayerFacts(role="tree", diff_id="sha256:" + "cd" * 32, size=1))
    mounted = DataFacts(source="/data", target="/data", digest=data, files=1, hashed=1)
    with ledger.transaction() as transaction:
        transaction.append(opening)
        transaction.append(
            RunProgress(
                run=run,
                image_id="sha256:" + "ef" * 32,
                layers=tuple(facts),
                data=(mounted,),
                caches=CacheFacts(digest=SEED, files=1, size=1, commit="0" * 40),
            )
        )
        if end:
            transaction.append(ended(run, kind))
    return run


def everything(places: Places) -> dict[str, bytes]:
    """Return every file below all places, but for locks."""
    found: dict[str, bytes] = {}
    for root in (places.state, places.data, places.cache):
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.name not in (keeping.FILE, keeping.ALONE):
                found[str(path)] = path.read_bytes()
    return found


def furnish(places: Places) -> tuple[dict[str, bytes], set[str]]:
    """Fill places with what is needed and with one of everything that is not.

    Returns:
        What has to stay, with its bytes, and the paths that can go.
    """
    needed = [stored(places, mark) for mark in (b"base", b"environment")]
    records = Records(places.bases, LayerStore(places.layers))
    records.put_base("used", base_of(needed[0]))
    records.put_environment("used", environment_of(needed[1]))
    (places.bases / "resolution-x.toml").write_text("kept")
    item = private(places.data / "fetched" / "hub" / "org--name") / DIGEST
    item.mkdir()
    (item / ("77" * 32)).write_bytes(b"a blob that is named as an item is")
    (private(places.data / "caches" / "seeds" / SEED / "files") / "kernel.so").write_bytes(b"elf")
    with contextlib.closing(ledger_at(places.ledger(REPOSITORY))) as ledger:
        run = recorded_run(ledger, *needed)
        told = private(places.between(REPOSITORY) / run)
        (told / "bytes").write_bytes(b"foreign")
        ledger.append(alert(run, evidence=str(told / "bytes")))
    newest = private(places.between(REPOSITORY) / ("7" + "Z" * 25))
    (newest / "journal").write_bytes(b"the next guard's")
    (private(places.run(REPOSITORY, run)) / "log").write_bytes(b"val_bpb: 1")
    (private(places.keys) / "mine").write_bytes(b"key")
    stays = everything(places)
    # -- and now what nothing needs --
    records.put_base("old", base_of(needed[0], stored(places, b"old base")))
    records.put_environment("old", environment_of(stored(places, b"old environment")))
    stored(places, b"nobody's")
    other = private(places.data / "fetched" / "url" / "x") / ("11" * 32)
    other.mkdir()
    (other / "file").write_bytes(b"nobody's")
    record = private(places.data / "fetched" / "records") / ("22" * 32 + ".json")
    record.write_text(json.dumps({"digest": "11" * 32}))
    (private(places.data / "fetched" / "partial" / ("33" * 32)) / "half").write_bytes(b"half")
    caches = places.data / "caches"
    for seed in ("55" * 32, "66" * 32):
        (private(caches / "seeds" / seed / "files") / "old.so").write_bytes(b"elf")
    (private(caches / "records") / ("77" * 32 + ".json")).write_text(
        json.dumps({"digest": "66" * 32})
    )
    (private(caches / "partial" / ("8" * 16)) / "half").write_bytes(b"half")
    (places.layers / ("4" * 16 + ".draft")).write_bytes(b"half")
    (private(places.cache / "scratch" / "base-x") / "root.tar").write_bytes(b"half")
    (private(places.cache / "environments" / ("5" * 64) / "uv") / "wheel").write_bytes(b"w" * 9000)
    (private(places.spool(REPOSITORY)) / "objects-sha1").write_bytes(b"objects")
    (private(places.spool("6" * 32)) / "objects-sha1").write_bytes(b"objects")
    trees = private(places.trees(REPOSITORY))
    tree = layer_of(LayerStore(trees), {b"a": b"tree"})
    (trees / "sha1-x.json").write_text(
        json.dumps({"layer": tree.diff_id, "manifest": "sha256:" + "0" * 64})
    )
    untold = private(places.between(REPOSITORY) / ("0" * 26))
    (untold / "journal").write_bytes(b"of a watch that is over")
    return stays, set(everything(places)) - set(stays)


def test_what_nothing_needs_goes_and_what_a_run_needs_stays(places: Places) -> None:
    """After a collection exactly what has to stay is there, byte for byte, and each kind was told."""
    stays, goes = furnish(places)
    assert goes
    done = collect(places)
    assert everything(places) == stays
    assert {one.kind for one in done.found} == set(Kind) - {Kind.IMAGE}
    assert all(one.why and one.size >= 0 for one in done.found)
    assert done.size > 0
    assert collect(places).found == ()


def test_looking_changes_nothing_and_says_the_same_in_the_same_order(places: Places) -> None:
    """A dry run finds what a collection then removes, twice alike, and removes nothing."""
    furnish(places)
    before = everything(places)
    first = collection(places).look()
    assert collection(places).look().found == first.found
    assert everything(places) == before
    assert collect(places).found == first.found


def test_what_is_young_stays(places: Places) -> None:
    """Drafts, scratch, orphans and unused environments of this moment may be somebody's work."""
    furnish(places)
    before = everything(places)
    done = Collection(places, Silent(), unused=YEAR, recent=0, connect=None).collect()
    assert done.found == ()
    assert everything(places) == before


@pytest.mark.parametrize("kind", ["clean", "flagged", "aborted", "refused", None])
def test_every_run_counts_whatever_became_of_it(places: Places, kind: str | None) -> None:
    """A layer stays for an aborted, a refused and an unjudged run as for a clean one."""
    layers = (stored(places, b"base"), stored(places, b"environment"))
    with contextlib.closing(ledger_at(places.ledger(REPOSITORY))) as ledger:
        recorded_run(ledger, *layers, kind=kind)
    assert collect(places).found == ()
    assert all(layer.path.exists() for layer in layers)


def test_every_repository_below_the_state_has_a_say(places: Places) -> None:
    """What another repository's run was made of stays."""
    layers = [stored(places, bytes([n])) for n in range(6)]
    for n, name in enumerate(("0" * 32, "a" * 32, "f" * 32)):
        with contextlib.closing(ledger_at(places.ledger(name), name)) as ledger:
            recorded_run(ledger, *layers[2 * n : 2 * n + 2])
    assert collect(places).found == ()


def test_another_state_directory_that_uses_the_data_has_a_say(places: Places) -> None:
    """A state that was used with this data before counts, and while it is gone nothing is removed."""
    elsewhere = Places(
        places.state.with_name("elsewhere"), places.data, places.cache, places.runtime
    )
    layers = (stored(places, b"base"), stored(places, b"environment"))
    with contextlib.closing(ledger_at(elsewhere.ledger(REPOSITORY))) as ledger:
        recorded_run(ledger, *layers)
    with keeping.keeping(elsewhere), keeping.keeping(elsewhere):
        pass
    assert keeping.states(places) == (places.state, elsewhere.state)
    assert collect(places).found == ()
    elsewhere.state.rename(places.state.with_name("moved"))
    with pytest.raises(StorageFault, match=r"nothing was removed.*elsewhere is gone"):
        collect(places)
    assert all(layer.path.exists() for layer in layers)


def test_a_state_directory_is_known_by_its_whole_name(places: Places) -> None:
    """One whose path is the end of another's that was noted before is noted too."""
    longer = Places(
        places.state.parent / "mnt" / places.state.relative_to("/"),
        *(places.data, places.cache, places.runtime),
    )
    layers = (stored(places, b"base"), stored(places, b"environment"))
    with contextlib.closing(ledger_at(places.ledger(REPOSITORY))) as ledger:
        recorded_run(ledger, *layers)
    private(longer.state / "repositories")
    for user in (longer, places):
        with keeping.keeping(user):
            pass
    assert collect(longer).found == ()
    assert keeping.states(longer) == (longer.state, places.state)


def test_where_the_state_that_ran_is_gone_nothing_is_removed(places: Places) -> None:
    """A disk with the ledgers that is not mounted now is no user without runs."""
    layers = (stored(places, b"base"), stored(places, b"environment"))
    with contextlib.closing(ledger_at(places.ledger(REPOSITORY))) as ledger:
        recorded_run(ledger, *layers)
    with keeping.keeping(places):
        pass
    away = places.state.with_name("unmounted")
    places.state.rename(away)
    for mounted in (False, True):
        with pytest.raises(StorageFault, match="nothing was removed"):
            collect(places)
        if not mounted:
            places.state.mkdir()
    places.state.rmdir()
    away.rename(places.state)
    assert collect(places).found == ()
    assert all(layer.path.exists() for layer in layers)


def _garbage(places: Places) -> None:
    places.ledger(REPOSITORY).write_bytes(b"no database")


def _missing(places: Places) -> None:
    for path in places.repository(REPOSITORY).glob("ledger.sqlite*"):
        path.unlink()


def _edited(places: Places) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(places.ledger(REPOSITORY))) as connection:
        for (trigger,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("DELETE FROM events WHERE seq = 2")
        connection.commit()


def _stranger(places: Places) -> None:
    private(places.state / "repositories" / "not an id")


def _bad_import(places: Places) -> None:
    run = private(places.imported(REPOSITORY) / "runs" / ("0" * 26))
    (run / "events.jsonl").write_bytes(b"{}\n")


@pytest.mark.parametrize("harm", [_garbage, _missing, _edited, _stranger, _bad_import])
def test_without_every_record_nothing_is_removed(
    places: Places, harm: Callable[[Places], None]
) -> None:
    """A ledger that is damaged, missing or edited, and a stranger beside them, end it: all stays."""
    furnish(places)
    harm(places)
    before = everything(places)
    for act in (collection(places).collect, collection(places).look):
        with pytest.raises(StorageFault, match="nothing was removed") as caught:
            act()
        assert caught.value.hint
    assert everything(places) == before


def test_the_spool_and_evidence_of_a_repository_with_a_run_under_way_stay(places: Places) -> None:
    """While a controller holds its run's lock, what it may be reading is not looked at."""
    furnish(places)
    from sealrun.leftovers import lock

    with contextlib.closing(ledger_at(places.ledger(REPOSITORY))) as ledger:
        run = recorded_run(ledger, stored(places, b"a"), stored(places, b"b"), end=False)
    with lock(places.run(REPOSITORY, run)):
        kinds = {(one.kind, one.name.partition("/")[0]) for one in collect(places).found}
    here = REPOSITORY[:12]
    assert not {(Kind.SPOOL, here), (Kind.TREE_LAYER, here), (Kind.EVIDENCE, here)} & kinds
    assert (Kind.SPOOL, "6" * 12) in kinds
    assert {(one.kind, one.name.partition("/")[0]) for one in collect(places).found} >= {
        (Kind.SPOOL, here),
        (Kind.EVIDENCE, here),
    }


def dies_before(places: Places, change: int) -> bool:
    """Collect in a process that dies before a change of the disk; tell whether it came so far."""
    child = os.fork()
    if not child:
        left = change

        def dying(name: str, _: object) -> None:
            nonlocal left
            if name in ("os.remove", "os.rename", "os.rmdir"):
                left -= 1
                if left < 0:
                    os._exit(9)

        search = collection(places)
        sys.addaudithook(dying)
        try:
            search.collect()
        except BaseException:  # noqa: BLE001 - the child must not become a second test run
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


def test_a_death_at_any_line_leaves_what_the_next_collection_finishes(tmp_path: Path) -> None:
    """Killed before each change of the disk in turn, what has to stay is whole each time."""
    died = 0
    for number in range(200):
        root = tmp_path / str(number)
        places = Places(root / "state", root / "data", root / "cache", root / "runtime")
        stays, _ = furnish(places)
        dead = dies_before(places, number)
        now = everything(places)
        assert stays.items() <= now.items()
        for record in places.bases.glob("*.json"):
            # Whatever is still described is still there, or is told to be gone by the reader.
            document = json.loads(record.read_bytes())
            read = Records(places.bases, LayerStore(places.layers))
            assert (read.base(document["key"]) or read.environment(document["key"])) is not None
        if not dead:
            assert now == stays
            break
        died += 1
        collect(places)
        assert everything(places) == stays
    assert died > 15


_COLLECTING = """
import sys, time
from pathlib import Path
from sealrun.gc.sweep import Collection
from sealrun.progress import Silent
from sealrun.state import Places

root = Path(sys.argv[1])
places = Places(root / "state", root / "data", root / "cache", root / "runtime")
found = Collection(
    places, Silent(), unused=0, recent=0, connect=None, now=time.time() + 365 * 86400
).collect().found
print(len(found))
"""


def test_of_two_at_once_one_removes_and_none_fails(places: Places) -> None:
    """Four real processes at once: what goes goes once, what stays is whole."""
    stays, _ = furnish(places)
    expected = len(collection(places).look().found)
    command = [sys.executable, "-c", _COLLECTING, str(places.state.parent)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = [one.communicate() for one in running]
    assert [one.returncode for one in running] == [0] * 4, ends
    assert sorted(int(out) for out, _ in ends) == [0, 0, 0, expected]
    assert everything(places) == stays


def test_beside_somebody_who_uses_layers_nothing_is_removed(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a process keeps layers everything stays and is said; after its death it can go."""
    from sealrun.gc import sweep

    monkeypatch.setattr(sweep, "PATIENCE", 0.0)
    furnish(places)
    before = everything(places)
    script = (
        "import sys\nfrom pathlib import Path\nfrom sealrun.gc.keeping import keeping\n"
        "from sealrun.state import Places\nroot = Path(sys.argv[1])\n"
        "with keeping(Places(root / 'state', root / 'data', root / 'cache', root / 'runtime')):\n"
        "    print('here', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(places.state.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"here\n"
    done = collect(places)
    assert done.found == ()
    assert [one.what for one in done.left] == ["everything"]
    assert everything(places) == before
    holder.kill()
    holder.communicate()
    assert collect(places).found


def test_what_is_on_its_way_to_somebody_stays_for_a_day(places: Places) -> None:
    """Uploads of copies and layers hold no lock of ours and may take hours; a dead one goes later."""
    scratch = private(places.cache / "scratch")
    (private(scratch / "sync-ab12" / "0") / "run-x.wandb").write_bytes(b"uploading")
    (scratch / ("7" * 16 + ".tar")).write_bytes(b"a layer that is being mirrored")
    (private(scratch / "base-x") / "root.tar").write_bytes(b"half")
    assert [one.name for one in collect(places, later=2 * 3600).found] == ["scratch/base-x"]
    assert len(collect(places, later=2 * 86400).found) == 2


def test_a_directory_that_was_closed_goes_for_who_owns_it(places: Places, tmp_path: Path) -> None:
    """What an experiment closed in its scratch is removed without root's powers, links left alone."""
    closed = private(places.cache / "scratch" / "smoke-x" / "out" / "closed") / "more"
    closed.mkdir()
    (closed / "file").write_bytes(b"left")
    elsewhere = private(tmp_path / "elsewhere") / "theirs"
    elsewhere.mkdir(mode=0o500)
    (closed.parent.parent / "link").symlink_to(elsewhere)
    closed.chmod(0)
    closed.parent.chmod(0)
    script = """
import sys, time
from pathlib import Path
from sealrun.gc.sweep import Collection
from sealrun.progress import Silent
from sealrun.state import Places
places = Places(*(Path(name) for name in sys.argv[1:]))
done = Collection(
    places, Silent(), unused=0, recent=0, connect=None, now=time.time() + 9000
).collect()
print([one.name for one in done.found], done.left)
"""
    roots = map(str, (places.state, places.data, places.cache, places.runtime))
    powerless = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps=-all"]
    done = subprocess.run(
        [*powerless, sys.executable, "-c", script, *roots],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['scratch/smoke-x'] ()\n"
    assert not list(tmp_path.rglob("closed"))
    assert elsewhere.stat().st_mode & 0o777 == 0o500


def test_a_tree_of_any_depth_goes(places: Places) -> None:
    """Directories below one another without end, as a container can make them, end no collection."""
    top = private(places.cache / "scratch" / "smoke-x")
    subprocess.run(
        [sys.executable, "-c", "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"],
        cwd=top,
        check=True,
    )
    (one,) = collect(places).found
    assert one.size > 0
    assert not list((places.cache / "scratch").iterdir())
    assert not list((places.cache / "gone").iterdir())


def test_links_are_not_followed(places: Places, tmp_path: Path) -> None:
    """A link in a place of ours goes as a link; what it leads to is not touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"somebody's")
    (private(places.cache / "scratch") / "link").symlink_to(outside)
    (private(places.cache / "environments" / ("5" * 64)) / "link").symlink_to(outside)
    collect(places)
    assert not list((places.cache / "scratch").iterdir())
    assert (outside / "file").read_bytes() == b"somebody's"


# -- with the engine -------------------------------------------------------------------------------


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    repo.commit({"train.py": "import time, sys\nprint('val_bpb: 1')\n"}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


def reproduce_all(cli: Cli) -> None:
    """Hold every run on record to what it promises."""
    runs = cli.json("doctor", "--reproducible")["runs"]
    assert runs
    assert all(one["rebuildable"] for one in runs), runs
    for one in runs:
        found = cli.json("reproduce", one["run"])
        assert found["image_id"] == one["image_id"]
        assert found["likeness"] in ("outputs-identical", "metric-identical", "incomparable")


@pytest.mark.engine
def test_after_gc_every_row_of_a_night_can_be_reproduced(cli: Cli, repo: Repo) -> None:
    """Kept, discarded, failed and aborted runs are rebuilt to their ids when all images are gone."""
    cli.run("python3", "train.py")
    repo.commit({"train.py": "print('val_bpb: 2')\n"}, "worse")
    cli.run("python3", "train.py")
    repo.git("reset", "-q", "--hard", "HEAD~1")
    repo.git("reflog", "expire", "--expire=now", "--all")
    repo.git("gc", "-q", "--prune=now")
    repo.commit({"train.py": "raise SystemExit(3)\n"}, "broken")
    cli.run("python3", "train.py", status=3)
    _abort(cli, repo)
    verdicts = [one["verdict"]["kind"] for one in cli.json("log")["runs"]]
    assert sorted(verdicts) == ["aborted", "clean", "clean", "clean"]
    client = engine()
    references = {one["loading"]["engine_image"] for one in cli.json("log")["runs"]}
    done = Collection(
        cli.places,
        Silent(),
        unused=0,
        recent=0,
        connect=lambda: EngineSearch(client),
        now=time.time() + YEAR,
    ).collect()
    assert len([one for one in done.found if one.name.startswith("sealrun-tree:")]) >= 4
    assert Kind.SPOOL in {one.kind for one in done.found}
    here = {str(one["Id"]) for one in client.images(all=True)}
    assert not references & here
    reproduce_all(cli)


def _abort(cli: Cli, repo: Repo) -> None:
    """Interfere with a run through the engine, which aborts it."""
    repo.commit({"train.py": "import time\nprint('up', flush=True)\ntime.sleep(10)\n"}, "long")
    running = cli.start("run", "--", "python3", "train.py")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    client = engine()
    (container,) = client.containers(filters={"label": f"sealrun.commit={_head(repo)}"})
    exec_id = client.exec_create(container["Id"], ["touch", "/workspace/x"])["Id"]
    client.exec_start(exec_id)
    running.communicate()
    assert running.returncode == 122


def _head(repo: Repo) -> str:
    return repo.git("rev-parse", "HEAD")


@pytest.mark.engine
def test_gc_beside_a_running_experiment_takes_nothing_from_it(cli: Cli, repo: Repo) -> None:
    """The image in use stays, the run ends clean, and can be reproduced."""
    # More than all pipes on the way hold: it waits for its reader, and a repetition for nobody.
    program = f"print('up', flush=True)\nprint('x' * {8 << 20})\nprint('val_bpb: 3')\n"
    repo.commit({"train.py": program}, "much")
    running = cli.start("run", "--", "python3", "train.py")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    done = cli.json("gc", "--unused", "0s")
    assert running.poll() is None
    assert any(one["why"] == "a container uses it" for one in done["left"]), done
    assert not any(one["kind"] == "layer" for one in done["found"])
    out, err = running.communicate()
    assert (running.returncode, out[-12:]) == (0, b"\nval_bpb: 3\n"), err
    reproduce_all(cli)


@pytest.mark.engine
def test_images_of_another_home_stay(cli: Cli, repo: Repo) -> None:
    """An image that only another user's record names is not ours, though it is called alike."""
    theirs = Cli(repo.path, cli.home.with_name("theirs")).with_base()
    repo.commit({"train.py": f"print('{os.urandom(8).hex()}')"}, "only theirs")
    image = theirs.json("warm")["engine_image"]
    cli.json("gc", "--unused", "0s")
    assert engine().inspect_image(image)["Id"] == image
    freed = theirs.json("gc", "--unused", "0s")
    assert any(one["name"].startswith("sealrun-tree:") for one in freed["found"])
    assert image not in {str(one["Id"]) for one in engine().images(all=True)}


@pytest.mark.engine
def test_the_command_says_what_it_freed_and_keeps_recent_images(cli: Cli) -> None:
    """As a table and as JSON; with --recent an image that was just used stays in the engine."""
    cli.run("python3", "train.py")
    found = cli.json("gc", "--recent", "1h")
    (recent,) = [
        one["what"]
        for one in found["left"]
        if one["why"] == "it was used lately" and one["what"].startswith("sealrun-tree:")
    ]
    assert recent not in [one["name"] for one in found["found"]]
    dry = cli("gc", "--dry-run")
    assert recent in dry.stdout
    assert "would free" in dry.stderr
    done = cli("gc")
    assert recent in done.stdout
    assert "[sealrun] freed" in done.stderr
    assert "nothing to free" in cli("gc").stderr
    assert cli("gc", "--unused", "soon", status=2).stderr.count("no time") == 1


@pytest.mark.engine
def test_a_missing_ledger_of_the_repository_around_us_is_refused(cli: Cli, repo: Repo) -> None:
    """Pinned runs without a ledger: nobody knows what they need, so nothing goes."""
    cli.run("python3", "train.py")
    identity = (repo.path / ".git" / "sealrun" / "id").read_text().strip()
    cli.stop_guard()
    for path in cli.places.repository(identity).glob("ledger.sqlite*"):
        path.unlink()
    before = sorted(path.name for path in cli.places.layers.iterdir())
    assert "ledger" in cli("gc", "--unused", "0s", status=121).stderr
    assert sorted(path.name for path in cli.places.layers.iterdir()) == before
