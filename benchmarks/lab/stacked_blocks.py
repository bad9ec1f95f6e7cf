"""Time and memory of a network with and without `scan_blocks`: python -m benchmarks.lab.stacked_blocks

Compiles the gradient of a network twice: with separate blocks ("unrolled"), and with a loop over the identical
blocks of each stage ("scanned", `scan_blocks=True`). Runs both in turns. Prints a table and, with --output, writes
JSON. On a shared machine, compare ratios only.
"""

import argparse
import statistics
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import app
from benchmarks.arguments import batch_size, count, output
from benchmarks.record import write_record
from flax_resnet import create_model
from flax_resnet.models.stacking import stack_blocks


@app.command
def main() -> None:
    """Measure and print."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet152")
    parser.add_argument("--image_size", type=count, default=96)
    parser.add_argument("--batch_size", type=batch_size, default=4)
    parser.add_argument("--steps", type=count, default=7, help="timed runs of each program")
    parser.add_argument("--remat", default="none", choices=["none", "block", "stage"])
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)

    images = jnp.asarray(
        np.random.default_rng(0).normal(
            size=(args.batch_size, args.image_size, args.image_size, 3)
        ),
        jnp.float32,
    )
    plain = create_model(args.model)
    variables = jax.jit(lambda: plain.init(jax.random.key(0), images[:1], train=False))()
    programs = {}
    for scan in (False, True):
        model = create_model(args.model, scan_blocks=scan, remat=args.remat)
        stacked = jax.block_until_ready(stack_blocks(variables) if scan else variables)
        programs["scanned" if scan else "unrolled"] = compiled(model, stacked, images)
    for _ in range(args.steps):
        for program in programs.values():
            began = time.perf_counter()
            jax.block_until_ready(program["step"](program["variables"], images))
            program["seconds"].append(time.perf_counter() - began)
    report(args, programs)


def compiled(model: nn.Module, variables: dict, images: jax.Array) -> dict:
    """Trace and compile the gradient of a network's mean squared logit, and run it once."""

    def loss(variables: dict, images: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.square(logits).mean()

    began = time.perf_counter()
    lowered = jax.jit(jax.grad(loss)).lower(variables, images)
    traced = time.perf_counter()
    step = lowered.compile()
    result = {"trace": traced - began, "compile": time.perf_counter() - traced, "seconds": []}
    jax.block_until_ready(step(variables, images))
    memory = step.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else 0
    return result | {"step": step, "variables": variables, "temporary_bytes": temporary}


def report(args: argparse.Namespace, programs: dict[str, dict]) -> None:
    """Print the table; with --output, write JSON."""
    rows = {}
    for name, program in programs.items():
        rows[name] = {
            "trace_seconds": program["trace"],
            "compile_seconds": program["compile"],
            "step_seconds": statistics.median(program["seconds"]),
            "temporary_MiB": program["temporary_bytes"] / 2**20,
        }
    ratios = {key: rows["scanned"][key] / rows["unrolled"][key] for key in rows["unrolled"]}
    print(f"{args.model}, {args.image_size} px, batch {args.batch_size}, remat {args.remat}, "
          f"{jax.default_backend()} ({jax.devices()[0].device_kind})")  # fmt: skip
    print(f"{'':16}{'unrolled':>12}{'scanned':>12}{'ratio':>10}")
    for key, ratio in ratios.items():
        print(f"{key:16}{rows['unrolled'][key]:12.2f}{rows['scanned'][key]:12.2f}{ratio:10.2f}")
    result = {
        "arguments": vars(args),
        "device": jax.devices()[0].device_kind,
        "rows": rows,
        "scanned_over_unrolled": ratios,
    }
    write_record(args.output, result)


if __name__ == "__main__":
    sys.exit(main())
