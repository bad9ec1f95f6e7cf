"""Compare exports with JAX in a process without flax_resnet: python -m benchmarks.lab.other_formats

    --names resnet50 --image_size 224 --output formats.csv

Each network gets random weights, scales and statistics; its logits have a size of 10. The lines of the model card
load each file in a new process, which imports nothing of flax_resnet. A row holds the largest difference from the
network before folding, relative to the largest logit. Four networks take a quarter of an hour on two cores.
"""

import csv
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import app
from benchmarks.arguments import count, output
from flax_resnet.augment.augment_section import Augment
from flax_resnet.config import Config
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.export import FORMATS, export
from flax_resnet.inference.export.program import exact
from flax_resnet.models import create_model
from flax_resnet.models.model_section import Model

NETWORKS = ("resnet18", "resnet50", "seresnet50", "resnetv2_50x1_bit")
TESTED = ("stablehlo", "saved_model", "litert")
COLUMNS = ("name", "image_size", "precision", "format", "difference", "megabytes")
BOUNDS = {"float32": 1e-4, "float16": 1e-2}
LARGEST_LOGIT = 10.0
IMAGENET = Augment(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# `images` come from the export's folder, and `outputs` go back.
PROCESS = """
import sys
import numpy
images = numpy.load("check/expected.npz")["inputs"]
{load}
assert not any(name.startswith("flax") for name in sys.modules)
numpy.save({path!r}, numpy.asarray(outputs))
"""


@app.command
def main() -> int:
    """Parse the arguments, and return 1 if a format differs by more than its bound."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=[*NETWORKS], help="networks")
    parser.add_argument("--image_size", type=count, default=64, help="pixels")
    parser.add_argument("--output", type=output, default="formats.csv", help="CSV file")
    args = parser.parse_args()
    good = True
    with pathlib.Path(args.output).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        for name in args.names:
            for precision, bound in BOUNDS.items():
                start = time.perf_counter()
                for row in measure(name, args.image_size, precision):
                    good = good and row["difference"] <= bound
                    writer.writerow(row)
                    stream.flush()
                    print(*row.values(), flush=True)
                print(f"{time.perf_counter() - start:.0f} s", flush=True)
    return 0 if good else 1


def measure(name: str, image_size: int, precision: str) -> list[dict[str, Any]]:
    """Return the rows of a network."""
    classifier, rows = random_classifier(name, image_size), []
    with tempfile.TemporaryDirectory() as parent:
        folder = export(
            classifier,
            pathlib.Path(parent, "model"),
            TESTED,
            image_size=image_size,
            precision=precision,
        )
        images = np.load(folder / "check" / "expected.npz")["inputs"]
        with exact():
            apply = jax.jit(lambda variables, x: classifier.model.apply(variables, x, train=False))
            expected = np.asarray(apply(classifier.variables, images))
        for entry in TESTED:
            outputs = in_new_process(folder, entry)
            file = folder / FORMATS[entry].file
            files = [file] if file.is_file() else [f for f in file.rglob("*") if f.is_file()]
            rows.append(
                {
                    "name": name,
                    "image_size": image_size,
                    "precision": precision,
                    "format": entry,
                    "difference": float(np.abs(outputs - expected).max() / np.abs(expected).max()),
                    "megabytes": round(sum(f.stat().st_size for f in files) / 1e6, 1),
                }
            )
    return rows


def in_new_process(folder: pathlib.Path, entry: str) -> np.ndarray:
    """Return the outputs for the test images, computed by the lines of the model card in a new process."""
    load = FORMATS[entry].load
    if (
        entry == "litert"
    ):  # TensorFlow's copy of the interpreter, if the own package is not installed
        load = load.replace("from ai_edge_litert.interpreter import Interpreter", INTERPRETER)
    with tempfile.TemporaryDirectory() as parent:
        path = f"{parent}/outputs.npy"
        code = PROCESS.format(load=load, path=path)
        command = [sys.executable, "-I", "-W", "ignore", "-c", code]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        return np.load(path)


INTERPRETER = """
try:
    from ai_edge_litert.interpreter import Interpreter
except ModuleNotFoundError:
    import tensorflow as tf

    Interpreter = tf.lite.Interpreter
"""


def random_classifier(name: str, image_size: int, **options: Any) -> Classifier:
    """Return a network with random variables, with scales and statistics that differ from 1 and 0."""
    model = create_model(name, **options)
    draw = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, 224, 224, model.in_channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        kind = path[-1].key
        if kind in ("scale", "var"):
            return draw.uniform(0.4, 1.0, shape.shape).astype(np.float32)
        deviation = np.sqrt(2 / np.prod(shape.shape[:-1])) if kind == "kernel" else 0.1
        return draw.standard_normal(shape.shape, np.float32) * np.float32(deviation)

    variables = {"batch_stats": {}, **jax.tree_util.tree_map_with_path(leaf, shapes)}
    images = draw.standard_normal((2, image_size, image_size, model.in_channels), np.float32)
    logits = jax.jit(lambda leaves, x: model.apply(leaves, x, train=False))(variables, images)
    head = variables["params"]
    for part in model.head.split("/"):
        head = head[part]
    for key in head:
        head[key] = head[key] * np.float32(LARGEST_LOGIT / float(jnp.abs(logits).max()))
    names = tuple(map(str, range(model.num_classes)))
    config = Config(model=Model(name=name), augment=IMAGENET)
    return Classifier(model, variables, names, config, 0)


if __name__ == "__main__":
    sys.exit(main())
