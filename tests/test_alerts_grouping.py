"""From mutations to alerts: what is one alert, what comes back, what is open, and its bytes."""

from __future__ import annotations

import dataclasses
import hashlib
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _laundering import tree_of
from _ledger import alert, ledger_at, opened
from sealrun.alerts import cures
from sealrun.alerts.grouping import (
    MOST_STATES,
    Standing,
    bases,
    foreign,
    from_mutations,
    ordinal,
    stand,
    standing,
)
from sealrun.alerts.laundering import contained, hunk_digests
from sealrun.guard.coverage import Moment
from sealrun.guard.mutations import EvidenceStore, Mutation, Writer
from sealrun.guard.processes import Process as Seen
from sealrun.ledger import (
    Alert,
    AlertAccepted,
    Ledger,
    Process,
    Recorded,
    WriterFacts,
    open_ledger,
)
from sealrun.ledger.codec import to_document
from sealrun.ownership.whose import Whose
from sealrun.tree import Spool, blob_id
from sealrun.verdict import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _git import Repo

BOOT = "boot"
CODE = Seen(40, "/usr/share/code/code", ("code", "."), started=4)
SHELL = Seen(
    41, "/usr/bin/bash", ("bash", "-c", "for f in *.py; do sed -i s/a/b/ $f; done"), started=5
)
RUFF = Writer(
    "live", "unknown", None, Seen(99, "/usr/bin/ruff", ("ruff", "server"), started=9), (CODE,)
)
PATHS = [f"src/module_{n}.py" for n in range(40)]
OLD = b"import math\nSCALAR_LR = 0.5\n\nprint(math.pi)\n"
NEW = OLD.replace(b"0.5", b"0.3")


class Watch:
    """Makes mutations as the guard would report them, with evidence kept below a directory."""

    def __init__(self, directory: Path) -> None:
        self.store = EvidenceStore(directory)
        self.numbers = count()

    def mutation(
        self,
        path: str = "train.py",
        after: bytes | None = NEW,
        before: bytes = OLD,
        *,
        at: float = 0.0,
        writer: Writer = RUFF,
        **fields: object,
    ) -> Mutation:
        """Return a mutation; ``after`` None is a deletion."""
        moment = Moment(100.0 + at, 1_700_000_000.0 + at, BOOT)
        values: dict[str, Any] = {
            "number": next(self.numbers),
            "path": path.encode(),
            "area": "tracked",
            "kind": "modified" if after is not None else "deleted",
            "before": f"git-sha1:{blob_id(before)}",
            "after": None if after is None else f"git-sha1:{blob_id(after)}",
            "mode": 0o100644,
            "events": ("modify",),
            "first": moment,
            "last": moment,
            "writer": writer,
        }
        if after is not None:
            digest = hashlib.sha256(after).hexdigest()
            values["evidence"] = self.store.keep(digest, len(after), after)
        return Mutation(**(values | fields))


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """Give a guard's evidence directory."""
    return Watch(tmp_path / "evidence")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Give a ledger without events."""
    with ledger_at(tmp_path / "ledger.sqlite") as one:
        yield one


def as_(category: Any) -> Callable[[Mutation], Whose]:  # noqa: ANN401 - one of three words
    """Return what says the same of every mutation."""
    return lambda _: Whose(category, "a test says so")


TREE = tree_of({"train.py": OLD, **dict.fromkeys(PATHS, OLD)})


def alerts_of(
    *mutations: Mutation,
    category: str = "foreign",
    known: tuple[Standing, ...] = (),
    store: EvidenceStore | None = None,
) -> tuple[Alert, ...]:
    """Return the alerts of mutations against a tree in which every file is ``OLD``."""
    return from_mutations(None, mutations, TREE, None, as_(category), known, store=store)


# -- one alert -----------------------------------------------------------------------------------


def test_a_formatters_run_over_forty_files_is_one_alert(watch: Watch) -> None:
    """One alert with forty paths, each with its own bytes; others' changes in between are others'."""
    other = Writer("live", "unknown", None, Seen(7, "/usr/bin/rsync", ("rsync",), started=1))
    mutations = [watch.mutation(p, at=n / 50) for n, p in enumerate(PATHS)]
    mutations.insert(20, watch.mutation("train.py", at=0.4, writer=other))
    one, two = alerts_of(*mutations)
    assert one.path == PATHS[0]
    assert set(one.paths) == set(PATHS)
    assert len(one.states) == 40
    assert one.detail == "ruff from the editor's server; 40 paths"
    assert one.reason == "edit-foreign"
    assert one.count == 1
    assert two.path == "train.py"
    assert two.paths == ()
    assert to_document(one)[1] == {}


def test_processes_of_one_loop_are_one_run(watch: Watch) -> None:
    """A shell's loop that starts a process a file is one alert; the same much later is another."""

    def sed(number: int) -> Writer:
        process = Seen(200 + number, "/usr/bin/sed", ("sed", "-i", "s/a/b/"), started=number)
        return Writer("live", "unknown", None, process, (SHELL,))

    burst = [watch.mutation(p, at=n / 10, writer=sed(n)) for n, p in enumerate(PATHS[:5])]
    late = watch.mutation("train.py", at=60.0, writer=sed(9))
    first, second = alerts_of(*burst, late)
    assert len(first.paths) == 5
    assert second.path == "train.py"


def test_without_a_writer_only_what_came_at_one_go_stands_together(watch: Watch) -> None:
    """Nobody is known, and the alert says so and claims no more than the time."""
    nobody = Writer()
    burst = [watch.mutation(p, at=n / 10, writer=nobody) for n, p in enumerate(PATHS[:5])]
    late = watch.mutation("train.py", at=3.0, writer=nobody)
    first, second = alerts_of(*burst, late, category="unknown")
    assert first.detail is not None
    assert "whether one program wrote them all is not known" in first.detail
    assert first.writer.how == "unavailable"
    assert first.reason == second.reason == "edit-unattributed"
    assert first.cure is not None
    assert "not known" in first.cure


def test_different_phases_and_reasons_stay_apart(watch: Watch) -> None:
    """What happened before the gate and what happened after it are two alerts, data is a third."""
    mutations = (
        watch.mutation(PATHS[0], at=0.0),
        watch.mutation(PATHS[1], at=0.2),
        watch.mutation("/data/shard.bin", at=0.3, area="data"),
    )
    found = from_mutations("01", mutations, TREE, 100.1, as_("foreign"))
    assert [(one.phase, one.reason) for one in found] == [
        (Phase.AFTER_COMMIT, "edit-foreign"),
        (Phase.DURING_RUN, "edit-foreign"),
        (Phase.DURING_RUN, "data-changed"),
    ]


def test_what_the_loop_writes_is_no_alert(watch: Watch) -> None:
    """The loop's own edit of a tracked file makes none; of data it does."""
    mutations = watch.mutation(), watch.mutation("/data/x", area="data")
    (one,) = alerts_of(*mutations, category="loop")
    assert (one.reason, one.writer.category) == ("data-changed", "loop")


def test_a_huge_run_is_bounded(watch: Watch) -> None:
    """Thousands of files are several alerts, none of which the ledger cuts, and no path is lost."""
    mutations = [watch.mutation(f"{'d' * 200}/{n}.py", at=n / 1000) for n in range(1200)]
    found = alerts_of(*mutations)
    assert all(len(one.states) <= MOST_STATES for one in found)
    assert all(to_document(one)[1] == {} for one in found)
    assert {state.path for one in found for state in one.states} == {
        f"{'d' * 200}/{n}.py" for n in range(1200)
    }


# -- the same again ------------------------------------------------------------------------------


def again(ledger: Ledger, watch: Watch, after: bytes = NEW, **fields: Any) -> Alert:  # noqa: ANN401
    """Let a mutation come with what is on record known, and record its alert."""
    (one,) = alerts_of(watch.mutation(after=after, **fields), known=standing(ledger))
    ledger.append(one)
    return one


def test_the_same_hunk_is_one_alert_that_counts(ledger: Ledger, watch: Watch) -> None:
    """Nine times the same replacement, on ever other versions of the file: one alert, its cure said."""
    ids: set[str] = set()
    for number in range(9):
        old = OLD + b"# idea %d\n" % number
        tree = tree_of({"train.py": old}, f"{number:040d}")
        mutation = watch.mutation(after=old.replace(b"0.5", b"0.3"), before=old, at=60.0 * number)
        (one,) = from_mutations(None, [mutation], tree, None, as_("foreign"), standing(ledger))
        ledger.append(one)
        ids.add(one.id)
    assert len(ids) == 1
    assert one.count == 9
    assert one.detail == "9th time, ruff from the editor's server"
    assert one.cure == (
        "Switch off formatting on save for this workspace in the editor behind pid 99. "
        'Or exclude them: [tool.ruff.format] exclude = ["train.py"].'
    )
    (stands,) = standing(ledger)
    assert len(stands.states) == 9
    assert stands.alert.event.first_at != stands.alert.event.last_at


def test_another_hunk_path_or_program_is_another_alert(ledger: Ledger, watch: Watch) -> None:
    """Only the same replacement on the same path by the same program counts up."""
    first = again(ledger, watch)
    sed = Writer("live", "unknown", None, Seen(5, "/usr/bin/sed", ("sed",), started=1))
    others = [
        again(ledger, watch, after=OLD.replace(b"0.5", b"0.4")),
        again(ledger, watch, path=PATHS[0]),
        again(ledger, watch, writer=sed),
    ]
    assert len({first.id, *(one.id for one in others)}) == 4
    assert {one.count for one in others} == {1}
    assert again(ledger, watch).id == first.id


def test_twice_in_one_report(watch: Watch) -> None:
    """The same change an hour apart within one run is one id with two events that count."""
    one, two = alerts_of(watch.mutation(at=0.0), watch.mutation(at=3600.0))
    assert one.id == two.id
    assert (one.count, two.count) == (1, 2)


def test_binary_and_deleted_files_come_back_too(ledger: Ledger, watch: Watch) -> None:
    """What has no lines is the same where its bytes are."""
    for after in (b"\0\1\2", None):
        (first,) = alerts_of(watch.mutation(after=after), known=standing(ledger))
        ledger.append(first)
        (second,) = alerts_of(watch.mutation(after=after), known=standing(ledger))
        assert second.id == first.id


def test_ordinals() -> None:
    """Numbers are spoken as people do."""
    spoken = [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111, 113)]
    assert spoken == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th", "113th")
    ]


# -- open, and accepted --------------------------------------------------------------------------


def accept(ledger: Ledger, one: Alert) -> None:
    """Accept what is on record of an alert."""
    (stands,) = [s for s in standing(ledger) if s.id == one.id]
    ledger.append(AlertAccepted(alert=one.id, upto=stands.alert.seq, reason="ours"))


def laundered(ledger: Ledger, committed: bytes) -> list[str]:
    """Return the alerts whose bytes a commit holds."""
    states, _ = foreign(standing(ledger), lambda _: TREE)
    return [hit.alert for hit in contained(tree_of({"train.py": committed}), states)]


def test_accepted_bytes_are_not_looked_for(ledger: Ledger, watch: Watch) -> None:
    """After an acceptance the same hunk is clean, also when it comes back; other bytes are open."""
    one = again(ledger, watch)
    assert laundered(ledger, NEW) == [one.id]
    accept(ledger, one)
    assert laundered(ledger, NEW) == []
    assert again(ledger, watch).id == one.id
    assert not standing(ledger)[0].is_open
    assert laundered(ledger, NEW) == []
    both = NEW.replace(b"math.pi", b"math.tau")
    assert again(ledger, watch, after=both).id == one.id
    assert standing(ledger)[0].is_open
    assert laundered(ledger, both) == [one.id]
    assert laundered(ledger, both + b"# mine\n") == [one.id]
    assert laundered(ledger, NEW + b"# mine\n") == []


def test_an_alert_is_the_sum_of_its_events(ledger: Ledger, watch: Watch) -> None:
    """Paths of earlier occasions are still looked for when a later one was about others."""
    first = alerts_of(*(watch.mutation(p, at=n / 9) for n, p in enumerate(PATHS[:3])))
    ledger.append(first[0])
    (second,) = alerts_of(watch.mutation(PATHS[2], at=50.0), known=standing(ledger))
    ledger.append(second)
    (stands,) = standing(ledger)
    assert stands.paths == tuple(sorted(PATHS[:3]))
    states, problems = foreign([stands], lambda _: TREE)
    assert {state.path.decode() for state in states} == set(PATHS[:3])
    assert problems == ()


def test_bytes_are_read_and_proven(ledger: Ledger, watch: Watch) -> None:
    """Both sides come from the evidence; what was changed or is gone is said, and found by id."""
    (one,) = alerts_of(watch.mutation(), store=watch.store)
    ledger.append(one)
    nowhere = lambda _: None  # noqa: E731 - a tree that nobody has
    ((state,), problems) = foreign(standing(ledger), nowhere)
    assert (state.before, state.after, problems) == (OLD, NEW, ())
    (kept,) = one.states
    assert kept.evidence is not None
    evidence = Path(kept.evidence)
    evidence.chmod(0o600)
    evidence.write_bytes(OLD)
    ((state,), problems) = foreign(standing(ledger), nowhere)
    assert state.after is None
    assert state.blob == blob_id(NEW)
    assert problems == (f"alert {one.id}, train.py: its evidence was changed after it was taken",)
    evidence.unlink()
    evidence.symlink_to("/etc/hostname")
    assert "missing" in foreign(standing(ledger), nowhere)[1][0]
    hits = contained(tree_of({"train.py": NEW}), [state])
    assert [(hit.alert, hit.how) for hit in hits] == [(one.id, "blob")]


def test_content_that_was_cut_says_so(ledger: Ledger, tmp_path: Path) -> None:
    """Evidence that holds the beginning alone is not taken for the whole."""
    watch = Watch(tmp_path / "evidence")
    watch.store = EvidenceStore(tmp_path / "small", per_file=10)
    again(ledger, watch)
    (_,), (problem,) = foreign(standing(ledger), lambda _: TREE)
    assert problem.endswith("it was too large to be kept whole")


def test_only_the_loops_own_and_data_are_not_looked_for(ledger: Ledger, watch: Watch) -> None:
    """Unknown writers' bytes are looked for; data files and modes are in no commit."""
    mode = dataclasses.replace(
        watch.mutation(after=None), kind="mode-changed", after=f"git-sha1:{blob_id(OLD)}"
    )
    mutations = (
        watch.mutation(at=0.0),
        watch.mutation("/data/x", at=60.0, area="data"),
        dataclasses.replace(mode, path=PATHS[0].encode()),
    )
    for one in alerts_of(*mutations, category="unknown"):
        ledger.append(one)
    states, _ = foreign(standing(ledger), lambda _: TREE)
    assert [state.path for state in states] == [b"train.py"]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=25))
def test_open_is_what_came_after_the_last_acceptance(story: list[tuple[int, bool]]) -> None:
    """Whatever comes and is accepted in whatever order, open is each content not accepted since."""
    events: list[Recorded[Alert]] = []
    acceptances: list[Recorded[AlertAccepted]] = []
    accepted: set[int] = set()
    seen: set[int] = set()
    for seq, (content, accepts) in enumerate(story, 1):
        if accepts and events:
            event = AlertAccepted(alert="A", upto=events[-1].seq, reason="x")
            acceptances.append(Recorded(seq, "", 0, "", "", event, {}))
            accepted |= seen
        elif not accepts:
            one = alert(None, id="A", after=str(content), evidence="/nowhere")
            events.append(Recorded(seq, "", 0, "", "", one, {}))
            seen.add(content)
    found = stand(events, acceptances)
    assert {int(s.sha256 or "") for one in found for s in one.open} == seen - accepted
    assert all(one.is_open == bool(seen - accepted) for one in found)


def test_the_loop_resets_and_commits_everything(repo: Repo, ledger: Ledger, watch: Watch) -> None:
    """The story in a real repository: reset, ideas, the adopted change, a rename, and a gone commit."""
    commit = repo.commit({"train.py": OLD, "other.py": b"x = 1\n"})
    (one,) = from_mutations(
        "0" * 26, [watch.mutation()], repo.tree(), None, as_("foreign"), store=watch.store
    )
    ledger.append(one)
    (kept,) = one.states
    assert kept.commit == commit

    def hits() -> list[tuple[str, str, tuple[int, ...]]]:
        spool = Spool(repo.spools, "sha1")
        base_of = bases(repo.find(), spool)
        states, problems = foreign(standing(ledger), base_of)
        assert problems == ()
        found = contained(repo.tree(spool=spool), states, base_of)
        return [(hit.how, hit.path.decode(), hit.lines) for hit in found]

    repo.write({"train.py": NEW})
    repo.git("reset", "-q", "--hard")
    repo.commit({"train.py": OLD + b"idea = 1\n"})
    assert hits() == []
    repo.write({"train.py": NEW + b"idea = 2\n"})
    repo.git("commit", "-q", "-am", "adopted")
    assert hits() == [("hunk", "train.py", (2,))]
    repo.git("mv", "train.py", "model.py")
    repo.commit({"model.py": NEW + b"idea = 3\n"})
    assert hits() == [("hunk", "model.py", (2,))]
    repo.commit({"model.py": OLD + b"idea = 3\n"})
    assert hits() == []
    assert bases(repo.find(), Spool(repo.spools, "sha1"))("f" * 40) is None


# -- names and cures -----------------------------------------------------------------------------


def facts(*line: tuple[str, ...]) -> WriterFacts:
    """Return a writer with its parents, each by its command line."""
    processes = [
        Process(pid=10 + n, exe=f"/usr/bin/{words[0]}", cmdline=words)
        for n, words in enumerate(line)
    ]
    return WriterFacts(how="live", process=processes[0], parents=tuple(processes[1:]))


@pytest.mark.parametrize(
    ("line", "name", "cure"),
    [
        ((("ruff", "server"), ("code",)), "ruff from the editor's server", "behind pid 10"),
        ((("black", "-"), ("nvim",)), "black from the editor nvim", "the editor, pid 11"),
        (
            (("python3", "-m", "black", "."), ("git", "commit", "-m", "x"), ("claude",)),
            "black from a commit hook",
            "Exclude the files from the commit hook that runs black.",
        ),
        ((("isort", "a.py"), ("pre-commit", "run")), "isort from a commit hook", "commit hook"),
        (
            (("node", "/x/node_modules/prettier/bin/prettier.cjs"), ("bash",), ("claude",)),
            "prettier from a hook or a command of claude",
            "agent's hook that runs prettier",
        ),
        ((("rsync", "-a"), ("sh",), ("cron",)), "rsync from cron", "timetable of cron"),
        ((("sed", "-i"), ("entr", "make")), "sed from the file watcher entr", "Stop the watcher"),
        ((("rsync", "-a"), ("bash",)), "rsync", "out of what rsync copies"),
        ((("sed", "-i"), ("make",)), "sed", "why make (pid 11) starts sed"),
    ],
)
def test_where_a_writer_comes_from(line: tuple[tuple[str, ...], ...], name: str, cure: str) -> None:
    """A writer is named with what it belongs to, and the cure speaks of that."""
    writer = facts(*line)
    assert cures.named(writer) == name
    assert cure in cures.cure(writer, ["train.py"])


def test_a_hunks_digest_does_not_know_its_place() -> None:
    """The same replacement elsewhere in the file has the same digest; another one has another."""
    moved = hunk_digests(b"# top\n\n" + OLD, b"# top\n\n" + NEW)
    assert moved == hunk_digests(OLD, NEW) != ()
    assert hunk_digests(OLD, OLD.replace(b"0.5", b"0.4")) != moved
    assert hunk_digests(OLD, OLD + b"\n\n") == ()
    assert hunk_digests(b"\0", OLD) == hunk_digests(None, OLD) == ()


# -- the ledger ----------------------------------------------------------------------------------


def test_a_ledger_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    """Its events stay as they are, the chain holds, and its alerts are found by each of their paths."""
    file = tmp_path / "ledger.sqlite"
    with ledger_at(file) as ledger:
        run = opened()
        ledger.append(run)
        ledger.append(alert(run.run, path="a.py", paths=("a.py", "b.py")))
        head = ledger.head()
        connection = ledger._connection
        connection.execute("DROP TABLE alert_paths")
        connection.execute("DROP TABLE acceptances")
        connection.execute("PRAGMA user_version = 1")
    with ledger_at(file) as ledger:
        assert ledger.head() == head
        assert ledger.verify_chain().sound
        assert ledger.projections_hold()
        (one,) = ledger.alerts(path="b.py")
        assert one.event.path == "a.py"
        (stands,) = standing(ledger)
        assert stands.paths == ("a.py", "b.py")
        assert stands.is_open
    reader = open_ledger(file, ledger.repository, pinned_refs_exist=False)
    assert reader is not None
    reader.close()
