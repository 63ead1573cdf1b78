"""The metric is read from hostile bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrun.metric import read_metric
from sealrun.policy import MetricPolicy

if TYPE_CHECKING:
    from pathlib import Path


def _output(tmp_path: Path, content: bytes, policy: MetricPolicy | None = None) -> float | None:
    log = tmp_path / "log"
    log.write_bytes(content)
    return read_metric(policy or MetricPolicy(), log, tmp_path).value


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"step 1\n---\nval_bpb:          0.997900\ntraining_seconds: 300.1\n", 0.9979),
        (b"val_bpb: 2\nval_bpb: 1\n", 1.0),
        (b"step 3\r\x1b[2Kval_bpb: 1.5e-3\r\n", None),
        (b"progress 99%\rval_bpb: 1.5e-3\r\n", 0.0015),
        (b"val_bpb=3\n", 3.0),
        (b"my_val_bpb: 1\n", None),
        (b"val_bpb: nan\n", None),
        (b"val_bpb: inf\n", None),
        (b"val_bpb: 1; rm -rf\n", None),
        (b"val_bpb: " + b"9" * 5000 + b"\n", None),
        (b"val_bpb: 1e999\n", None),
        (b"val_bpb: 0x10\n", None),
        (b"val_bpb: \xd9\xa1\n", None),
        (b"val_bpb: 1\x00\n", None),
        (b"val_bpb: \n", None),
        (b"val_bpb: 1 2\n", None),
        (b"val_bpb: --1\n", None),
        (b"", None),
    ],
)
def test_the_last_line_that_matches_counts(
    tmp_path: Path, content: bytes, value: float | None
) -> None:
    """Name, colon, number and nothing else; a value that is no finite number is none."""
    assert _output(tmp_path, content) == value


def test_a_pattern_of_the_policy(tmp_path: Path) -> None:
    """A regular expression with one group reads any output."""
    policy = MetricPolicy(name="loss", pattern=r"METRIC loss=(\S+)")
    assert _output(tmp_path, b"METRIC loss=0.25\n", policy) == 0.25
    assert _output(tmp_path, b"METRIC loss=low\n", policy) is None


@given(st.binary(max_size=500))
def test_no_output_breaks_the_reader(content: bytes) -> None:
    """Any bytes give a value or a sentence."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        log.write_bytes(content)
        metric = read_metric(MetricPolicy(), log, Path(directory))
    assert (metric.value is None) == (metric.problem is not None)
    assert metric.self_reported


@pytest.mark.parametrize(
    ("content", "value", "problem"),
    [
        (b'{"val_bpb": 1.25}', 1.25, None),
        (b'{"val_bpb": "1.25"}', None, "no number"),
        (b'{"val_bpb": true}', None, "no number"),
        (b'{"val_bpb": NaN}', None, "finite"),
        (b'{"other": 1}', None, "no key"),
        (b"[" * 200_000, None, "cannot be read"),
        (b'{"val_bpb": 1' + b"0" * 400 + b"}", None, "too large"),
        (b'{"val_bpb": 1' + b"0" * 9000 + b"}", None, "cannot be read"),
        (b"{" + b" " * (1 << 20) + b"}", None, "larger than"),
        (b'{"val_bpb": ' + b"9" * 20_000_000 + b"}", None, "larger than"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_json_file_is_read_as_hostile(
    tmp_path: Path, content: bytes, value: float | None, problem: str | None
) -> None:
    """Bombs, wrong types and huge numbers end in a sentence."""
    (tmp_path / "m.json").write_bytes(content)
    metric = read_metric(MetricPolicy(file="m.json"), tmp_path / "log", tmp_path)
    assert metric.value == value
    assert problem is None or problem in (metric.problem or "")


def test_a_planted_link_or_pipe_is_not_followed(tmp_path: Path) -> None:
    """The file must be a regular one below /out; nothing waits on a pipe."""
    outside = tmp_path / "outside.json"
    outside.write_text('{"val_bpb": 0}')
    out = tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "link.json").symlink_to(outside)
    (out / "dir").symlink_to(tmp_path)
    os.mkfifo(out / "pipe.json")
    for name in ("link.json", "pipe.json", "dir/outside.json", "missing.json", "d"):
        metric = read_metric(MetricPolicy(file=name), tmp_path / "log", out)
        assert metric.value is None
        assert name in (metric.problem or "")


def test_a_nested_key(tmp_path: Path) -> None:
    """A dotted key leads into nested objects."""
    (tmp_path / "m.json").write_text('{"eval": {"bpb": 2.5}}')
    policy = MetricPolicy(file="m.json", key="eval.bpb")
    assert read_metric(policy, tmp_path / "log", tmp_path).value == 2.5
