"""Compile a training step for GPUs without having one, and count its kernels, bytes and collectives."""

import time
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from benchmarks.lab import hlo, kernels
from benchmarks.lab.gpu_specs import TARGETS
from benchmarks.speed import roofline
from benchmarks.speed.plain_flax import PLAIN_FLAX
from benchmarks.speed.workloads import configured, plain_flax_step
from flax_resnet.config import Config
from flax_resnet.config.plan import plan, planned_drop_factor, planned_optimizer
from flax_resnet.models.summary import summarize
from flax_resnet.training import sharding
from flax_resnet.training.state import abstract_state, build_model
from flax_resnet.training.step.train_step import make_train_step

CLASSES, IMAGES = 1000, 1281167


class Case(NamedTuple):
    """A program to compile, and the GPUs to compile it for.

    Attributes:
      model: a name of `flax_resnet.list_models()`.
      target: a key of `TARGETS`.
      gpus: number of GPUs, "8"; or hosts x GPUs per host, "2x8".
      batch_size: images per GPU.
      image_size: pixels; 0 for the model's own.
      dtype: compute dtype.
      settings: further settings, such as "model.norm_scope=local".
      plain_flax: whether to compile a plain linen ResNet in place of this package's.
    """

    model: str
    target: str = "h100"
    gpus: str = "1"
    batch_size: int = 256
    image_size: int = 0
    dtype: str = "bfloat16"
    settings: tuple[str, ...] = ()
    plain_flax: bool = False

    def __str__(self) -> str:
        """Return a one-line description."""
        name = self.model + (", plain flax" if self.plain_flax else "")
        settings = f", {' '.join(self.settings)}" if self.settings else ""
        many = "GPU" if self.gpus == "1" else "GPUs"
        return f"{name}, {self.dtype}, {self.batch_size} a GPU, {self.gpus} {many} {self.target}{settings}"


def mesh_of(case: Case) -> Mesh:
    """Return the mesh over the GPUs of a case."""
    from jax.experimental import topologies

    hosts, _, each = case.gpus.rpartition("x")
    devices = topologies.get_topology_desc(
        platform="cuda",
        target_config=TARGETS[case.target].text(),
        topology=f"1x{hosts or 1}x{each}",
    ).devices
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def lowered(case: Case, mesh: Mesh) -> Any:
    """Trace and lower the step of a case for its mesh."""
    if case.plain_flax:
        return _lowered_plain_flax(case, mesh)
    config = _config(case, mesh)
    model = build_model(config, CLASSES)
    schedule = plan(config, num_train=IMAGES, num_eval=50000, num_classes=CLASSES)
    optimizer = planned_optimizer(config, schedule, model)
    step = make_train_step(
        config, model, optimizer, mesh, drop=planned_drop_factor(config, schedule)
    )
    rows, size = config.train.batch_size, config.data.image_size
    where = sharding.split(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8, sharding=where),
        "label": jax.ShapeDtypeStruct((rows,), np.int32, sharding=where),
    }
    return step.lower(abstract_state(config, model, optimizer, mesh), {"seed": 0}, batch)


def _config(case: Case, mesh: Mesh) -> Config:
    size = summarize(case.model, image_size=case.image_size).input_shape[1]
    return configured(
        case.model, size, case.batch_size * mesh.size, dtype=case.dtype, settings=case.settings
    )


def _lowered_plain_flax(case: Case, mesh: Mesh) -> Any:
    model = PLAIN_FLAX[case.model].clone(classes=CLASSES, dtype=jnp.dtype(case.dtype))
    size = summarize(case.model, image_size=case.image_size).input_shape[1]
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))
    image = jnp.zeros((1, size, size, 3), case.dtype)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    opt_state = jax.eval_shape(optimizer.init, variables["params"])
    replicated, split = sharding.replicated(mesh), sharding.split(mesh)
    variables, opt_state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        (variables, opt_state),
    )
    rows = case.batch_size * mesh.size
    images = jax.ShapeDtypeStruct((rows, size, size, 3), case.dtype, sharding=split)
    labels = jax.ShapeDtypeStruct((rows,), np.int32, sharding=split)
    return plain_flax_step(model, optimizer).lower(variables, opt_state, images, labels)


def figures(case: Case) -> dict[str, Any]:
    """Compile a case; return the figures of its program, for one GPU and one step."""
    mesh = mesh_of(case)
    began = time.perf_counter()
    traced = lowered(case, mesh)
    then = time.perf_counter()
    compiled = traced.compile()
    done = time.perf_counter()
    return {
        **program_figures(hlo.parse(compiled.as_text())),
        **memory_figures(compiled),
        **arithmetic(case),
        "trace_seconds": then - began,
        "compile_seconds": done - then,
    }


def program_figures(program: hlo.Program) -> dict[str, Any]:
    """Return the numbers of kernels, bytes, convolutions and collectives of a program."""
    counts: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for kernel in kernels.kernels(program):
        counts[kernel.kind] += kernel.times
        moved[kernel.kind] += kernel.times * kernel.bytes
    convolutions, collectives = kernels.convolutions(program), kernels.collectives(program)
    dtypes: Counter[str] = Counter()
    for one in collectives:
        dtypes["+".join(sorted(one.dtypes))] += one.times * one.bytes
    return {
        "convolutions": sum(one.times for one in convolutions),
        "float32_convolutions": sum(one.times for one in convolutions if "f32" in one.dtypes),
        "convolutions_not_nhwc": sum(one.times for one in convolutions if not one.is_nhwc),
        "convolutions_without_cudnn": sum(one.times for one in convolutions if not one.target),
        "activation_copies": counts["copy of activations"],
        "kernels": counts.total(),
        "bytes": moved.total(),
        "kernels_by_kind": {kind: counts[kind] for kind in kernels.KINDS},
        "bytes_by_kind": {kind: moved[kind] for kind in kernels.KINDS},
        "collectives": sum(one.times for one in collectives),
        "collective_bytes": sum(one.times * one.bytes for one in collectives),
        "collective_bytes_by_dtype": dict(dtypes),
        "exposed_collectives": sum(one.times for one in collectives if one.exposed),
        "bytes_beside_collectives": sum(one.times * one.beside for one in collectives),
        "exposed_bytes": sum(one.times * one.bytes for one in collectives if one.exposed),
    }


def memory_figures(compiled: Any) -> dict[str, int]:
    """Return the memory that the program needs on a GPU."""
    memory = compiled.memory_analysis()
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }


def arithmetic(case: Case) -> dict[str, float]:
    """Return the floating-point operations per step and GPU in convolutions and linear layers."""
    summary = summarize(case.model, case.image_size, case.batch_size, dtype=case.dtype)
    endless = roofline.Limits(flops=1.0, bandwidth=float("inf"))
    return {"flops": roofline.cost(summary, endless, train=True).flops}
