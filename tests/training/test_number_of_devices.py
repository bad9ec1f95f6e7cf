"""The same configuration gives the same results on 1, 2, 4 and 8 devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

WORKER = pathlib.Path(__file__).with_name("losses_worker.py")


def sections(data_dir):
    """A small network with batch statistics over the global batch, random augmentation, dropped blocks, and EMA."""
    return {
        "data": {"data_dir": data_dir},
        "model": {
            "name": "resnet20",
            "depths": (1, 1, 1),
            "widths": (16, 16, 16),
            "drop_path": 0.2,
        },
        "train": {"batch_size": 48, "epochs": 1},
        "augment": {"flip": "horizontal"},
        "optimizer": {"learning_rate": 0.05},
        "ema": {"decay": 0.9},
    }


def started(data_dir, count, **more):
    """Start the worker on `count` virtual devices."""
    config = sections(data_dir)
    config["train"] |= more
    devices = f"--xla_force_host_platform_device_count={count}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{devices} {os.environ['TEST_COMPILER']}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, WORKER, json.dumps(config), "--steps=20"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, text=True)


def result(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_devices(data_dir):
    """Eight devices also hold the optimizer state in shares."""
    processes = [started(data_dir, count) for count in (1, 2, 4)]
    processes.append(started(data_dir, 8, sharding="optimizer"))
    alone, *others = map(result, processes)
    assert [alone["devices"], *(other["devices"] for other in others)] == [1, 2, 4, 8]
    assert len(alone["float64"]["losses"]) == 20
    assert len({tuple(step) for step in alone["float64"]["indices"]}) == 20
    for other in others:
        for kind in ("float32", "float64"):
            assert other[kind]["indices"] == alone[kind]["indices"]
        assert other["float32"]["losses"] == pytest.approx(alone["float32"]["losses"], rel=1e-5)
        assert other["float64"]["losses"] == pytest.approx(alone["float64"]["losses"], rel=1e-9)
        for name, total in alone["float64"]["evaluation"].items():
            limit = 1e-9 if name.endswith("loss") else 0
            assert other["float64"]["evaluation"][name] == pytest.approx(total, rel=limit, abs=0), (
                name
            )
