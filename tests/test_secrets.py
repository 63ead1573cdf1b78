"""Keys where none should be are named by their place, never shown, and false alarms are rare."""

from __future__ import annotations

import os
import random
import string
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _cli import Cli
from _ledger import ledger_at, opened
from sealrun.data import DataFile, Dataset, Identity
from sealrun.ledger import PolicyFacts, RunProgress
from sealrun.secrets import (
    Seen,
    in_commit,
    in_files,
    in_names,
    in_variables,
    keys,
    variable,
)
from sealrun.secrets.detect import MOST, PLACES
from sealrun.secrets.look import PART, WHOLE
from sealrun.secrets.names import holder
from sealrun.secrets.shapes import SHAPES
from sealrun.secrets.withheld import asked_back, given_back, withheld

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

_RANDOM = random.Random(7)  # noqa: S311 - keys that open nothing
LETTERS, ALL = string.ascii_letters, string.ascii_letters + string.digits
HEX, BASE32 = "0123456789abcdef", string.ascii_uppercase + "234567"


def _some(characters: str, count: int) -> str:
    return "".join(_RANDOM.choice(characters) for _ in range(count))


def _mixed(count: int) -> str:
    """Return characters as a key has them: digits between letters."""
    return "aB3dE5" + _some(ALL, count - 6)


#: What is committed by mistake, by the kind that it is; made anew, so that no scanner finds them here.
MADE: dict[str, str] = {
    "AWS access key id": "aws_access_key_id = AKIA" + _some(BASE32, 16),
    "GitHub token": "git clone https://x:ghp_" + _some(ALL, 36) + "@github.com/a/b",
    "GitHub fine-grained token": "T=github_pat_" + _some(ALL, 22) + "_" + _some(ALL, 59),
    "GitLab token": "glpat-" + _some(ALL, 20),
    "Hugging Face token": 'login(token="hf_' + _some(LETTERS, 34) + '")',
    "Anthropic key": "sk-ant-api03-" + _some(ALL + "-_", 92) + "A",
    "OpenAI key": "sk-proj-" + _some(ALL, 40) + "T3BlbkFJ" + _some(ALL, 40),
    "OpenRouter key": "sk-or-v1-" + _some(HEX, 64),
    "Groq key": "gsk_" + _some(ALL, 52),
    "xAI key": "xai-" + _some(ALL, 80),
    "Replicate token": "r8_" + _some(ALL, 37),
    "Google API key": "AIza" + _some(ALL, 35),
    "Weights & Biases key": "os.environ['WANDB_API_KEY'] = '" + _some(HEX, 40) + "'",
    "Slack token": "xoxb-" + _some(string.digits, 12) + "-" + _some(ALL, 24),
    "Slack webhook": "https://hooks.slack.com/services/T"
    + _some(BASE32, 8)
    + "/B"
    + _some(BASE32, 8)
    + "/"
    + _some(ALL, 24),
    "PyPI token": "pypi-AgEIcHlwaS5vcmc" + _some(ALL, 120),
    "npm token": "//registry.npmjs.org/:_authToken=npm_" + _some(ALL, 36),
    "Stripe key": "sk_live_" + _some(ALL, 24),
    "SendGrid key": "SG." + _some(ALL, 22) + "." + _some(ALL, 43),
    "DigitalOcean token": "dop_v1_" + _some(HEX, 64),
    "Docker Hub token": "dckr_pat_" + _some(ALL, 27),
    "Databricks token": "dapi" + _some(HEX, 32),
    "netrc password": "machine api.wandb.ai\n  login user\n  password " + _some(HEX, 40),
    "private key": "-----BEGIN OPENSSH PRIVATE " + "KEY-----\n" + _some(ALL + "+/", 70),
    "Azure storage key": "AccountName=a;AccountKey=" + _some(ALL + "+/", 86) + "==",
    "password in a URL": "postgres://me:" + _mixed(20) + "@db.internal.net:5432/runs",
    "key in an assignment": "MY_SERVICE_API_KEY=" + _mixed(40),
}


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_is_found_and_never_shown(kind: str) -> None:
    """A key of each kind is found with its line, and nothing of its end is told."""
    found = keys(f"import os\n\n{MADE[kind]}\n".encode())
    lines = 2 + len(MADE[kind].splitlines())
    assert [(key.kind, key.line) for key in found] == [(kind, lines)]
    secret = max(MADE[kind].replace('"', " ").replace("'", " ").split(), key=len)
    assert secret[-12:-4] not in found[0].words()


def test_every_shape_has_a_test_and_a_source() -> None:
    """No kind of key is looked for without a key of it in the test above, and a source."""
    assert {shape.name for shape in SHAPES} == set(MADE)
    assert all(shape.source.startswith("https://") for shape in SHAPES)


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "api_key = 'your-api-key-goes-here-1234567890'",
        "OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "api_key = os.environ['SOME_SERVICE_API_KEY_2']",
        "token = tokenizer.convert_ids_to_tokens(input_ids)[0]",
        "cache_key = 'train_0123456789abcdef_v2_fp16'",
        "git checkout 0d6ce69f0ba7cbd4b3e2cfde9b1d2c5ed8bdf43b",
        "sha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'",
        "token: 123e4567-e89b-12d3-a456-426614174000",
        "pad_token='<|reserved_special_token_17|>'",
        "if line.startswith('-----BEGIN PRIVATE KEY-----'):",
        "postgres://user:password@localhost:5432/db",
        "machine example.com login me password changeme",
        "password = getpass.getpass('Password for the server2: ')",
        "HF_TOKEN=hf_...",
        "secret_key: ${{ secrets.AWS_SECRET_ACCESS_KEY_2 }}",
        "class TokenEmbedding2DWithRotaryPositions(nn.Module): token=TokenEmbedding2DWithRotary",
    ],
)
def test_what_looks_a_little_like_a_key_is_none(text: str) -> None:
    """Placeholders, digests, identifiers, markup and the examples of manuals are no keys."""
    assert keys(text.encode()) == []


def test_a_line_that_says_so_is_believed() -> None:
    """The words by which detect-secrets and gitleaks are told that a line holds none count here too."""
    line = MADE["Hugging Face token"]
    assert keys(f"{line}  # pragma: allowlist secret\n".encode()) == []
    assert keys(f"{line}  # gitleaks:allow\n".encode()) == []
    assert len(keys(f"# gitleaks:allow\n{line}\n".encode())) == 1


def test_hardly_anything_in_what_people_install_is_taken_for_a_key() -> None:
    """In the thousands of files installed beside these tests at most one in a thousand has a hit."""
    files = hits = 0
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))[::7]:
        files += 1
        hits += bool(keys(path.read_bytes()))
    assert files > 500
    assert hits <= files / 1000 + 1


@given(st.binary(max_size=4000))
def test_any_bytes_are_taken(content: bytes) -> None:
    """No bytes make the detector fail, and a key behind them is found."""
    found = keys(content + b"\n" + MADE["Groq key"].encode() + b"\n")
    assert "Groq key" in [key.kind for key in found] or len(found) == MOST or b"\0" in content


@pytest.mark.parametrize(
    "bait",
    [
        *(anchor for shape in SHAPES for anchor in shape.anchors),
        b"api_key = '" + b"a" * 150,
        b"machine a login b password ",
        b"-----BEGIN PRIVATE KEY-----\n",
        b"https://a:aB3dE5fG7hI9jK1l@",
        b" " * 30,
    ],
)
def test_one_line_of_a_megabyte_is_bounded(bait: bytes) -> None:
    """A line made of nothing but beginnings of keys is looked at in time linear in its length."""
    small, large = (bait * (size // len(bait)) for size in (1 << 16, 1 << 20))

    def spent(content: bytes) -> float:
        times: list[float] = []
        for _ in range(3):
            before = time.thread_time()
            keys(content)
            times.append(time.thread_time() - before)
        return min(times)

    # Sixteen times as much; squared it would be two hundred and fifty-six times.
    assert spent(large) < 64 * max(spent(small), 0.01)


def test_what_is_found_is_bounded() -> None:
    """A file full of keys names twenty, and of one literal no more than so many places are tried."""
    lines = "\n".join("AKIA" + _some(BASE32, 16) for _ in range(200))
    assert len(keys(lines.encode())) == MOST
    decoys = b"hf_ " * PLACES
    assert keys(decoys + MADE["Hugging Face token"].encode()) == []


@pytest.mark.parametrize(
    ("name", "value", "is_one"),
    [
        ("WANDB_API_KEY", _some(HEX, 40), True),
        ("OPENAI_API_KEY", "sk-" + _some(ALL, 48), True),
        ("MY_TOKEN", _some(ALL, 20), True),
        ("DB_PASSWORD", "correct horse battery", True),
        ("ANYTHING", "hf_" + _some(LETTERS, 34), True),
        ("MAX_TOKENS", "1000000000000", False),
        ("HF_TOKEN", "", False),
        ("HF_TOKEN_PATH", "/home/me/.cache/huggingface/token", False),
        ("SSL_KEY", "/etc/ssl/private/a.pem", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("API_KEY", "dummy-key-for-tests", False),
        ("PAD_TOKEN", "<|pad|>", False),
    ],
)
def test_a_variable_says_by_its_name_what_it_holds(name: str, value: str, *, is_one: bool) -> None:
    """A variable with the name of a key is one unless its value plainly is none."""
    assert (variable(name, value) is not None) is is_one
    looked = in_variables({name: value})
    assert [one.place for one in looked.found] == ([f"the variable {name}"] if is_one else [])
    assert all(value[4:] not in line for line in looked.warnings() if value)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("DB_PASSWORD", "hunter2", False),
        ("MLFLOW_TRACKING_PASSWORD", "mytest4pass9word", False),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYtest12345y", False),
        ("STRIPE_KEY", "sk_" + "test_" + _some(ALL, 24), False),
        ("DATABASE_URL", "postgres://bob:x9@host/db", False),
        ("https_proxy", "http://me:p@ss@proxy:3128", False),
        ("WANDB_API_KEY", _some(HEX, 40), False),
        ("HF_TOKEN", "", True),
        ("WANDB_PROJECT", "nano", True),
        ("MLFLOW_TRACKING_URI", "http://user@host:5000/a:b@c", True),
        ("LEARNING_RATE", "0.5", True),
    ],
)
def test_what_may_be_a_key_of_the_callers_stays_off_the_record(
    name: str, value: str, *, kept: bool
) -> None:
    """A name, a shape or an address with a password is enough, short and odd values included."""
    recorded = withheld({name: value, "OTHER": value}, [name])
    assert recorded["OTHER"] == value
    assert (recorded[name] == value) is kept
    assert kept or value[2:] not in recorded[name]


def test_only_what_was_passed_is_given_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A record that says "withheld" of another variable takes none from whoever runs again."""
    monkeypatch.setenv("MINE_KEY", "of today")
    monkeypatch.setenv("OTHER", "of today")
    monkeypatch.setenv("NOT_TAKEN_KEY", "of today")
    given = {"MINE_KEY": "k", "GONE_KEY": "k", "A": "1", "NOT_TAKEN_KEY": "k"}
    recorded = withheld(given, [*given]) | {"OTHER": "(withheld: a key)"}
    policy = PolicyFacts(digest="0" * 64, values={"sandbox.pass_variables": [*given]})
    with ledger_at(tmp_path / "ledger.sqlite") as ledger:
        begun = opened(policy=policy)
        ledger.append(begun)
        ledger.append(RunProgress(run=begun.run, variables=recorded))
        asked = asked_back(ledger.run(str(begun.run)))
    assert asked == ("GONE_KEY", "MINE_KEY", "NOT_TAKEN_KEY")
    found = given_back(recorded, asked, ["MINE_KEY", "GONE_KEY"])
    assert found == {"MINE_KEY": "of today", "OTHER": "(withheld: a key)", "A": "1"}


def test_a_commit_is_looked_at_once(repo: Repo, tmp_path: Path) -> None:
    """An unchanged commit is answered without reading a file; of a changed one only the new files are."""
    files = {f"pkg/m{n}.py": f"x = {n}\n" for n in range(300)}
    repo.commit(files | {"conf/train.env": f"A=1\nexport {MADE['Groq key']}\n"})
    seen = Seen(tmp_path / "keys.sqlite")
    first = in_commit(repo.tree(), seen)
    (one,) = first.found
    assert (one.place, one.key.line, one.key.kind) == ("conf/train.env", 2, "Groq key")
    assert one.words() == "conf/train.env:2 holds what looks like a Groq key (gsk_…, 56 characters)"
    tree = repo.tree()
    tree.spool.close()
    (repo.spools / "objects-sha1").rename(repo.spools / "away")
    assert in_commit(tree, seen) == first
    (repo.spools / "away").rename(repo.spools / "objects-sha1")
    repo.commit({"pkg/m0.py": f"y = 1\n{MADE['Stripe key']}\n"})
    second = in_commit(repo.tree(), seen, seconds=30)
    assert [one.place for one in second.found] == ["conf/train.env", "pkg/m0.py"]
    content = (tmp_path / "keys.sqlite").read_bytes()
    assert MADE["Groq key"].encode() not in content


def test_a_look_that_ran_out_of_time_says_so_and_goes_on_later(repo: Repo, tmp_path: Path) -> None:
    """What was not looked at is counted; the next look starts with it, and ends complete."""
    repo.commit({f"f{n}.py": f"a{n} = 1\n" for n in range(50)} | {"z.py": MADE["Groq key"]})
    seen = Seen(tmp_path / "keys.sqlite")
    first = in_commit(repo.tree(), seen, seconds=-1)
    assert (first.left, first.read, first.found) == (51, 0, ())
    assert "51 files in part or not at all" in first.sentence
    assert in_commit(repo.tree(), seen).left == 0
    assert len(in_commit(repo.tree(), seen, seconds=-1).found) == 1


def test_a_damaged_memory_costs_time_only(repo: Repo, tmp_path: Path) -> None:
    """What was found before is cache: without it, or with rubbish in its place, all is looked at."""
    repo.commit({"a.py": MADE["Groq key"]})
    (tmp_path / "keys.sqlite").write_bytes(b"no database" * 100)
    for place in (tmp_path / "keys.sqlite", tmp_path / "missing" / "keys.sqlite"):
        assert len(in_commit(repo.tree(), Seen(place)).found) == 1


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "x",
        "{}",
        "[1]",
        '["abcd"]',
        '[["a"]]',
        '[["a",1,2,3,4]]',
        '[[null,"k",1,"s"]]',
        "[" * 9999,
    ],
)
def test_a_damaged_answer_is_looked_for_again(repo: Repo, tmp_path: Path, rubbish: str) -> None:
    """What stands in the memory and is no answer is none, whichever of its rows it is."""
    repo.commit({"a.py": MADE["Groq key"]})
    seen, tree = Seen(tmp_path / "keys.sqlite"), repo.tree()
    seen.put({tree.tree: rubbish, tree.entries[0].oid: rubbish})
    assert [one.place for one in in_commit(tree, seen).found] == ["a.py"]
    assert seen.get(tree.tree) not in {None, rubbish}


def test_what_a_run_left_is_looked_at_without_following_it(tmp_path: Path) -> None:
    """Links, FIFOs and devices are not opened; the end of a large file is looked at too."""
    out = tmp_path / "outputs" / "out"
    out.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(MADE["Groq key"])
    (out / "link").symlink_to(elsewhere)
    (out / "directory").symlink_to(tmp_path)
    os.mkfifo(out / "fifo")
    (out / "log.txt").write_text(f"\n\n{MADE['Groq key']}\n")
    large = b"x" * 79 + b"\n"
    (out / "large").write_bytes(large * ((WHOLE + PART) // 80) + MADE["Stripe key"].encode())
    os.truncate(out / "log.txt", (out / "log.txt").stat().st_size)
    (out / os.fsdecode(b"caf\xe9")).write_bytes(b"\0" * 100 + MADE["Slack token"].encode())
    looked = in_files((out,), tmp_path / "outputs")
    places = {one.words().split(" holds")[0]: one.key.kind for one in looked.found}
    assert places.pop("out/log.txt:3") == "Groq key"
    assert places.pop("out/large, near its end,") == "Stripe key"
    assert list(places.values()) == ["Slack token"]
    assert looked.left == 1
    assert looked.read < looked.size


def test_two_sparse_gigabytes_are_looked_at_in_parts(tmp_path: Path) -> None:
    """A file of two gigabytes costs what its beginning costs, and the words say what was left."""
    with (tmp_path / "model.pt").open("wb") as file:
        file.truncate(2 << 30)
    looked = in_files((tmp_path,), tmp_path)
    assert (looked.size, looked.left) == (2 << 30, 1)
    assert looked.read <= 2 * PART
    assert "1 files in part" in looked.sentence


def test_a_look_at_more_files_than_time_allows_ends_and_says_so(tmp_path: Path) -> None:
    """When the time is over nothing more is opened, and the words say that more is there."""
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(MADE["Groq key"])
    looked = in_files((tmp_path,), tmp_path, seconds=-1)
    assert (looked.found, looked.read, looked.stopped) == ((), 0, True)
    assert "more that were not counted" in looked.sentence
    assert not in_files((tmp_path,), tmp_path, seconds=30).stopped


@pytest.mark.parametrize(
    ("mounted", "files", "named"),
    [
        (".cache/huggingface", ["hub/model.bin", "token", "stored_tokens"], 2),
        (".cache/huggingface/token", [""], 1),
        ("home", [".netrc", ".ssh/id_ed25519", ".ssh/id_ed25519.pub", ".aws/credentials"], 3),
        ("data", ["train.env.txt", "tokens.bin", "tokenizer.json", "netrc.md", "a.env"], 0),
    ],
)
def test_data_that_holds_keys_by_its_names_is_named(
    mounted: str, files: list[str], named: int
) -> None:
    """A mount of a whole cache or home is warned about by the files of logins in it."""
    identity = Identity(0, 0, 0, 0, 0)
    found = tuple(DataFile(name.encode(), identity, "0" * 64) for name in files)
    dataset = Dataset(Path("/home/me") / mounted, "/data", found, "0" * 64, 0)
    looked = in_names((dataset,))
    assert len(looked.found) == named
    assert all(one.place.startswith(f"the data file /home/me/{mounted}") for one in looked.found)
    if named:
        assert "holds what looks like a key (of " in looked.found[0].words()


@pytest.mark.parametrize(
    "path",
    [
        *("huggingface/token", "huggingface/stored_tokens", ".netrc", "_netrc", ".aws/credentials"),
        *("gcloud/application_default_credentials.json", "gcloud/credentials.db", ".env"),
        *(".git-credentials", ".kaggle/kaggle.json", "kaggle/access_token", ".docker/config.json"),
        *(".ssh/id_ecdsa_sk", ".ssh/identity", "gh/hosts.yml", ".pypirc", ".npmrc"),
    ],
)
def test_each_programs_file_of_logins_is_known(path: str) -> None:
    """Below any home, and nowhere else by its bare name alone."""
    assert holder(f"/home/me/{path}") is not None
    assert holder(f"/home/me/{path}/x") is None
    assert holder(f"/home/me/{path}.md") is None


def test_a_changed_tree_of_ten_thousand_files_costs_its_look_up(repo: Repo, tmp_path: Path) -> None:
    """Of a large tree with one new file, one file is read, however much was ever seen."""
    repo.commit({f"d{n % 50}/f{n}.py": f"x = {n}\n" for n in range(10_000)})
    seen = Seen(tmp_path / "keys.sqlite")
    assert in_commit(repo.tree(), seen).left == 0
    repo.commit({"d0/f0.py": MADE["Groq key"]})
    looked = in_commit(repo.tree(), seen, seconds=30)
    assert ([one.place for one in looked.found], looked.left) == (["d0/f0.py"], 0)
    assert len(seen.some([entry.oid for entry in repo.tree().entries])) == 10_000


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository with a key in its commit."""
    repo.commit(
        {
            "train.py": "import os, pathlib\n"
            f"print({MADE['Stripe key']!r})\n"
            f"pathlib.Path('/out/w.txt').write_text({MADE['Groq key']!r})\n",
            "sealrun.toml": '[sandbox]\npass_variables = ["WANDB_API_KEY"]\n',
        }
    )
    extra = {"WANDB_API_KEY": _some(HEX, 40), "OPENAI_API_KEY": "sk-" + _some(ALL, 48)}
    cli = Cli(repo.path, repo.path.parent / "home", extra).with_base()
    yield cli
    cli.stop_guard()


def _everything(home: Path) -> bytes:
    """Return every byte that sealrun keeps of its state."""
    return b"".join(file.read_bytes() for file in (home / "state").rglob("*") if file.is_file())


@pytest.mark.engine
def test_a_run_warns_of_each_place_and_stays_clean(cli: Cli) -> None:
    """Keys in the commit, in a passed variable, in output and log are notes that name their places."""
    result, done = cli.run("python3", "train.py")
    assert result["verdict"] == "clean"
    noted = [one for one in result["reasons"] if one["code"] == "key-found"]
    assert {one["severity"] for one in noted} == {"note"}
    assert [one["detail"].split(" holds")[0] for one in noted] == [
        *("train.py:2", "train.py:3", "the variable WANDB_API_KEY", "log:1", "outputs/out/w.txt:1"),
    ]
    assert done.stderr.count("[sealrun] warning: ") == 5
    shown = cli("show", result["run"]).stdout
    assert "train.py:2 holds what looks like a Stripe key" in shown
    ours = (done.stderr, shown, cli("show", result["run"], "--json").stdout)
    for secret in (MADE["Stripe key"], MADE["Groq key"], cli.extra["WANDB_API_KEY"]):
        assert not any(secret[10:] in text for text in ours)
    assert "OPENAI_API_KEY" not in "".join(ours)
    recorded = cli.json("show", result["run"])["run"]["variables"]["WANDB_API_KEY"]
    assert recorded == "(withheld: Weights & Biases key (40 characters))"
    assert cli.extra["WANDB_API_KEY"].encode() not in _everything(cli.home)
    again = cli("reproduce", result["run"], status=None)
    assert again.returncode == 0, again.stderr
    # The repetition was given the key too, and its record holds it as little.
    assert cli.extra["WANDB_API_KEY"].encode() not in _everything(cli.home)


@pytest.mark.engine
def test_warm_warns_before_the_loop_starts(cli: Cli) -> None:
    """`warm` looks at the whole commit and names the places."""
    done = cli("warm")
    assert "[sealrun] warning: train.py:2 holds what looks like a Stripe key" in done.stderr
