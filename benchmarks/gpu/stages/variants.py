"""What do the package's switches and XLA's options change? ResNet-50's training step, one change at a time."""

import dataclasses
import gc
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.measuring import rates
from benchmarks.gpu.process import run_stage, training_dtype
from benchmarks.gpu.record import Recorder
from benchmarks.speed.workloads import Work, batch, network
from flax_resnet.ops.dispatch import FORMS_SWITCH
from flax_resnet.training.step.train_step import make_train_step


@dataclasses.dataclass(frozen=True)
class Variant:
    """One change to the step.

    Attributes:
      batch_size: images per step; 0 for the default of the stage.
      form: which operations to use: a value of FLAX_RESNET_OPS.
      forms: a value of FLAX_RESNET_GPU_FORMS.
      settings: settings to change, such as "model.remat=block".
      steps: steps per call.
      compiler: options of XLA.
    """

    batch_size: int = 0
    form: str = "auto"
    forms: str = ""
    settings: tuple[str, ...] = ()
    steps: int = 1
    compiler: dict[str, Any] = dataclasses.field(default_factory=dict)


# The most useful ones come first, because the time may run out.
VARIANTS = {
    "as it is": Variant(),
    "1x1 convolutions not collapsed": Variant(settings=("model.collapse=off",)),
    "XLA's own operations": Variant(form="plain"),
    "products as dots": Variant(forms="product=dot"),
    "input gradients as dots": Variant(forms="input_gradient=dot"),
    "both as dots": Variant(forms="product=dot,input_gradient=dot"),
    "slopes from comparisons": Variant(forms="relu_slope=comparison"),
    "masks from the sums": Variant(forms="relu_mask=sum"),
    "512 images": Variant(batch_size=512),
    "latency hiding": Variant(compiler={"xla_gpu_enable_latency_hiding_scheduler": True}),
    "deterministic operations": Variant(compiler={"xla_gpu_deterministic_ops": True}),
    "no CUDA graphs": Variant(compiler={"xla_gpu_enable_command_buffer": ""}),
    "no Triton products": Variant(compiler={"xla_gpu_enable_triton_gemm": False}),
    "128 images": Variant(batch_size=128),
    "4 steps a call": Variant(steps=4),
    "no autotuning": Variant(compiler={"xla_gpu_autotune_level": 0}),
    "blocks computed again": Variant(settings=("model.remat=block",)),
    "all tilings tried": Variant(compiler={"xla_gpu_exhaustive_tiling_search": True}),
}
TINY_VARIANTS = ("as it is", "XLA's own operations", "latency hiding", "4 steps a call")


def step_of(work: Work, variant: Variant) -> tuple[Callable[[], Any], int]:
    """Compile a variant; return a function that runs it once, and the number of images per run."""
    os.environ["FLAX_RESNET_OPS"], os.environ[FORMS_SWITCH] = variant.form, variant.forms
    work = work._replace(batch_size=variant.batch_size or work.batch_size)
    settings = (*variant.settings, f"train.steps_per_call={variant.steps}")
    config, model, optimizer, mesh, state = network(work, settings)
    arrays = batch(work)
    if variant.steps > 1:  # a call of several steps takes arrays with a leading axis of steps
        arrays = {key: np.stack([value] * variant.steps) for key, value in arrays.items()}
    images = jax.device_put(arrays)
    step = make_train_step(config, model, optimizer, mesh)
    program = step.lower(state, {"seed": 0}, images).compile(compiler_options=variant.compiler)
    held = [state]

    def call() -> Any:
        held[0], metrics = program(held[0], {"seed": 0}, images)
        return metrics["loss"]

    return call, work.batch_size * variant.steps


def measure(recorder: Recorder, tiny: bool) -> None:
    """Measure each variant."""
    work = Work("resnet20", 32, 8, 10) if tiny else Work("resnet50", batch_size=256)
    work = work._replace(dtype=training_dtype())
    for name in TINY_VARIANTS if tiny else VARIANTS:
        if recorder.has(name):
            continue
        with recorder.attempt(name):
            call, images = step_of(work, VARIANTS[name])
            recorder.measure(name, rates(call, images, 0.2 if tiny else 3), "images/s")
            del call
        gc.collect()  # free the device memory of the previous variant


if __name__ == "__main__":
    run_stage("variants", measure)
