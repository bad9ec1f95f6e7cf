"""How fast are other networks, in training and in inference? This package alone, bfloat16."""

import gc

from benchmarks.gpu.measuring import rates
from benchmarks.gpu.process import run_stage, training_dtype
from benchmarks.gpu.record import Recorder
from benchmarks.speed.workloads import Work, ours

# The most useful ones come first, because the time may run out.
WORKS = {
    "resnet50 inference, 256 images": Work("resnet50", batch_size=256, train=False),
    "resnet50 inference, 1 image": Work("resnet50", batch_size=1, train=False),
    "resnet18 step, 512 images": Work("resnet18", batch_size=512),
    "seresnet50 step, 256 images": Work("seresnet50", batch_size=256),
    "resnext50_32x4d step, 256 images": Work("resnext50_32x4d", batch_size=256),
    "resnetv2_50x1_bit step, 128 images": Work("resnetv2_50x1_bit", batch_size=128),
    "resnet152 step, 128 images": Work("resnet152", batch_size=128),
}
TINY_WORKS = {
    "resnet20 inference, 1 image": Work("resnet20", 32, 1, 10, train=False),
    "resnet20 step, 8 images": Work("resnet20", 32, 8, 10),
}


def measure(recorder: Recorder, tiny: bool) -> None:
    """Measure each network."""
    for name, work in (TINY_WORKS if tiny else WORKS).items():
        if recorder.has(name):
            continue
        with recorder.attempt(name):
            program = ours(work._replace(dtype=training_dtype()))
            recorder.measure(name, rates(program, work.batch_size, 0.2 if tiny else 3), "images/s")
            del program
        gc.collect()  # free the device memory of the previous network


if __name__ == "__main__":
    run_stage("networks", measure)
