"""Draw a training batch: python -m flax_resnet preview --config configs/resnet18.py --output batch.png

Shows the first images of a step's batch and their labels, after decoding, cropping and augmentation as in training.
Needs matplotlib: pip install 'flax_resnet[plot]'.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from flax_resnet.cli import app, config_flag
from flax_resnet.cli.plots.text import drawing, plain
from flax_resnet.config import Config
from flax_resnet.errors import writing

SHOWN = (4, 8)  # rows and columns of images
LONGEST = 16  # characters of a drawn class name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet preview", __doc__, _define, _preview, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    config_flag.define(values, argv)
    app.define_common(values)
    flags.DEFINE_string("output", "batch.png", "picture to write", flag_values=values)
    flags.DEFINE_integer(
        "step", 0, "step of the batch", lower_bound=0, upper_bound=10**9, flag_values=values
    )


def _preview(values: flags.FlagValues) -> None:
    config = config_flag.frozen_config(values)
    output = app.picture(app.flag(values, "output"))
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    with writing(output):
        draw(config, output, step=app.flag(values, "step"))
    print(output)


def draw(config: Config, output: pathlib.Path, *, step: int = 0) -> None:
    """Draw the batch of a step into the picture `output`.

    Raises:
      UserError: the data are missing, or hold fewer images than a batch.
      OSError: the picture cannot be written.
    """
    import jax

    from flax_resnet.augment import training_batch
    from flax_resnet.config.plan import plan
    from flax_resnet.data.open import open_source
    from flax_resnet.training import sharding
    from flax_resnet.training.experiment import make_sampler
    from flax_resnet.training.input.feeds import StreamingFeed
    from flax_resnet.training.pretrained import adopted, open_pretrained
    from flax_resnet.training.step.train_step import AUGMENT_STREAM, stream_key

    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps_per_call=1))
    if config.model.pretrained:
        config = adopted(config, open_pretrained(config).about)
    source = open_source(config.data, train=True)
    sampler = make_sampler(source, config)
    names = source.class_names
    made = plan(config, num_train=sampler.epoch_size, num_eval=1, num_classes=len(names))
    feed = StreamingFeed(source, sampler, config, sharding.make_mesh(), sizes=made.sizes)
    (batch,) = feed.training(step, step + 1)
    key = stream_key(config.train.seed, AUGMENT_STREAM, step)
    augment = jax.jit(
        lambda key, images, labels: training_batch(key, images, labels, len(names), config.augment)
    )
    images, labels = map(np.asarray, augment(key, batch["image"], batch["label"]))
    pixels = images * np.array(config.augment.std) + np.array(config.augment.mean)
    with drawing(names):
        _draw_images(output, pixels, [described(label, names) for label in labels], step)


def _draw_images(
    output: pathlib.Path, pixels: np.ndarray, titles: Sequence[str], step: int
) -> None:
    """Draw the first images, float [N, S, S, C], with their titles into the picture `output`."""
    from matplotlib.figure import Figure

    rows, columns = SHOWN
    figure = Figure(figsize=(1.6 * columns, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, title in zip(grid, pixels, titles, strict=False):
        axes.imshow(np.clip(image, 0, 1), interpolation="nearest", cmap="gray")
        axes.set_title(title, fontsize=8)
    size = pixels.shape[1]
    figure.suptitle(f"step {step}: {len(pixels)} images of {size}x{size}, as the network sees them")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def described(label: np.ndarray, names: Sequence[str]) -> str:
    """Format the two largest classes of a soft label [K] for a picture, the largest first."""
    parts = [i for i in np.argsort(-label, kind="stable")[:2] if label[i] >= 0.005]
    if len(parts) == 1:
        return plain(names[parts[0]], LONGEST)
    return "\n".join(f"{plain(names[i], LONGEST)} {label[i]:.0%}" for i in parts)


if __name__ == "__main__":
    sys.exit(main())
