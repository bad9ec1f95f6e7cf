"""Compare the speed of our ONNX models with torch.onnx's of timm's networks: python -m benchmarks.speed.onnx_speed

    --networks resnet50 --batch_size 16 --output benchmarks/results/onnx_speed.json

Both models run in ONNX Runtime on the CPU with the same settings, in turns, each in its own process. Run nothing
else on the machine. Needs `pip install '.[parity,onnx]' onnxscript`.
"""

import collections
import functools
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import app
from benchmarks.arguments import absent, batch_size, count, duration, output
from benchmarks.record import write_record
from benchmarks.speed.interleave import Turn, measure
from flax_resnet.errors import ConfigError

NETWORKS = ("resnet18", "resnet50", "seresnet50", "resnetv2_50x1_bit")
SIZE = 224


@app.command
def main() -> None:
    """Parse the arguments, measure the speeds and print them."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names that timm has too")
    parser.add_argument("--batch_size", type=batch_size, default=1, help="images per call")
    parser.add_argument("--rounds", type=count, default=7, help="timed turns per system")
    parser.add_argument("--seconds", type=duration, default=3.0, help="minimum length of a turn")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    args = parser.parse_args()
    if missing := absent("torch", "timm", "onnx", "onnxruntime", "onnxscript"):
        cure = "pip install '.[parity,onnx]' onnxscript"
        raise ConfigError(f"needs {' '.join(missing)}", key="onnx_speed", cure=cure)
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks:
            files = {
                "flax_resnet": pathlib.Path(folder, "ours.onnx"),
                "torch": pathlib.Path(folder, "torch.onnx"),
            }
            # Separate processes: torch and TensorFlow do not work in one process.
            _write(_ours, name, files["flax_resnet"])
            _write(_torch, name, files["torch"])
            print(f"{name}, {SIZE} px, batch {args.batch_size}")
            systems = {
                system: functools.partial(_turn, file, args.batch_size, args.seconds)
                for system, file in files.items()
            }
            tables[name] = {"nodes": {system: _nodes(file) for system, file in files.items()}}
            tables[name]["images_per_second"] = measure(systems, rounds=args.rounds)
            write_record(args.output, {"networks": tables})


def _write(write: Any, name: str, path: pathlib.Path) -> None:
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=write, args=(name, path))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"error: {name}: not exported; the message is above")


def _ours(name: str, path: pathlib.Path) -> None:
    from benchmarks.lab.onnx_networks import random_program
    from flax_resnet.inference.export import FORMATS

    FORMATS["onnx"].write(random_program(name, SIZE), path)


def _torch(name: str, path: pathlib.Path) -> None:
    import timm
    import torch

    network = timm.create_model(name).eval()
    torch.onnx.export(
        network, (torch.zeros(1, 3, SIZE, SIZE),), path, input_names=["images"], dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
    )  # fmt: skip


def _nodes(path: pathlib.Path) -> dict[str, int]:
    import onnx

    graph = onnx.load(path).graph
    return dict(collections.Counter(node.op_type for node in graph.node).most_common())


def _turn(path: pathlib.Path, images: int, seconds: float) -> Turn:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).standard_normal((images, 3, SIZE, SIZE), np.float32)

    def turn(number: int) -> float:
        del number
        start, calls = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            session.run(None, {"images": batch})
            calls += 1
        return calls * images / spent

    return turn


if __name__ == "__main__":
    sys.exit(main())
