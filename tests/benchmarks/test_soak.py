"""The watch over a long run: its verdict on made-up samples, and a short real run."""

import json
import os
import time

import pytest

from benchmarks.lab import soak
from benchmarks.lab.soak import Sample


def samples(mib=lambda t: 900.0, threads=lambda t: 30, files=lambda t: 9):
    """Samples of ten minutes; the arguments are functions of the second."""
    return [Sample(t, mib(t), threads(t), files(t)) for t in range(600)]


@pytest.mark.parametrize(
    ("found", "leaks"),
    [
        (samples(), []),
        (samples(mib=lambda t: min(900, 300 + 3 * t)), []),  # the first half is warm-up
        (samples(mib=lambda t: 900 - t / 60), []),
        (samples(mib=lambda t: 900 + 50 * (t % 7 == 0)), []),
        (samples(mib=lambda t: 900 + 2 * t / 60), ["mib"]),
        (samples(threads=lambda t: 30 + t // 60), ["threads"]),
        (samples(files=lambda t: 9 + t // 60), ["files"]),
        (
            samples(files=lambda t: 9 + 5 * (t % 4 == 0) + 5 * (t > 590)),
            [],
        ),  # each checkpoint has some open
    ],
)
def test_what_rises_in_the_second_half_leaks(found, leaks):
    judged = soak.judged(found)
    assert [name for name, flat in judged["flat_by_part"].items() if not flat] == leaks
    assert judged["flat"] == (not leaks)


def test_the_slope_is_that_of_the_second_half():
    judged = soak.judged(samples(mib=lambda t: 900 + 2 * max(0, t - 300) / 60))
    assert judged["mib_per_minute"] == pytest.approx(2)
    assert judged["mib"] == [900, 910]
    assert len(judged["samples"]) == soak.ROWS


def test_a_sample_sees_memory_threads_and_files(tmp_path):
    before = soak.sample(os.getpid(), 0.0)
    held = b"x" * (64 << 20)
    with (tmp_path / "file").open("w"):
        after = soak.sample(os.getpid(), 1.0)
    assert after.mib > before.mib + 32
    assert after.files == before.files + 1
    del held
    with pytest.raises((OSError, KeyError)):
        soak.sample(2**22 + 1, 0.0)


def test_a_run_that_cannot_start_is_told_with_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"no checkpoint: error: train.feed='none'"):
        soak.soak(tmp_path, 0.1, "none")


@pytest.mark.slow
def test_a_short_watch_of_a_real_run(tmp_path, monkeypatch, cache_dir):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache_dir))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    output, began = tmp_path / "soak.json", time.monotonic()
    # The verdict on ten seconds says nothing: allocators still fill.
    assert soak.main(["--minutes=0.15", "--feed=resident", f"--output={output}"]) in (0, 1)
    found = json.loads(output.read_text())
    assert len(found["samples"]) in range(5, 10)
    assert all(
        row["mib"] > 100 and row["threads"] > 1 and row["files"] > 2 for row in found["samples"]
    )
    assert found["steps"] > 0
    assert found["evaluations"] > 0
    assert 0 < sum(found["seconds_by_stage"].values()) < time.monotonic() - began
