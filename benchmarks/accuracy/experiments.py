"""What the benchmark of accuracy trains: experiments, a row of data for each thing that is compared."""

import pathlib
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax_resnet.training.runs.folder import SUMMARY

SYSTEMS = {"flax_resnet": "flax_resnet.main", "torch": "benchmarks.accuracy.torch_run"}
DATA = {"data.source": "folder", "data.limit": 10_000}


class Row(NamedTuple):
    """What is trained with every seed.

    Attributes:
      label: of the table, and name of its folder.
      config: file of the configuration, with its argument after a colon.
      overrides: by dotted key, beside those of `DATA`.
      system: a key of `SYSTEMS`.
      classes: the classes to train and evaluate on; empty for all.
      images: of each of these to train on, the first by name; 0 for all.
      start: label of the row whose network is fine-tuned, that of the first seed; "" for none.
      once: whether the first seed alone is run.
    """

    label: str
    config: str
    overrides: Mapping[str, Any]
    system: str = "flax_resnet"
    classes: tuple[str, ...] = ()
    images: int = 0
    start: str = ""
    once: bool = False


def he2016(network: str, overrides: Mapping[str, Any]) -> Row:
    """Returns a row of the recipe of the papers of He et al., its milestones for any length."""
    drops = {"schedule.unit": "fraction", "schedule.milestones": (0.5, 0.75)}
    return Row(network, f"configs/cifar_he2016.py:{network}", {**drops, **overrides})


def in_both(overrides: Mapping[str, Any]) -> list[Row]:
    """Returns rows of airbench's recipe, here and in PyTorch."""
    return [Row(name, "configs/cifar_speedrun.py", overrides, system=name) for name in SYSTEMS]


EIGHT = {"train.epochs": 8}
# At the paper's 0.1 from the first step, resnet56 loses hundreds of steps to a loss of 5, more than there are here.
GENTLE = {
    "train.epochs": 2,
    "train.batch_size": 64,
    "optimizer.learning_rate": 0.05,
    "schedule.warmup": 0.2,
}
FIRST = ("airplane", "automobile", "bird", "cat", "deer")
LAST = ("dog", "frog", "horse", "ship", "truck")
FEW = {
    "train.epochs": 60,
    "train.batch_size": 50,
    "train.eval_every": 20,
    "train.checkpoint_every": 60,
    "train.eval_batch_size": 1000,
}
CIFAR = {"data.train_crop": "resize", "data.eval_crop": "resize", "augment.pad_crop": 4}
SPEEDRUN = {
    "data.limit": 0,
    "augment.eval_flip": False,
    "augment.eval_shift": 0,
    "model.widths": (32, 128, 128),
    "train.batch_size": 500,
    "train.epochs": 1,
    "train.eval_every": 0.25,
}
EXPERIMENTS = {
    # He et al. 2016, figure 6: deeper is worse without shortcuts, and better with them.
    "plain_vs_residual": [
        he2016(network, GENTLE) for network in ("plain20", "resnet20", "plain56", "resnet56")
    ],
    # The same recipe, initial weights and batches in both; the averaged weights are beside the last.
    "resnet20": [
        he2016("resnet20", EIGHT | {"ema.decay": 0.99, "ema.bn_batches": 16}),
        he2016("resnet20", EIGHT)._replace(label="torch", system="torch"),
    ],
    # The papers' 64,000 steps on all images, for a GPU.
    "resnet20_full": [he2016("resnet20", {"data.limit": 0})],
    "resnet56_full": [he2016("resnet56", {"data.limit": 0})],
    # 94 % in ten epochs, for a GPU; and smaller, shorter and judged on single views, for two cores of a CPU.
    "airbench94": in_both({"data.limit": 0}),
    "speedrun": in_both(SPEEDRUN),
    # Five classes with 50 images each, by a network that has learned the five others, and from scratch.
    "fine_tuning": [
        he2016("resnet20", {"train.epochs": 8})._replace(
            label="pretrained", classes=FIRST, once=True
        ),
        he2016("resnet20", FEW)._replace(label="scratch", classes=LAST, images=50),
        Row(
            "fine-tuned",
            "configs/finetune.py:folder=images",
            FEW | CIFAR,
            classes=LAST,
            images=50,
            start="pretrained",
        ),
    ],
}


class Run(NamedTuple):
    """A row with a seed.

    Attributes:
      row: the row of the experiment.
      seed: seed of the weights, the order of the examples, and the augmentation.
      folder: where it is written.
      overrides: of its configuration, by dotted key.
    """

    row: Row
    seed: int
    folder: pathlib.Path
    overrides: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """Returns the command without the interpreter."""
        changed = [
            f"--config.{k}={v}".replace(" ", "")
            for k, v in self.overrides.items()
            if k != "data.path"
        ]
        path = f"--config.data.path={self.overrides['data.path']}"  # which may hold spaces
        # One folder for the experiment: the program of a row is that of all its seeds.
        kept = f"--compilation_cache={self.folder.parents[1] / 'compiled'}"
        start = ["-m", SYSTEMS[self.row.system], "--config", self.row.config]
        return [*start, "--workdir", str(self.folder), kept, path, *changed]  # fmt: skip

    @property
    def shown(self) -> str:
        """Returns the command as a person types it."""
        return shlex.join(["python", *self.command])

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / SUMMARY).exists()
