"""Reuse of freed memory in a process, and the available memory within the limits of control groups."""

import subprocess
import sys

import pytest

from flax_resnet.training import memory, microbatch_size

FAULTS = """
import resource, sys
import numpy as np
from flax_resnet.training.memory import prepare_cpu
assert prepare_cpu() if sys.argv[1] == "kept" else True
counts = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.float32)  # 256 MB
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(counts[-1])
"""

WAITED = """
import sys
from flax_resnet.training import memory
if sys.argv[1] == "prepared":
    memory.prepare_cpu()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (x @ x) @ (x @ x) @ x)
x = jnp.ones((2048, 2048))
step(x).block_until_ready()
print(int(step(x).is_ready()))
"""


def printed(code, how):
    """Run a program in its own process; return the number that it prints."""
    command = [sys.executable, "-c", code, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept():
    def faults(how):
        return printed(FAULTS, how)

    assert (
        faults("kept") < 20 < 100 <= faults("given back")
    )  # without reuse: 65,536 pages of 4 KB, or 128 of 2 MB


def test_after_prepare_cpu_calls_wait_for_their_results():
    assert printed(WAITED, "prepared") == 1
    assert printed(WAITED, "as it is") == 0


def test_computes_on_cpu_unless_there_is_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert memory.computes_on_cpu()
    monkeypatch.setenv("JAX_PLATFORMS", "")
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(memory, "DEVICES", tmp_path)
    assert memory.computes_on_cpu()
    (tmp_path / "nvidia0").touch()
    assert not memory.computes_on_cpu()


GROUPS = {
    "version 2": {
        "proc/self/cgroup": "0::/jobs/mine\n",
        "sys/fs/cgroup/jobs/memory.max": "3000\n",
        "sys/fs/cgroup/jobs/memory.current": "1500\n",
        "sys/fs/cgroup/jobs/memory.stat": "anon 1000\ninactive_file 400\nactive_file 100\n",
        "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
        "sys/fs/cgroup/jobs/mine/memory.current": "900\n",
    },
    "version 1": {
        "proc/self/cgroup": "5:devices:/\n4:cpuset,memory:/jobs/mine\n1:name=systemd:/\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
        "sys/fs/cgroup/memory/jobs/mine/memory.limit_in_bytes": "3000\n",
        "sys/fs/cgroup/memory/jobs/mine/memory.usage_in_bytes": "1500\n",
        "sys/fs/cgroup/memory/jobs/mine/memory.stat": "inactive_file 1\ntotal_inactive_file 400\n",
    },
    "container": {  # its top group is the container's group; /proc has the host's name of it
        "proc/self/cgroup": "4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1100\n",
    },
}


@pytest.mark.parametrize("kind", GROUPS)
def test_available_memory_respects_the_limits_of_control_groups(tmp_path, kind):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert memory.available(tmp_path) > 2**60  # without /proc: not Linux, no limit
    write("proc/meminfo", "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 4 kB\n")
    assert memory.available(tmp_path) == 4096
    for name, text in GROUPS[kind].items():
        write(name, text)
    assert memory.available(tmp_path) == 1900
    write("proc/meminfo", "MemAvailable: 1 kB\n")
    assert memory.available(tmp_path) == 1024


def test_microbatches_use_the_available_memory(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1234)
    assert microbatch_size.available_memory() == 1234
