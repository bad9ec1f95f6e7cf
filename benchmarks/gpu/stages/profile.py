"""Where do the milliseconds of ResNet-50's training step go? Time and bytes of each kernel."""

import json

from benchmarks.gpu.process import run_stage, training_dtype
from benchmarks.gpu.record import Recorder
from benchmarks.speed import gpu_profile, roofline
from benchmarks.speed.model_speed import device
from benchmarks.speed.workloads import Work

FILE = "profile.json"  # next to record.json; `benchmarks.speed.gpu_profile --read` reads it


def measure(recorder: Recorder, tiny: bool) -> None:
    """Profile the step; record milliseconds and bytes by kind of kernel, and write every kernel to `FILE`."""
    work = Work("resnet20", 32, 8, 10) if tiny else Work("resnet50", batch_size=256)
    work = work._replace(dtype=training_dtype())
    with recorder.attempt("kernels"):
        bandwidth = roofline.limits(work.dtype).bandwidth
        recorder.measure("a copy", [bandwidth / 1e12], "TB/s", show=False)
        step = gpu_profile.compiled(work)
        seconds = step.run(gpu_profile.STEPS)
        recorder.measure("a step", [1e3 * seconds], "ms", larger_is_better=False, show=False)
        runs = gpu_profile.profiled(step)
        if not runs:
            raise RuntimeError(
                "the profiler saw no kernels: is CUPTI installed, and allowed to trace?"
            )
        rows = gpu_profile.rows(runs, step.program)
        size = (work.image_size, work.batch_size)
        fields = (device(), work.model, *size, work.dtype, seconds, bandwidth, rows)
        write(recorder, gpu_profile.Profile(*fields))


def write(recorder: Recorder, profile: gpu_profile.Profile) -> None:
    """Record the kinds of kernels, and write all of them to a file."""
    kernels = [row._asdict() for row in profile.kernels]
    file = recorder.file.parents[1] / FILE
    file.write_text(json.dumps({**profile._asdict(), "kernels": kernels}, indent=1) + "\n")
    for kind, (_, took, moved) in gpu_profile.by_kind(profile.kernels).items():
        recorder.measure(kind, [1e3 * took], "ms", larger_is_better=False, show=False)
        recorder.measure(f"{kind}, moved", [moved / 1e9], "GB", larger_is_better=False, show=False)
    print(gpu_profile.table(profile))


if __name__ == "__main__":
    run_stage("profile", measure)
