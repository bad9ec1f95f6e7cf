"""Start commands of the package as processes, and wait for what they write."""

import os
import subprocess
import sys
import time

from conftest import ROOT


def start(*arguments, module="flax_resnet.main", **options):
    """Start a command; stdout and stderr are one pipe."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment | options.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def wait_until(condition, process, seconds=400):
    """Wait until a condition holds. The process must still run then, and is killed if it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return
        time.sleep(0.005)
    process.kill()
    raise AssertionError(process.communicate()[0])


def ended(process, seconds=400):
    """Wait for the end of a process; return its exit code and its output."""
    output = process.communicate(timeout=seconds)[0]
    assert "Traceback" not in output, output
    return process.returncode, output
