"""Does a run that is killed and resumed end with the same bits as an undisturbed run?

Trains a small ResNet with the package's step, sampler, augmentation, EMA and checkpoints, with deterministic
operations. Each run is a separate process, started with `--train`. The data stay on the device, so the input
pipeline is not needed.
"""

import argparse
import pathlib
import shutil
import sys
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.killed import (
    Command,
    Undisturbed,
    check_arrays,
    check_killed,
    reference,
    remove_where_passed,
    undisturbed,
)
from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder

MODULE = "benchmarks.gpu.stages.resume"
STEPS, EVERY = 300, 20  # updates in a run, and updates between its checkpoints
TINY_STEPS, TINY_EVERY = 30, 3
BATCH_SIZE, IMAGES, SIZE, CLASSES = 64, 2048, 32, 10
SETTINGS = (
    "model.stem=cifar",
    "model.depths=(1,1,1,1)",
    "optimizer.nesterov=True",
    "ema.decay=0.99",
    "augment.pad_crop=4",
    "augment.flip=horizontal",
    "augment.cutmix=1.0",
    "augment.policy=trivialaugment",
)
TINY_SETTINGS = (*SETTINGS[:1], "model.depths=(1,1)", "model.widths=(8,16)", *SETTINGS[2:-1])


def train(workdir: pathlib.Path, tiny: bool) -> None:
    """Train to the last step, from the last checkpoint if there is one."""
    from benchmarks.speed.workloads import configured
    from flax_resnet.config.plan import Plan, planned_optimizer
    from flax_resnet.data.sampling import EpochSampler
    from flax_resnet.training import sharding
    from flax_resnet.training.runs.checkpoint import Checkpoints
    from flax_resnet.training.runs.metadata import RunMetadata
    from flax_resnet.training.state import abstract_state, build_model, initial_state
    from flax_resnet.training.step.train_step import make_train_step

    total, every = (TINY_STEPS, TINY_EVERY) if tiny else (STEPS, EVERY)
    dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    settings = TINY_SETTINGS if tiny else SETTINGS
    config = configured("resnet18", SIZE, BATCH_SIZE, dtype=dtype, settings=settings)
    model, mesh = build_model(config, CLASSES), sharding.make_mesh()
    optimizer = planned_optimizer(config, Plan.nominal(CLASSES), model)
    draw = np.random.default_rng(0)
    data = {
        "image": draw.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8),
        "label": draw.integers(0, CLASSES, IMAGES).astype(np.int32),
    }
    data = jax.device_put({**data, "seed": np.int32(config.train.seed)}, sharding.replicated(mesh))
    order = EpochSampler(IMAGES, config.train.seed)

    def fetch(data: Any, step: jax.Array) -> dict[str, jax.Array]:
        indices = order.batch(jax.numpy, step, BATCH_SIZE, data["seed"])
        return {name: data[name][indices] for name in ("image", "label")}

    step = make_train_step(config, model, optimizer, mesh, fetch)
    checkpoints = Checkpoints(workdir)
    restored = checkpoints.restore_last_good(abstract_state(config, model, optimizer, mesh))
    state = restored.state if restored else initial_state(config, model, optimizer, mesh)
    start = restored.step if restored else 0
    print(f"training from step {start} to {total}", flush=True)
    for number in range(start, total):
        state, _ = step(state, data, np.array(number, np.uint32))
        if (number + 1) % every == 0:
            checkpoints.save(number + 1, state, RunMetadata({}, (), CLASSES))
    checkpoints.close()


def measure(recorder: Recorder, tiny: bool) -> None:
    """Check that a killed run and a recompiled run end with the arrays of an undisturbed run."""
    folder = recorder.file.parents[1].resolve() / "resume"

    def command(cache: str) -> Command:
        options = [f"--cache={folder / cache}", *(["--tiny"] if tiny else [])]
        return lambda workdir: ["-m", MODULE, "--train", str(workdir), *options]

    with recorder.attempt("an undisturbed run"):
        wanted = reference(recorder, command("compiled"), folder / "undisturbed")
        with recorder.attempt("a killed run"):
            check_killed(recorder, command("compiled"), folder, wanted)
        with recorder.attempt("a run compiled anew"):
            check_compiled_anew(recorder, command("compiled_again"), folder, wanted)
        remove_where_passed(recorder, folder)


def check_compiled_anew(
    recorder: Recorder, command: Command, folder: pathlib.Path, wanted: Undisturbed
) -> None:
    """Check that a run that compiles everything again ends with the wanted arrays."""
    if recorder.has("compiled anew"):
        return
    shutil.rmtree(folder / "compiled_again", ignore_errors=True)
    undisturbed(command, folder / "again")
    note = "no program came from the compilation cache"
    check_arrays(recorder, "compiled anew", folder / "again", wanted, note)


def main() -> None:
    """Run the stage; with --train, run only one training."""
    if "--train" not in sys.argv:
        run_stage("resume", measure)
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", args.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    train(args.train, args.tiny)


if __name__ == "__main__":
    main()
