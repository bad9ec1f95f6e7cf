"""How fast is ResNet-50's training step beside plain linen's and torch.compile's? In turns, bfloat16."""

import os
from functools import partial

from benchmarks.arguments import absent
from benchmarks.gpu.measuring import ROUNDS
from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder
from benchmarks.programs import Work, ours, take_turns, textbook, torch_step
from benchmarks.turns import interleave

SYSTEMS = {
    "flax_resnet": ours,
    "plain linen": textbook,
    "torch.compile": partial(torch_step, compiled=True),
}


def measure(recorder: Recorder, tiny: bool) -> None:
    """Measures the systems in turns, a process each; what one start measured, the next does not add to."""
    import jax

    on_gpu = jax.default_backend() == "gpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the systems share a GPU
    work = Work("resnet20", 32, 8, 10) if tiny else Work("resnet50", batch_size=256)
    work = work._replace(dtype="bfloat16" if on_gpu else "float32")
    systems = dict(SYSTEMS)
    if missing := absent("torch", "torchvision", "timm"):
        recorder.fail("torch.compile", f"not installed: {', '.join(missing)}")
        del systems["torch.compile"]
    turns = {
        name: partial(take_turns, make, work, 0.1 if tiny else 1.0, keep=True)
        for name, make in systems.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for name, speed in interleave(turns, ROUNDS):
        if speed is None:
            recorder.fail(name, "its process died; the log has its message")
            continue
        rates[name].append(speed)
        last = len(rates[name]) == ROUNDS
        recorder.measure(name, rates[name], "images/s", show=last)


if __name__ == "__main__":
    run_stage("step", measure)
