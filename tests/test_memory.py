"""Freed memory is kept: nobody waits twice for the kernel to zero the same pages."""

import subprocess
import sys

import pytest

from flax_resnet import memory

FAULTS = """
import resource, sys
import numpy as np
from flax_resnet.memory import keep_freed_memory
assert keep_freed_memory() if sys.argv[1] == "kept" else True
counts = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.float32)  # 256 MB
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(counts[-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept():
    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("kept") < 20 < 100 <= faults("given back")  # pages of 4 KB: 65,536; of 2 MB: 128


def test_what_computes_on_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert memory.computes_on_cpu()
    monkeypatch.setenv("JAX_PLATFORMS", "")
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(memory, "DEVICES", tmp_path)
    assert memory.computes_on_cpu()
    (tmp_path / "nvidia0").touch()
    assert not memory.computes_on_cpu()
