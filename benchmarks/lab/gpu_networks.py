"""Compile the training steps of networks for an H100 without having one: python -m benchmarks.lab.gpu_networks

    --names resnet18 resnet50 --output networks.json

A row holds the bytes that a step in bfloat16 moves, its temporaries and kernels, with this package's operations and
with XLA's own (the textbook form, as with FLAX_RESNET_OPS=plain), and the least bytes that its layers need: each
output of a convolution or linear layer is written once and read once in the forward pass, and as often for each of
the two gradients. All networks take half an hour. gpu_program.py says what the figures mean, and what they need.
"""

import math
import sys
import time

from benchmarks import app
from benchmarks.arguments import output
from benchmarks.lab.gpu_program import LABEL, prepare
from benchmarks.lab.program_figures import Case, figures
from benchmarks.record import write_record
from benchmarks.speed import roofline
from flax_resnet.models import create_model
from flax_resnet.models.summary import summarize
from flax_resnet.ops.dispatch import operations

# {network: images of a batch}
NETWORKS: dict[str, int] = {
    "resnet18": 256,
    "resnet34": 256,
    "resnet50": 256,
    "resnet101": 128,
    "resnet152": 128,
    "resnet50d": 256,
    "seresnet50": 256,
    "ecaresnet50d": 256,
    "resnext50_32x4d": 128,
    "wide_resnet50_2": 128,
    "resnetrs50": 128,
    "resnetblur50": 128,
    "resnetv2_50x1_bit": 128,
    "wrn28_10": 128,
    "resnet20": 1024,
}


@app.command
def main() -> int:
    """Compile, and print and write each row as soon as it is there."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    options = parser.parse_args()
    prepare()
    rows = []
    for name in options.names:
        rows.append(row(name))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        write_record(options.output, {"what": LABEL, "networks": rows})
    return 0


def row(name: str) -> dict[str, str | int | float]:
    """Compile a network in three forms, and return its row."""
    began = time.perf_counter()
    images = NETWORKS[name]
    summary = summarize(name, batch_size=images, dtype="bfloat16")
    endless = roofline.Limits(flops=math.inf, bandwidth=1.0)
    usual = ("model.collapse=off",) if create_model(name).measures_batches else ()
    ours = figures(Case(name, batch_size=images))
    not_collapsed = figures(Case(name, batch_size=images, settings=usual))
    with operations("plain"):
        plain = figures(Case(name, batch_size=images))
    return {
        "name": name,
        "images": images,
        "image_size": summary.input_shape[1],
        "least_gb": _gb(roofline.cost(summary, endless, train=True).seconds),
        "gb": _gb(ours["bytes"]),
        "gb_not_collapsed": _gb(not_collapsed["bytes"]),
        "gb_plain": _gb(plain["bytes"]),
        "temporaries_gb": _gb(ours["temporary_bytes"]),
        "temporaries_gb_plain": _gb(plain["temporary_bytes"]),
        "kernels": ours["kernels"],
        "kernels_plain": plain["kernels"],
        "float32_convolutions": ours["float32_convolutions"],
        "activation_copies": ours["activation_copies"],
        "seconds": round(time.perf_counter() - began),
    }


def _gb(number: float) -> float:
    return round(number / 1e9, 2)


if __name__ == "__main__":
    sys.exit(main())
