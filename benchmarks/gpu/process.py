"""Processes that end with the one that started them, and the frame that every stage of --quick runs in."""

import argparse
import ctypes
import pathlib
import signal
import sys
from collections.abc import Callable

from benchmarks.gpu.record import Recorder

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def end_with_parent() -> None:
    """Asks Linux to kill this process when the thread that started it ends; elsewhere does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_stage(name: str, measure: Callable[[Recorder, bool], None]) -> None:
    """Runs a stage: parses its arguments, opens its record, and marks it as done at the end.

    Args:
      name: of the stage.
      measure: called with the recorder, and whether sizes are tiny.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--record", type=pathlib.Path, required=True, help="file of the record")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a rehearsal on a CPU")
    args = parser.parse_args()
    from flax_resnet.training.memory import computes_on_cpu, prepare_cpu

    if computes_on_cpu():
        prepare_cpu()
    import jax

    jax.config.update("jax_compilation_cache_dir", str(args.record.parent.resolve() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    recorder = Recorder(args.record, name)
    measure(recorder, args.tiny)
    recorder.finish()
