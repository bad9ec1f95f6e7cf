"""The experiments of the accuracy benchmark. An experiment is a list of rows, each a recipe to train."""

import pathlib
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax_resnet.training.runs.folder import SUMMARY

SYSTEMS = {"flax_resnet": "flax_resnet.main", "torch": "benchmarks.accuracy.torch_run"}
DATA = {"data.source": "folder", "data.limit": 10_000}


class Row(NamedTuple):
    """A recipe that is trained with every seed.

    Attributes:
      label: name in the table, and name of its folder.
      config: configuration file, with its argument after a colon.
      overrides: {dotted key: value}, in addition to `DATA`.
      system: a key of `SYSTEMS`.
      classes: the classes to train and evaluate on; empty for all.
      images: number of training images per class, the first ones by file name; 0 for all.
      start: label of another row, whose network of the first seed is fine-tuned; "" to train from scratch.
      once: whether only the first seed is run.
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
    """Return a row of the recipe of He et al., with milestones as fractions of the run."""
    drops = {"schedule.unit": "fraction", "schedule.milestones": (0.5, 0.75)}
    return Row(network, f"configs/cifar_he2016.py:{network}", {**drops, **overrides})


def in_both(overrides: Mapping[str, Any]) -> list[Row]:
    """Return two rows with the recipe of airbench: one in flax_resnet, one in PyTorch."""
    return [Row(name, "configs/cifar_speedrun.py", overrides, system=name) for name in SYSTEMS]


EIGHT = {"train.epochs": 8}
# At the paper's learning rate of 0.1, resnet56 starts with a loss of 5 and needs hundreds of steps to recover: more
# than this experiment has.
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
    # The same recipe, initial weights and batches in both systems; flax_resnet also averages its weights.
    "resnet20": [
        he2016("resnet20", EIGHT | {"ema.decay": 0.99, "ema.bn_batches": 16}),
        he2016("resnet20", EIGHT)._replace(label="torch", system="torch"),
    ],
    # The papers' 64,000 steps on all images, for a GPU.
    "resnet20_full": [he2016("resnet20", {"data.limit": 0})],
    "resnet56_full": [he2016("resnet56", {"data.limit": 0})],
    # airbench94 reaches 94 % in ten epochs, on a GPU. speedrun is for two CPU cores: a smaller network, trained for
    # one epoch, without test-time augmentation.
    "airbench94": in_both({"data.limit": 0}),
    "speedrun": in_both(SPEEDRUN),
    # Five classes with 50 images each: fine-tuned from a network trained on the other five, and from scratch.
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
      folder: the run folder.
      overrides: the settings that its command changes, {dotted key: value}.
    """

    row: Row
    seed: int
    folder: pathlib.Path
    overrides: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """Return the arguments of the Python interpreter."""
        changed = [
            f"--config.{k}={v}".replace(" ", "")
            for k, v in self.overrides.items()
            if k != "data.path"
        ]
        path = f"--config.data.path={self.overrides['data.path']}"  # may contain spaces
        # One compilation cache per experiment: all seeds of a row share its programs.
        cache = f"--compilation_cache={self.folder.parents[1] / 'compiled'}"
        start = ["-m", SYSTEMS[self.row.system], "--config", self.row.config]
        return [*start, "--workdir", str(self.folder), cache, path, *changed]  # fmt: skip

    @property
    def shown(self) -> str:
        """Return the command as text for a shell."""
        return shlex.join(["python", *self.command])

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return (self.folder / SUMMARY).exists()
