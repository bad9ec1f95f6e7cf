"""Compare the logits of ONNX exports with those of JAX: python -m benchmarks.lab.onnx_networks

    --names 'resnetv2*' --output networks.csv

Each network gets random weights, statistics and images, drawn so that every weight matters. A row holds the largest
difference of the logits, relative to the largest logit, and the number of operators of each kind. The same command
again continues an interrupted file. All networks take half an hour on two cores, and 20 GiB of memory.
"""

import collections
import csv
import fnmatch
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import app
from benchmarks.arguments import absent, output
from flax_resnet.config import Config
from flax_resnet.errors import ConfigError
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.export import FORMATS
from flax_resnet.inference.export.program import Program, program_of
from flax_resnet.inference.export.signature import Signature
from flax_resnet.models import create_model, list_models

SHOWN = (
    "Conv",
    "Relu",
    "Add",
    "Gemm",
    "Transpose",
    "Reshape",
)  # operators with a column of their own
COLUMNS = (
    "name",
    "parameters",
    "image_size",
    "difference",
    *SHOWN,
    "nodes",
    "megabytes",
    "seconds",
)
BOUND = 1e-4


@app.command
def main() -> int:
    """Parse the arguments, and return 1 if a network differs by more than `BOUND`."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=["*"], help="patterns of networks")
    parser.add_argument("--output", type=output, default="onnx_networks.csv", help="CSV file")
    args = parser.parse_args()
    if missing := absent("onnx", "onnxruntime"):
        raise ConfigError("is missing", key=" ".join(missing), cure="pip install '.[onnx]'")
    names = [n for n in list_models() if any(fnmatch.fnmatch(n, p) for p in args.names)]
    path = pathlib.Path(args.output)
    done = {row["name"] for row in csv.DictReader(path.open())} if path.exists() else set()
    worst = 0.0
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if not stream.tell():
            writer.writeheader()
        for name in names:
            if name in done:
                continue
            row = measure(name)
            worst = max(worst, row["difference"])
            writer.writerow(row)
            stream.flush()
            print(
                f"{name}: {row['difference']:.1e}, {row['nodes']} nodes, {row['seconds']} s",
                flush=True,
            )
    return int(worst > BOUND)


def measure(name: str) -> dict[str, Any]:
    """Return the row of a network."""
    import onnx

    start = time.perf_counter()
    program = random_program(name)
    size = program.signature.image_size
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.variables["params"]))
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    row = FORMATS["onnx"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, row.file)
        row.write(program, path)
        graph = onnx.load(path, load_external_data=False).graph
        megabytes = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
        inputs = program.model_input(images).transpose(0, 3, 1, 2)
        outputs = row.open(path, program.signature)(inputs)
    expected = program.expected(images)
    counts = collections.Counter(node.op_type for node in graph.node)
    return {
        "name": name,
        "parameters": parameters,
        "image_size": size,
        "difference": float(np.abs(outputs - expected).max() / np.abs(expected).max()),
        **{op: counts[op] for op in SHOWN},
        "nodes": len(graph.node),
        "megabytes": round(megabytes, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def random_program(name: str, size: int = 0) -> Program:
    """Return the program of a network with random variables, for images of `size` pixels or its own size."""
    model = create_model(name)
    classes = tuple(map(str, range(model.num_classes)))
    classifier = Classifier(model, random_variables(model), classes, Config(), 0)
    return program_of(classifier, Signature(image_size=size or model.image_size))


def random_variables(model: Any) -> dict[str, Any]:
    """Return random variables of a network, with scales and statistics that differ from 1 and 0."""
    draw = np.random.default_rng(0)
    image = jnp.zeros((1, 224, 224, model.in_channels))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def leaf(path: Any, shape: Any) -> np.ndarray:
        kind = path[-1].key
        if kind in ("scale", "var"):
            return draw.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        deviation = np.sqrt(2 / np.prod(shape.shape[:-1])) if kind == "kernel" else 0.1
        return draw.standard_normal(shape.shape, np.float32) * np.float32(deviation)

    variables: dict[str, Any] = jax.tree_util.tree_map_with_path(leaf, shapes)
    for block in variables["params"].values():
        convs = sorted(name for name in block if re.fullmatch(r"conv\d", name))
        if convs:  # A block adds a fifth of its input: hundreds of them must not overflow.
            block[convs[-1]]["kernel"] *= np.float32(0.2)
    return variables


if __name__ == "__main__":
    raise SystemExit(main())
