"""Train in PyTorch with the recipe, the initial weights and the batches of `flax_resnet.main`.

python -m benchmarks.accuracy.torch_run --config configs/cifar_he2016.py:resnet20 --workdir /tmp/torch \\
    --config.data.source=folder --config.data.path=/path/to/cifar10

The network (`torch_networks.py`), its gradient, batch normalisation and SGD are PyTorch's. This package makes the
initial weights, the order of the examples, the augmentation and the learning rates, and passes them to PyTorch as
arrays. Pillow decodes the images, because TensorFlow and PyTorch do not work in one process; for JPEGs of the
network's size, Pillow and TensorFlow give the same pixels. On a GPU, both systems compute in bfloat16 (PyTorch by
autocast). A run leaves metrics.jsonl, config.json and summary.txt, but no checkpoints: a stopped run starts from
the beginning. Needs `pip install '.[parity]'`.
"""

import json
import logging
import math
import pathlib
import re
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from benchmarks.accuracy.torch_training import NETWORKS, Training
from benchmarks.arguments import absent
from flax_resnet.cli import app, config_flag
from flax_resnet.config import Config, flatten, settings
from flax_resnet.config.plan import plan as make_plan
from flax_resnet.data.images import prepare_image
from flax_resnet.data.open import open_source
from flax_resnet.data.records import Source
from flax_resnet.errors import ConfigError, DivergedError
from flax_resnet.settings import UNSET
from flax_resnet.training.experiment import make_sampler
from flax_resnet.training.runs.folder import METRICS, SUMMARY, RunFolder

log = logging.getLogger("flax_resnet")

# Settings that may have any value, except those in `FIXED`, which must have the value given there. Any other
# setting that changes the result must have its default.
FOLLOWED = re.compile(
    r"(data|augment|schedule)\..*|model\.(name|widths)|train\.(batch_size|epochs|seed)"
    r"|optimizer\.(learning_rate|momentum|nesterov|weight_decay|learning_rate_rules|weight_decay_rules)"
    r"|ema\.(decay|warmup|decay_power|lookahead)|loss\.label_smoothing"
)
FIXED = {"data.train_crop": "resize", "data.eval_crop": "resize"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` excludes the program's name."""
    return app.run("benchmarks.accuracy.torch_run", __doc__, _define, _train, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    config_flag.define(values, argv)
    app.define_common(values)
    flags.DEFINE_string(
        "workdir", "", "run folder; created if it does not exist", flag_values=values
    )


def _train(values: flags.FlagValues) -> None:
    config = config_flag.frozen_config(values)
    if not app.flag(values, "workdir"):
        raise app.needed("--workdir", "the folder that the run is written to")
    if missing := absent("torch", "timm"):
        raise ConfigError(
            "not installed", key=" and ".join(missing), cure="pip install '.[parity]'"
        )
    app.set_up_jax(app.flag(values, "compilation_cache"))
    train(config, pathlib.Path(app.flag(values, "workdir")).expanduser().resolve())


def check(config: Config) -> None:
    """Raise ConfigError if the run in PyTorch does not support the network or one of the settings."""
    if config.data.source not in ("folder", "csv"):
        raise ConfigError(
            "is not supported in PyTorch",
            key="data.source",
            value=config.data.source,
            allowed="'folder' or 'csv'",
        )
    values, usual, fields = flatten(config), flatten(Config()), settings()
    for key, value in values.items():
        if value is UNSET:
            continue
        wanted = FIXED.get(key, fields[key].metadata.get("default", usual[key]))
        free = FOLLOWED.fullmatch(key) and key not in FIXED
        if fields[key].metadata["changes_result"] and not free and value != wanted:
            allowed = "unset" if wanted is UNSET else repr(wanted)
            raise ConfigError("is not supported in PyTorch", key=key, value=value, allowed=allowed)
    name, widths = config.model.name, config.model.widths
    if name not in NETWORKS:
        raise ConfigError(
            "is not supported in PyTorch", key="model.name", value=name, allowed=NETWORKS
        )
    if widths and name != "airbench94":
        raise ConfigError(
            f"cannot be changed for {name} in PyTorch",
            key="model.widths",
            value=widths,
            allowed="unset",
        )


def train(config: Config, folder: pathlib.Path) -> None:
    """Train from the beginning to the end, unless the run is finished.

    Raises:
      UserError: as in `training.train.train`; or PyTorch does not support a setting.
    """
    check(config)
    began = time.perf_counter()
    sources = [open_source(config.data, train=train) for train in (True, False)]
    order = make_sampler(sources[0], config)
    plan = make_plan(
        config,
        num_train=order.epoch_size,
        num_eval=len(sources[1]),
        num_classes=len(sources[0].class_names),
    )
    RunFolder.at(folder).claim(config, resume="auto")
    if (folder / SUMMARY).exists():
        log.info("%s is finished", folder)
        return
    images, labels = pixels(sources[0], order.used, config)
    test = pixels(sources[1], np.arange(len(sources[1])), config)
    training = Training(config, plan, order, images, labels)
    split, window, since = config.data.eval_split, [], time.perf_counter()
    with (folder / METRICS).open("w", buffering=1) as file:

        def record(step: int, split: str, values: dict[str, float]) -> None:
            place = {"step": step, "epoch": round(step / plan.steps_per_epoch, 4), "split": split}
            file.write(json.dumps(place | values) + "\n")
            loss, top1 = values["loss"], values["top1"]
            log.info(
                "step %d of %d, %s: loss %.4f, top-1 %.2f %%",
                step,
                plan.total_steps,
                split,
                loss,
                100 * top1,
            )

        for number in range(plan.total_steps):
            window.append(training.step(number))
            step, last = number + 1, number + 1 == plan.total_steps
            if not math.isfinite(window[-1]["loss"]):
                raise DivergedError(
                    f"not finite at step {step}", key="loss", value=window[-1]["loss"]
                )
            if step % config.train.log_every == 0 or last:
                now = time.perf_counter()
                values = {key: sum(one[key] for one in window) / len(window) for key in window[0]}
                values["images_per_second"] = len(window) * config.train.batch_size / (now - since)
                values["learning_rate"] = training.rate(number)
                record(step, "train", values)
                window, since = [], now
            if step % plan.eval_every == 0 or last:
                paused = time.perf_counter()
                final = training.evaluate(*test)
                record(step, split, final)
                since += time.perf_counter() - paused
    summary = (
        f"final top-1 {final['top1']:.2%} on {split} ({plan.num_eval} images) after {config.train.epochs} epochs\n"
        f"time {time.perf_counter() - began:.0f} s\n"
    )
    (folder / SUMMARY).write_text(summary)
    log.info("%s", summary.rstrip())


def pixels(source: Source, indices: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Decode examples with Pillow.

    Returns:
      Images, uint8 [n, image_size, image_size, 3], and labels, int32 [n].

    Raises:
      DataError: an image cannot be decoded.
    """
    records = source.read(indices)
    data = config.data.but(exif=source.orientations)
    images = [
        prepare_image(encoded, data, name=source.describe(index))
        for index, encoded in zip(indices, records.images, strict=True)
    ]
    return np.stack(images), records.labels


if __name__ == "__main__":
    sys.exit(main())
