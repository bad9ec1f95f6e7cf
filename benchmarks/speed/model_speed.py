"""Training and inference speed of networks: python -m benchmarks.speed.model_speed

    --models resnet50 resnet101 --batch_size 256 512 --dtypes bfloat16 float32 --output speed.json

Measures five parts of each network on all devices that JAX sees:

    inference    the forward pass of inference, with folded BatchNorm
    forward      the forward pass of training
    gradient     the forward and backward passes of training
    optimizer    the optimizer's update alone
    step         the whole training step

The parts are compiled ahead of time and measured in turns; the results are medians. The table also shows the memory
of each compiled program, and its speed as a fraction of a roofline measured on the same device (`roofline.py`). A
batch that does not fit into memory is halved. On a shared machine, compare ratios only.
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import app
from benchmarks.arguments import count, duration, output
from benchmarks.record import write_record
from benchmarks.speed import roofline
from benchmarks.speed.workloads import Work, batch, network
from flax_resnet.augment import evaluation_images
from flax_resnet.errors import ConfigError
from flax_resnet.models.folding import fold_batch_norm
from flax_resnet.models.summary import Summary, summarize
from flax_resnet.ops import dispatch
from flax_resnet.training import sharding
from flax_resnet.training.memory import computes_on_cpu, prepare_cpu
from flax_resnet.training.microbatch_size import available_memory
from flax_resnet.training.state import TrainState
from flax_resnet.training.step.train_step import loss_inputs, make_train_step
from flax_resnet.training.step.training_loss import make_loss

DTYPES = ("float32", "bfloat16")
# Default number of images per device: (up to 64 px, above 64 px).
BATCH_SIZES = {"cpu": (128, 16), "gpu": (1024, 256)}
MIB = 2**20
COLUMNS = {
    "part": 11, "ms": 10, "least-most": 18, "images/s": 11, "of step": 9, "GFLOP/s": 10, "of roofline": 13,
    "compile s": 11, "temporary MiB": 15, "arguments MiB": 15,
}  # fmt: skip


class Part(NamedTuple):
    """A compiled part of a network's work, such as "forward" or "step".

    Attributes:
      program: the compiled program; its `memory_analysis` returns the memory that it needs.
      call: starts the program once, and returns the arrays to wait for.
      compile_seconds: time to trace and compile the program.
    """

    program: Any
    call: Callable[[], Any]
    compile_seconds: float


def parts(work: Work) -> dict[str, Part]:
    """Compile the parts of a network's work; return {name: part}."""
    config, model, optimizer, mesh, state = network(work)
    data = batch(work)
    images = sharding.place(data, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    variables = jax.jit(lambda variables: fold_batch_norm(model, variables))(variables)
    grads = jax.tree.map(jnp.zeros_like, state.params)
    loss_fn = make_loss(config, model)
    # All parts share one state. The optimizer and the step donate it and return a new one.
    held = [state]

    def infer(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, evaluation_images(images, config.augment), train=False)

    def loss(params: Any, state: TrainState, batch: Any) -> tuple:
        return loss_fn(params, loss_inputs(config, model, state, batch, seed=0))

    def update(state: TrainState, grads: Any) -> tuple[TrainState, None]:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, params=params, opt_state=opt_state), None

    def inputs() -> tuple:
        return held[0].params, held[0], images

    gradient = jax.value_and_grad(loss, has_aux=True)
    step = make_train_step(config, model, optimizer, mesh)
    jit = partial(jax.jit, compiler_options=dispatch.compiler_options())
    functions = {
        "inference": (jit(infer), lambda: (variables, images["image"])),
        "forward": (jit(loss), inputs),
        "gradient": (jit(gradient), inputs),
        "optimizer": (jax.jit(update, donate_argnums=0), lambda: (held[0], grads)),
        "step": (step, lambda: (held[0], {"seed": 0}, images)),
    }

    def part(name: str) -> Part:
        function, arguments = functions[name]
        began = time.perf_counter()
        program = function.lower(*arguments()).compile()
        seconds = time.perf_counter() - began

        def call() -> Any:
            result = program(*arguments())
            if name in ("optimizer", "step"):
                held[0] = result[0]
            return result

        return Part(program, call, seconds)

    return {name: part(name) for name in functions}


def measured(work: Work, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Compile and measure the parts of a network's work.

    Args:
      work: the network, its images and its dtype.
      rounds: number of measurements of each part.
      seconds: length of a measurement.

    Returns:
      {name of the part: row}. A row has the seconds of a call (median over the rounds, and the smallest and largest
      value), the seconds to compile, and the bytes of temporaries and arguments on each device.

    Raises:
      MemoryError: the batch does not fit.
    """
    try:
        made = parts(work)
        memory = {name: part.program.memory_analysis() for name, part in made.items()}
        needed = max(m.temp_size_in_bytes + m.argument_size_in_bytes for m in memory.values())
        # A GPU raises RESOURCE_EXHAUSTED if memory runs out. On CPU, Linux would kill the process, so check first.
        if jax.default_backend() == "cpu" and needed > available_memory():
            raise MemoryError
        calls = {name: _calls(part, seconds) for name, part in made.items()}
        times: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds):
            for name, part in made.items():
                times[name].append(_time(part, calls[name]))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError from None
    return {
        name: {
            "n": rounds,
            "seconds": statistics.median(times[name]),
            "spread": [min(times[name]), max(times[name])],
            "compile_seconds": part.compile_seconds,
            "temporary_bytes": memory[name].temp_size_in_bytes,
            "argument_bytes": memory[name].argument_size_in_bytes,
        }
        for name, part in made.items()
    }


def _calls(part: Part, seconds: float) -> int:
    """Run a part twice, and return the number of calls that take about `seconds`: 1 to 50."""
    _time(part, 1)
    return max(1, min(50, round(seconds / _time(part, 1))))


def _time(part: Part, calls: int) -> float:
    """Return the mean time of a call in seconds. The calls are queued, so that the device does not wait."""
    began = time.perf_counter()
    for _ in range(calls):
        result = part.call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def fitting(work: Work, rounds: int, seconds: float) -> tuple[Work, dict[str, dict[str, Any]]]:
    """Measure a network; halve its batch until it fits into memory.

    Returns:
      The work with the batch size that fits, and the rows of `measured`.

    Raises:
      ConfigError: not even one image per device fits.
    """
    while True:
        try:
            return work, measured(work, rounds, seconds)
        except MemoryError:
            half = work.batch_size // 2 // jax.device_count() * jax.device_count()
            if not half:
                raise ConfigError(
                    "not even one image per device fits into memory",
                    key="--models",
                    value=work.model,
                ) from None
        print(
            f"{work.model}, {work.dtype}: a batch of {work.batch_size} does not fit into memory: trying {half}"
        )
        # Retry outside of the handler: inside it, the exception would keep the arrays of the large batch alive.
        work = work._replace(batch_size=half)


def derived(rows: dict[str, dict[str, Any]], summary: Summary, limits: roofline.Limits) -> None:
    """Add derived values to the rows: images/s, GFLOP/s, share of the step's time, and fraction of the roofline."""
    size = summary.input_shape[0]
    infer = roofline.cost(summary, limits, train=False)
    train = roofline.cost(summary, limits, train=True)
    costs = {"inference": infer, "forward": infer, "gradient": train, "step": train}
    for name, row in rows.items():
        row["images_per_second"] = size / row["seconds"]
        row["share_of_step"] = row["seconds"] / rows["step"]["seconds"]
        if name in costs:
            row["gflop_per_image"] = costs[name].flops / size / 1e9
            row["gflop_per_second"] = costs[name].flops / row["seconds"] / 1e9
            row["roofline_fraction"] = costs[name].seconds / row["seconds"]


def table(work: Work, rows: dict[str, dict[str, Any]]) -> str:
    """Format the rows of a network as a table."""
    lines = [f"{work.model}, {work.image_size} px, batch {work.batch_size}, {work.dtype}"]
    lines.append("".join(f"{head:>{width}}" for head, width in COLUMNS.items()))
    for name, row in rows.items():
        known = "gflop_per_second" in row
        cells = (
            name,
            f"{row['seconds'] * 1e3:.2f}",
            "{:.2f}-{:.2f}".format(*(1e3 * value for value in row["spread"])),
            f"{row['images_per_second']:.1f}",
            f"{row['share_of_step']:.2f}",
            f"{row['gflop_per_second']:.1f}" if known else "",
            f"{row['roofline_fraction']:.2f}" if known else "",
            f"{row['compile_seconds']:.1f}",
            f"{row['temporary_bytes'] / MIB:.0f}",
            f"{row['argument_bytes'] / MIB:.0f}",
        )
        lines.append("".join(f"{c:>{w}}" for c, w in zip(cells, COLUMNS.values(), strict=True)))
    backward = rows["gradient"]["seconds"] - rows["forward"]["seconds"]
    lines.append(
        f"backward (gradient minus forward): {backward / rows['step']['seconds']:.2f} of the step"
    )
    return "\n".join(lines)


@app.command
def main() -> None:
    """Measure and print."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--image_size", nargs="+", type=count, default=[0],
                        help="pixels (default: 224, or 32 for a network with a cifar stem)")  # fmt: skip
    parser.add_argument("--batch_size", nargs="+", type=count, default=[0],
                        help="images over all devices (default: 256 per GPU, or 1024 up to 64 px; "
                        "16 per CPU device, or 128 up to 64 px)")  # fmt: skip
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES,
                        help="compute dtypes (default: bfloat16; on CPU float32)")  # fmt: skip
    parser.add_argument("--rounds", type=count, default=5, help="measurements of each part")
    parser.add_argument("--seconds", type=duration, default=1.0, help="seconds per measurement")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    args = parser.parse_args()
    if computes_on_cpu():
        prepare_cpu()
    jax.config.update("jax_enable_compilation_cache", False)
    for found in run(args):
        write_record(args.output, {"device": device(), **found})


def device() -> str:
    """Return the number and kind of the devices."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every combination of network, image size, batch size and dtype.

    Yields:
      The results so far, after each combination.

    Raises:
      ConfigError: a name or size is invalid (raised before the first measurement); or the images are too small to
        train a network, or one image per device does not fit into memory (raised when that is measured).
    """
    on_cpu = jax.default_backend() == "cpu"
    dtypes = args.dtypes or (["float32"] if on_cpu else ["bfloat16"])
    works = []
    for name, size, images, dtype in itertools.product(
        args.models, args.image_size, args.batch_size, dtypes
    ):
        summary = summarize(name, image_size=size, batch_size=images or 1, dtype=dtype)
        small = summary.input_shape[1] <= 64
        usual = BATCH_SIZES["cpu" if on_cpu else "gpu"][not small] * jax.device_count()
        sharding.check_batch(sharding.make_mesh(), images or usual, "--batch_size")
        classes = summary.layers[-1].output_shape[-1]
        works.append(Work(name, summary.input_shape[1], images or usual, classes, dtype=dtype))
    print(device())
    found = {dtype: roofline.limits(dtype) for dtype in dtypes}
    for dtype, limits in found.items():
        print(
            f"{dtype}: {limits.flops / 1e9:.0f} GFLOP/s in dot products, {limits.bandwidth / 1e9:.1f} GB/s"
        )
    results = []
    for work in works:
        work, rows = fitting(work, args.rounds, args.seconds)
        summary = summarize(work.model, work.image_size, work.batch_size, dtype=work.dtype)
        derived(rows, summary, found[work.dtype])
        print(table(work, rows), flush=True)
        results.append({**work._asdict(), "parts": rows})
        yield {
            "limits": {dtype: limits._asdict() for dtype, limits in found.items()},
            "results": results,
        }


if __name__ == "__main__":
    sys.exit(main())
