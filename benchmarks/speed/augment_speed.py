"""The cost of augmentation: python -m benchmarks.speed.augment_speed

Measures the images/s of each operation and policy in turns. Every program also normalises the batch. Two other
implementations of RandAugment are measured for comparison: `vmap` of `lax.switch`, and `lax.map` of `lax.switch`,
which processes one image at a time. Prints a table and, with --output, writes JSON. On a shared machine, compare
ratios only.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import app
from benchmarks.arguments import count, output
from benchmarks.record import write_record
from flax_resnet.augment import color, policy, training_batch
from flax_resnet.augment.apply import normalize
from flax_resnet.augment.augment_section import Augment
from flax_resnet.augment.geometry import warp
from flax_resnet.augment.policies import randaugment

SIZES = {"224": (64, 224), "32": (512, 32)}
BASE = "normalize"
OPTIONS: dict[str, dict[str, Any]] = {
    BASE: {},
    "flip": {"flip": "horizontal"},
    "pad_crop": {"pad_crop": 4},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
    "saturation": {"saturation": 0.4},
    "hue": {"hue": 0.1},
    "all four": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "cutout": {"cutout": 8},
    "random_erasing": {"random_erasing": 0.5},
    "random_erasing, noise": {"random_erasing": 0.5, "random_erasing_fill": "noise"},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "trivialaugment": {"policy": "trivialaugment"},
    "randaugment": {"policy": "randaugment"},
}
SWITCHED = {"randaugment, vmap of switch": jax.vmap, "randaugment, map of switch": None}


@app.command
def main() -> None:
    """Measure and print."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--steps", type=count, default=5, help="timed batches per program")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)

    rows = {size: measured(*SIZES[size], args.steps) for size in args.sizes}
    report(args, rows)


def measured(batch: int, side: int, steps: int) -> dict[str, dict[str, float]]:
    """Compile every program for a batch, run the programs in turns, and return {name: row of results}."""
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.integers(0, 256, (batch, side, side, 3)), jnp.uint8)
    labels = jnp.asarray(draw.integers(0, 1000, batch), jnp.int32)
    programs = {name: configured(Augment(**options)) for name, options in OPTIONS.items()}
    programs |= {name: switched(vectorize, side) for name, vectorize in SWITCHED.items()}
    compiled, compile_seconds = {}, {}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for name, program in programs.items():
        began = time.perf_counter()
        compiled[name] = jax.jit(program).lower(jax.random.key(0), images, labels).compile()
        compile_seconds[name] = time.perf_counter() - began
        jax.block_until_ready(compiled[name](jax.random.key(0), images, labels))
    for step in range(steps):
        for name, program in compiled.items():
            key = jax.random.key(step)
            began = time.perf_counter()
            jax.block_until_ready(program(key, images, labels))
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(some) for name, some in times.items()}
    return {
        name: {
            "compile_seconds": compile_seconds[name],
            "seconds": seconds,
            "images_per_second": batch / seconds,
        }
        for name, seconds in medians.items()
    }


def configured(config: Augment) -> Callable:
    """Return a program that augments a batch as configured: (key, images, labels) -> images, labels."""
    return lambda key, images, labels: training_batch(key, images, labels, 1000, config)


def switched(vectorize: Callable | None, side: int) -> Callable:
    """Return a program for RandAugment that selects the operation of each image by `lax.switch`.

    It uses the kernels of the package.

    Args:
      vectorize: `jax.vmap`, which computes every operation for every image; None to process one image at a time by
        `lax.map`.
      side: side length of the images, in pixels.
    """
    rows = policy.operations(randaugment.ranges(side, side), side, side)

    def branch(kind: int) -> Callable:
        def apply(image: jax.Array, sign: jax.Array) -> jax.Array:
            row = policy.Operation(*(jnp.asarray(x[kind, 9])[sign][None] for x in rows))
            return KERNELS[list(policy.KINDS)[kind]](image[None], row)[0]

        return apply

    branches = [branch(kind) for kind in range(len(policy.KINDS))]

    def one(arguments: tuple) -> jax.Array:
        image, kind, sign = arguments
        return jax.lax.switch(kind, branches, image, sign)

    def program(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple:
        for turn in range(2):
            kind, _, sign = policy.choices(jax.random.fold_in(key, turn), len(images))
            arguments = (images, kind, sign)
            images = vectorize(one)(arguments) if vectorize else jax.lax.map(one, arguments)
        return normalize(images, Augment()), jax.nn.one_hot(labels, 1000)

    return program


def kernels() -> dict[str, Callable]:
    """Return {name: kernel}; a kernel is a function (images, `policy.Operation`) -> images."""

    def amount(values: jax.Array) -> jax.Array:
        return values[:, None, None, None]

    def table(levels: Callable) -> Callable:
        return lambda x, row: color.look_up(x, levels(color.histogram(x)))

    warped = dict.fromkeys(
        ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
        lambda x, row: warp(x, row.matrix),
    )
    own = dict.fromkeys(
        ("Brightness", "Posterize", "Solarize"),
        lambda x, row: color.look_up(x, jnp.repeat(row.levels[:, None], 3, axis=1)),
    )
    return warped | own | {
        "Identity": lambda x, row: x,
        "Color": lambda x, row: color.saturation(x, amount(row.saturation)),
        "Contrast": lambda x, row: color.contrast(x, amount(row.contrast)),
        "Sharpness": lambda x, row: color.sharpness(x, amount(row.sharpness)),
        "AutoContrast": table(color.autocontrast_levels),
        "Equalize": table(color.equalize_levels),
    }  # fmt: skip


KERNELS = kernels()


def report(args: argparse.Namespace, rows: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print one table per image size; with --output, write JSON."""
    for size, table in rows.items():
        batch, side = SIZES[size]
        print(
            f"batch {batch} at {side} px, {jax.default_backend()} ({jax.devices()[0].device_kind})"
        )
        print(f"{'':30}{'images/s':>12}{'/ ' + BASE:>14}{'compile s':>12}")
        base = table[BASE]["images_per_second"]
        for name, row in table.items():
            rate = row["images_per_second"]
            print(f"{name:30}{rate:12.0f}{rate / base:14.2f}{row['compile_seconds']:12.2f}")
    result = {
        "arguments": vars(args),
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }
    write_record(args.output, result)


if __name__ == "__main__":
    sys.exit(main())
