"""Where do the milliseconds of ResNet-50's training step go? Kernel by kernel, with the bytes that each moves."""

import json

import jax

from benchmarks import gpu_profile, roofline
from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder
from benchmarks.model_speed import device
from benchmarks.programs import Work

FILE = "profile.json"  # beside the record of all stages, for `benchmarks.gpu_profile --read`


def measure(recorder: Recorder, tiny: bool) -> None:
    """Profiles the step; records milliseconds and bytes by kind of kernel, and writes every kernel to `FILE`."""
    work = Work("resnet20", 32, 8, 10) if tiny else Work("resnet50", batch_size=256)
    work = work._replace(dtype="bfloat16" if jax.default_backend() == "gpu" else "float32")
    bandwidth = roofline.limits(work.dtype).bandwidth
    runs, program, seconds = gpu_profile.profiled(work)
    rows = gpu_profile.rows(runs, program)
    size = (work.image_size, work.batch_size)
    profile = gpu_profile.Profile(device(), work.model, *size, work.dtype, seconds, bandwidth, rows)
    kernels = [row._asdict() for row in rows]
    file = recorder.file.parents[1] / FILE
    file.write_text(json.dumps({**profile._asdict(), "kernels": kernels}, indent=1) + "\n")
    recorder.measure("a step", [1e3 * seconds], "ms", larger_is_better=False, show=False)
    recorder.measure("a copy", [bandwidth / 1e12], "TB/s", show=False)
    for kind, (_, took, moved) in gpu_profile.by_kind(rows).items():
        recorder.measure(kind, [1e3 * took], "ms", larger_is_better=False, show=False)
        recorder.measure(f"{kind}, moved", [moved / 1e9], "GB", larger_is_better=False, show=False)
    print(gpu_profile.table(profile))


if __name__ == "__main__":
    run_stage("profile", measure)
