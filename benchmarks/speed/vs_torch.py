"""Compare the speed of flax_resnet with PyTorch, timm and plain linen: python -m benchmarks.speed.vs_torch

    --works resnet50 resnet18 --output benchmarks/results/vs_torch.json
    --works resnet50 --inference --batch_size 1
    --works resnet50 --batch_size 256 --systems "flax_resnet, bfloat16" "torch, bfloat16"    on a GPU

Run nothing else on the machine. The systems take turns in one run, each in its own process. The result is the
median speed of each system, and the ratio of the first system's median to it. torch, torchvision and timm need
`pip install '.[parity]'`; without all three, only the JAX systems are compared.

A "kept" process keeps freed memory and waits for each step (`training.memory`). The commands of this package do so
on CPU; the other systems do not by default. Each system is measured in its default mode. "plain_flax, kept" and
"torch, kept" measure the other systems in the same mode as flax_resnet.
"""

import os
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import app
from benchmarks.arguments import absent, batch_size, count, duration, output
from benchmarks.record import write_record
from benchmarks.speed.interleave import measure
from benchmarks.speed.workloads import Program, Work, ours, plain_flax, take_turns, torch_step
from flax_resnet.errors import ConfigError

WORKS = {
    "resnet50": Work("resnet50"),
    "resnet18": Work("resnet18"),
    "resnext50": Work("resnext50_32x4d"),
    "seresnet50": Work("seresnet50"),
    "resnet18_cifar": Work("resnet18_cifar", 32, 128, 10),
    "resnet20": Work("resnet20", 32, 128, 10),
}
# (program, dtype, whether the process is "kept")
SYSTEMS: dict[str, tuple[Callable[[Work], Program], str, bool]] = {
    "flax_resnet": (ours, "float32", True),
    "flax_resnet, not kept": (ours, "float32", False),
    "flax_resnet, bfloat16": (ours, "bfloat16", True),
    "plain_flax": (plain_flax, "float32", False),
    "plain_flax, kept": (plain_flax, "float32", True),
    "plain_flax, bfloat16": (plain_flax, "bfloat16", False),
    "torch": (torch_step, "float32", False),
    "torch, kept": (torch_step, "float32", True),
    "torch, bfloat16": (torch_step, "bfloat16", False),
    "torch.compile": (partial(torch_step, compiled=True), "float32", False),
    "torch.compile, bfloat16": (partial(torch_step, compiled=True), "bfloat16", False),
    "timm": (partial(torch_step, library="timm"), "float32", False),
}
USUAL = ("flax_resnet", "plain_flax", "plain_flax, kept", "torch", "torch, kept")


@app.command
def main() -> None:
    """Parse the arguments, measure the speeds and print them."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--systems", nargs="+", default=USUAL, choices=list(SYSTEMS))
    parser.add_argument("--inference", action="store_true", help="measure inference, not training")
    parser.add_argument(
        "--batch_size",
        type=batch_size,
        default=0,
        help="images per step (default: that of each work)",
    )
    parser.add_argument("--rounds", type=count, default=5, help="timed turns per system")
    parser.add_argument("--seconds", type=duration, default=2.0, help="minimum length of a turn")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    args = parser.parse_args()
    if absent("torch", "torchvision", "timm"):
        needs_torch = [s for s in args.systems if s.startswith(("torch", "timm"))]
        args.systems = [s for s in args.systems if s not in needs_torch]
        if needs_torch:
            print(
                f"left out, because torch, torchvision or timm is missing: {', '.join(needs_torch)}"
            )
    if not args.systems:
        raise ConfigError(
            "none is left to measure", key="--systems", cure="pip install '.[parity]'"
        )
    # The systems share a GPU. By default, each JAX process would preallocate three quarters of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    tables = {}
    for name in args.works:
        work = WORKS[name]._replace(train=not args.inference)
        work = work._replace(batch_size=args.batch_size or work.batch_size)
        print(f"{name}, {work.image_size} px, batch {work.batch_size}, "
              f"{'inference' if args.inference else 'training'}")  # fmt: skip
        systems = {
            system: partial(take_turns, make, work._replace(dtype=dtype), args.seconds, keep)
            for system in args.systems
            for make, dtype, keep in [SYSTEMS[system]]
        }
        tables[name] = measure(systems, rounds=args.rounds)
        write_record(args.output, {"images_per_second": tables})


if __name__ == "__main__":
    sys.exit(main())
