"""A machine's memory: how much is left, and that a step's temporaries are allocated once.

A training step allocates its temporaries anew each time, hundreds of megabytes of them. glibc maps such blocks and
unmaps them when they are freed, so that every step waits for the kernel to zero its pages again: filling 51 MB took
15 ms, and 0.7 ms where the memory was kept in large pages (two cores of an AMD EPYC, virtual machine).

JAX allocates a step's temporaries when it is dispatched, and may free those of the step before later than that:
then there are two sets of them. A request is a little larger than its block, for alignment, so that the next set
does not fit into the hole that one of two leaves, and glibc takes new memory. Waiting for each step leaves one
set: ResNet-50 at batch 8 trains in 2.9 GB instead of 7.8, and takes none after its first step, where it did in
six of them (docs/cpu.md).
"""

import ctypes
import functools
import os
import pathlib
import sys

# <malloc.h> and <sys/mman.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
MADV_HUGEPAGE = 14
MIB = 2**20
HUGE_PAGE = 2 * MIB

# Of control groups without and with controllers, versions 2 and 1: where they are, and the files and line that tell
# limit, use, and how much of it are files' pages that the kernel would drop.
GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}

DEVICES = pathlib.Path("/dev")
ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")  # device files of GPUs and TPUs


def available(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Returns the bytes that Linux has left for this process; elsewhere no limit.

    The least of what is left of the machine, and of the limits of the control groups that the process is in: a
    container's, or a job's of a cluster.

    Args:
      root: where proc/ and sys/ are.
    """
    left = [1024 * _field(root / "proc/meminfo", "MemAvailable:", sys.maxsize)]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in GROUPS.keys() & set(controllers.split(",")):
            top, *files = GROUPS[name]
            own = root / top / path.lstrip("/")  # in a container perhaps a path of the host's
            above = (folder for folder in own.parents if folder.is_relative_to(root / top))
            left += [_left(folder, *files) for folder in (own, *above)]
    return min(left)


def _left(group: pathlib.Path, limit: str, used: str, cache: str) -> int:
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):  # there is no such group, or it says "max"
        return sys.maxsize
    return max(0, most - now + _field(group / "memory.stat", cache, 0))


def _field(file: pathlib.Path, name: str, otherwise: int) -> int:
    lines = map(str.split, _lines(file))
    return next((int(line[1]) for line in lines if line and line[0] == name), otherwise)


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def computes_on_cpu() -> bool:
    """Whether JAX will compute on the CPU: it was told to, or there is nothing else."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or not any(any(DEVICES.glob(name)) for name in ACCELERATORS)


@functools.cache
def prepare_cpu() -> bool:
    """Makes a process that computes on the CPU hold one step's temporaries, and keep them.

    To be called before JAX computes, as it reads the setting when it starts the CPU.

    Calls of compiled functions wait for their results, where their arguments are there. Of glibc, freed blocks
    stay in one heap: no mmap, no trimming, no arenas of single threads; as much as half the machine's memory is
    marked for large pages before it is used. Elsewhere than under glibc, memory is given back as the system's
    library does it.

    Returns:
      Whether freed memory is kept.
    """
    kept = _keep_freed()
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return kept


def _keep_freed() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    for option, value in (
        (M_MMAP_MAX, 0),
        (M_TRIM_THRESHOLD, -1),
        (M_TOP_PAD, 64 * MIB),
        (M_ARENA_MAX, 1),
    ):
        libc.mallopt(option, value)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if block := libc.malloc(size):  # addresses only: no page is there before it is written
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(start, (block + size - start) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
        libc.free(block)
    return True
