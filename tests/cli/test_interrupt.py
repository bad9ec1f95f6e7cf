"""Ctrl-C at any moment before training: one line, and the exit code of the signal."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

COMMANDS = (
    ["-m", "flax_resnet", "evaluate", "--workdir=nowhere"],
    ["-m", "flax_resnet.main", "--config=resnet18", "--dry_run"],
    ["-c", "import sys; from flax_resnet.__main__ import main; sys.exit(main())", "env"],
)


def modules(process):
    """Whether a process has begun to import the package's dependencies: it has mapped jaxlib."""
    with open(f"/proc/{process.pid}/maps") as maps:
        return "jaxlib" in maps.read()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("command", COMMANDS, ids=["command", "main", "script"])
def test_ctrl_c_during_the_imports_is_one_line(command):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not modules(process):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err, out) == (130, "interrupted\n", "")
