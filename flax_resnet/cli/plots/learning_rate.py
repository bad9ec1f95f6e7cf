"""Draw what a configuration changes over a run: the learning rate, unfreezing and image sizes."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from flax_resnet.cli.plots.text import drawing, plain
from flax_resnet.config import Config
from flax_resnet.errors import writing

if TYPE_CHECKING:
    from flax_resnet.config.plan import Plan

POINTS = 2000  # largest number of steps to draw


def draw(config: Config, output: pathlib.Path, *, num_train: int = 0) -> None:
    """Draw the learning rate over the epochs into the picture `output`.

    Args:
      config: the configuration.
      output: the picture.
      num_train: number of training images; 0 to read it from the dataset.

    Raises:
      UserError: the dataset is missing, the plan is invalid, or the picture cannot be written.
    """
    from flax_resnet.config.plan import plan
    from flax_resnet.data.open import open_source
    from flax_resnet.training.experiment import make_sampler

    if not num_train:
        num_train = make_sampler(open_source(config.data, train=True), config).epoch_size
    classes = config.model.num_classes or len(config.loss.weight_per_class or (0,))
    made = plan(config, num_train=num_train, num_eval=1, num_classes=classes)
    patterns = [pattern for pattern, _ in config.optimizer.unfreeze_at]
    with drawing(patterns), writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        _draw(config, made, output)


def _draw(config: Config, made: "Plan", output: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    from flax_resnet.config.plan import planned_learning_rate
    from flax_resnet.training.plan_text import schedule_terms

    steps = np.unique(np.linspace(0, made.total_steps - 1, POINTS).astype(int))
    rate = planned_learning_rate(config, made)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps / made.steps_per_epoch, [float(rate(int(step))) for step in steps])
    changes = [
        (f"{plain(pattern) or 'all'} unfrozen", start * made.unit)
        for pattern, start in config.optimizer.unfreeze_at
    ]
    changes += [(f"{size} px", start) for start, size in made.sizes if len(made.sizes) > 1]
    for text, start in changes:
        epoch = start / made.steps_per_epoch
        axes.axvline(epoch, color="gray", linestyle=":", linewidth=1)
        axes.annotate(
            text,
            (epoch, made.peak_learning_rate / 2),
            (3, 0),
            textcoords="offset points",
            rotation=90,
        )
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes.set_title("\n".join([
        f"{made.total_steps:,} steps of {config.train.batch_size} images, {config.optimizer.name}",
        ", ".join(schedule_terms(config, made)),
    ]), fontsize=10)  # fmt: skip
    axes.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
