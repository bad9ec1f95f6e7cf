"""The entry point that all stages of --quick share."""

import argparse
import pathlib
import sys
from collections.abc import Callable

from benchmarks.gpu.record import Recorder
from flax_resnet.training.memory import computes_on_cpu, prepare_cpu


def training_dtype() -> str:
    """Return the dtype that the stages train in, without initializing JAX."""
    return "float32" if computes_on_cpu() else "bfloat16"


def run_stage(name: str, measure: Callable[[Recorder, bool], None]) -> None:
    """Run a stage: parse its arguments, open its record, and mark it as done at the end.

    Args:
      name: name of the stage.
      measure: called with the recorder, and True for tiny sizes.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--record", type=pathlib.Path, required=True, help="file of the record")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a rehearsal on a CPU")
    args = parser.parse_args()
    if computes_on_cpu():
        prepare_cpu()
    recorder = Recorder(args.record, name)
    measure(recorder, args.tiny)
    recorder.finish()
