"""Compare training with and without collapsed 1x1 convolutions: python -m benchmarks.lab.collapse_training

    --data FOLDER --epochs 3 --output training.json

Trains a small bottleneck network in bfloat16 on a folder of images, several times from the same weights:

- usual: without collapsed convolutions;
- collapsed: with all of them (`model.collapse=on`);
- perturbed: as usual, with a learning rate that is larger by a millionth, which has the effect of other rounding;
- another seed: as usual, with other weights and another order of the images.

The table holds the distance of the losses of each run from those of the usual run, as a mean over the steps of each
epoch. Collapsing changes nothing but rounding if its distance is about that of the perturbed run. The command
returns 1 if it is above that of another seed in an epoch.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from benchmarks import app
from benchmarks.arguments import count, folder, output
from benchmarks.record import write_record
from flax_resnet.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
RATE = 0.1  # learning rate
NETWORK = (
    "--config=configs/resnet18.py",
    "--noreport",
    "--config.model.name=resnet50",
    "--config.model.stem=cifar",
    "--config.model.widths=(16,32,64)",
    "--config.model.depths=(2,2,2)",
    "--config.model.dtype=bfloat16",
    "--config.train.batch_size=128",
    "--config.train.log_every=1",
    "--config.augment.pad_crop=4",
    "--config.augment.mean=(0.5,0.5,0.5)",
    "--config.augment.std=(0.25,0.25,0.25)",
    f"--config.optimizer.learning_rate={RATE}",
)
RUNS = {
    "usual": ("--config.model.collapse=off",),
    "collapsed": ("--config.model.collapse=on",),
    "perturbed": (
        "--config.model.collapse=off",
        f"--config.optimizer.learning_rate={RATE * (1 + 1e-6)}",
    ),
    "another seed": ("--config.model.collapse=off", "--config.train.seed=1"),
}


@app.command
def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, and return 1 if the collapsed run is as far away as another seed."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=folder, required=True, help="folder with images as for data.source=folder"
    )
    parser.add_argument("--image_size", type=count, default=32, help="pixels")
    parser.add_argument("--epochs", type=count, default=3)
    parser.add_argument("--output", type=output, help="the record")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        losses = {name: _losses(options, pathlib.Path(place) / name, RUNS[name]) for name in RUNS}
    by_epoch = {name: run.reshape(options.epochs, -1) for name, run in losses.items()}
    distances = {
        name: np.abs(run - by_epoch["usual"]).mean(axis=1).tolist()
        for name, run in by_epoch.items()
    }
    print(
        f"{'distance of losses':20}" + "".join(f"epoch {n + 1:<5}" for n in range(options.epochs))
    )
    for name, values in distances.items():
        print(f"{name:20}" + "".join(f"{value:<11.4f}" for value in values))
    last = {name: float(run[-1].mean()) for name, run in by_epoch.items()}
    print("mean loss of the last epoch: " + ", ".join(f"{k} {v:.4f}" for k, v in last.items()))
    write_record(
        options.output,
        {"steps": len(losses["usual"]), "distances": distances, "last_epoch": last},
    )
    pairs = zip(distances["collapsed"], distances["another seed"], strict=True)
    return int(any(own >= seed for own, seed in pairs))


def _losses(
    options: argparse.Namespace, workdir: pathlib.Path, changes: Sequence[str]
) -> np.ndarray:
    """Train, and return the loss of every step."""
    command = [
        *(sys.executable, "-m", "flax_resnet.main", *NETWORK),
        "--config.data.source=folder",
        f"--config.data.path={options.data.resolve()}",
        f"--config.data.image_size={options.image_size}",
        f"--config.train.epochs={options.epochs}",
        f"--workdir={workdir}",
        *changes,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"a run ended with {done.returncode}: {lines[-1] if lines else ''}")
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([record["loss"] for record in records if record["split"] == "train"])


if __name__ == "__main__":
    sys.exit(main())
