"""How fast is ResNet-50's training step in bfloat16, compared with plain linen and torch.compile?

Both forms of the step take part: with collapsed 1x1 convolutions, the default, and without.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.arguments import absent
from benchmarks.gpu.measuring import ROUNDS
from benchmarks.gpu.process import run_stage, training_dtype
from benchmarks.gpu.record import Recorder
from benchmarks.speed.interleave import interleave
from benchmarks.speed.workloads import Program, Work, ours, plain_flax, take_turns, torch_step
from flax_resnet.training.memory import computes_on_cpu

SYSTEMS: dict[str, Callable[[Work], Program]] = {
    "flax_resnet": ours,
    "flax_resnet, not collapsed": partial(ours, settings=("model.collapse=off",)),
    "plain linen": plain_flax,
    "torch.compile": partial(torch_step, compiled=True),
}


def measure(recorder: Recorder, tiny: bool) -> None:
    """Measure the systems in turns, each in its own process, unless all rounds are already recorded."""
    work = Work("resnet20", 32, 8, 10) if tiny else Work("resnet50", batch_size=256)
    work = work._replace(dtype=training_dtype())
    systems = dict(SYSTEMS)
    if missing := absent("torch", "torchvision", "timm"):
        recorder.record.reason = f"torch.compile is left out; not installed: {', '.join(missing)}"
        del systems["torch.compile"]
    rounds = {one.name: len(one.values) for one in recorder.record.measurements}
    if all(rounds.get(name) == ROUNDS for name in systems):
        return
    turns = {
        name: partial(take_turns, make, work, 0.1 if tiny else 1.0, keep=computes_on_cpu())
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
