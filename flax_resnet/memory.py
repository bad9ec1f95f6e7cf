"""What a process on CPU tells the C library's allocator: keep what was freed, in large pages.

A training step allocates its temporaries anew each time, hundreds of megabytes of them. glibc maps such blocks and
unmaps them when they are freed, so that every step waits for the kernel to zero its pages again: filling 51 MB took
15 ms, and 0.7 ms where the memory was kept in large pages (two cores of an AMD EPYC, virtual machine).
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

DEVICES = pathlib.Path("/dev")
ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")  # device files of GPUs and TPUs


def computes_on_cpu() -> bool:
    """Whether JAX will compute on the CPU: it was told to, or there is nothing else."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or not any(any(DEVICES.glob(name)) for name in ACCELERATORS)


@functools.cache
def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the rest of the process; call it before JAX starts its threads.

    Freed blocks stay in one heap: no mmap, no trimming, no arenas of single threads. As much of it as half the
    machine's memory is marked for large pages before it is used. Elsewhere than under glibc nothing happens.

    Returns:
      Whether it was done.
    """
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
