"""A sample of benchmarks.lab.kills: real processes, SIGKILL at random moments, and the same bits."""

import json
import os
import shutil

import pytest

from benchmarks.lab import kills
from benchmarks.lab.killed_group import checksum_differences, record_differences

pytestmark = pytest.mark.faults


@pytest.fixture
def one_device(monkeypatch):
    """The processes compile as fast as the tests do, for one device."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["TEST_COMPILER"])


def test_a_run_killed_at_random_moments_has_the_bits_of_an_undisturbed_one(one_device, tmp_path):
    record, place = tmp_path / "kills.json", tmp_path / "runs"
    command = ["--runs=1", "--kills=3", "--epochs=3", f"--output={record}", f"--folder={place}"]
    assert kills.main([*command, "--seed=0"]) == 0
    found = json.loads(record.read_text())
    (run,) = found["runs"]
    assert found["summary"] == "bitwise equal: 3/3"
    assert [kill["equal"] for kill in run["kills"]] == [True] * 3
    assert {"start", "save"} == {kill["kind"] for kill in run["kills"]}
    assert run["checkpoints_compared"] > 20
    # The same command knows that nothing is left to do.
    assert kills.main([*command, "--seed=0"]) == 0
    assert json.loads(record.read_text()) == found
    # The comparison sees other bits, and other records.
    whole, other = place / "resident_archive", tmp_path / "other"
    shutil.copytree(whole, other)
    metadata = other / "checkpoints" / "177" / "run" / "metadata"
    content = json.loads(metadata.read_text())
    content["checksums"]["step"] += 1
    metadata.write_text(json.dumps(content))
    assert checksum_differences(other, whole)[1] == [
        "checkpoint 177: 1 arrays differ, such as step"
    ]
    assert record_differences(other, whole) == []
    records = (other / "metrics.jsonl").read_text().replace('"loss": 2', '"loss": 3')
    (other / "metrics.jsonl").write_text(records)
    assert record_differences(other, whole) != []
