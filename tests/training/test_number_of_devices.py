"""The same configuration gives the same results on 1, 2, 4 and 8 devices, and in 1, 2 and 4 processes."""

import json
import os
import pathlib
import socket
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


def started(data_dir, devices, processes=1, **more):
    """Start the worker in several processes, each with `devices` virtual devices."""
    config = sections(data_dir)
    config["train"] |= more
    # On a busy machine, XLA would abort a process whose devices meet more than 40 s late in a sum.
    flags = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    flags += f" --xla_force_host_platform_device_count={devices} {os.environ['TEST_COMPILER']}"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [sys.executable, WORKER, json.dumps(config), "--steps=20"],
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={
                **os.environ,
                "XLA_FLAGS": flags,
                "PYTHONPATH": str(ROOT),
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            },
        )
        for number in range(processes)
    ]


def result(processes):
    """Return what the first of some processes prints; all must end well."""
    outputs = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error[-3000:]
    return json.loads(outputs[0][0].splitlines()[-1])


def check_equal(alone, other):
    """Compare the results of two workers: the same examples, and losses equal but for rounding."""
    for kind in ("float32", "float64"):
        assert other[kind]["indices"] == alone[kind]["indices"]
    assert other["float32"]["losses"] == pytest.approx(alone["float32"]["losses"], rel=1e-5)
    assert other["float64"]["losses"] == pytest.approx(alone["float64"]["losses"], rel=1e-9)
    for name, total in alone["float64"]["evaluation"].items():
        limit = 1e-9 if name.endswith("loss") else 0
        assert other["float64"]["evaluation"][name] == pytest.approx(total, rel=limit, abs=0), name


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_devices_and_processes(data_dir):
    """Eight devices also hold the optimizer state in shares, and so do four processes."""
    shares = {"sharding": "optimizer"}
    groups = [
        started(data_dir, 1),
        started(data_dir, 2),
        started(data_dir, 4),
        started(data_dir, 8, **shares),
        started(data_dir, 1, processes=2),
        started(data_dir, 1, processes=4, **shares),
    ]
    alone, *others = map(result, groups)
    assert [alone["devices"], *(other["devices"] for other in others)] == [1, 2, 4, 8, 2, 4]
    assert len(alone["float64"]["losses"]) == 20
    assert len({tuple(step) for step in alone["float64"]["indices"]}) == 20
    for other in others:
        check_equal(alone, other)
