"""A run of `flax_resnet.main` in PyTorch: same recipe, same initial weights, same batches.

python -m benchmarks.accuracy_torch --config configs/cifar_he2016.py:resnet20 --workdir /tmp/torch \\
    --config.data.source=folder --config.data.path=/path/to/cifar10

The network (`torch_networks.py`), its gradient, batch normalisation and SGD are PyTorch's. Weights to begin with,
order, augmentation and learning rates are made by this package: its own arrays are what PyTorch is given. Images
are decoded by Pillow, as TensorFlow and PyTorch do not bear one another in a process; of JPEGs of the network's
size both give the same pixels. On a GPU PyTorch computes in bfloat16 (autocast), as this package does there. A run
leaves metrics.jsonl, config.json and summary.txt, and no checkpoints: one that was stopped begins anew. Needs
`pip install '.[parity]'`.
"""

import io
import json
import logging
import math
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageOps

from benchmarks.arguments import absent
from flax_resnet import command
from flax_resnet.augment import evaluation_images, evaluation_views, training_batch
from flax_resnet.config import Config, flatten, settings
from flax_resnet.data.order import Order
from flax_resnet.data.records import Source
from flax_resnet.data.source import open_source
from flax_resnet.errors import ConfigError, DataError, DivergedError, one_line
from flax_resnet.models import create_model
from flax_resnet.plan import Plan
from flax_resnet.plan import plan as make_plan
from flax_resnet.preprocessing import prepare
from flax_resnet.training import workdir
from flax_resnet.training.loop import make_order
from flax_resnet.training.optimizer import Rules, factors, make_optimizer
from flax_resnet.training.schedule import learning_rate
from flax_resnet.training.state import build_model, make_state
from flax_resnet.training.step import AUGMENT_STREAM, stream_key
from flax_resnet.training.whitening import covariance, filters, whitened, whitens
from flax_resnet.weights import to_torch

log = logging.getLogger("flax_resnet")

# What is followed; any other setting that changes the result must stand at what PyTorch's side does.
FOLLOWED = re.compile(
    r"(data|augment|schedule)\..*|model\.(name|widths)|train\.(batch_size|epochs|seed)"
    r"|optimizer\.(learning_rate|momentum|nesterov|weight_decay|learning_rate_rules|weight_decay_rules)"
    r"|average\.(decay|warmup|rise|lookahead)|loss\.label_smoothing"
)
FIXED = {"data.train_crop": "resize", "data.eval_crop": "resize"}
RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` without the program's name."""
    return command.run("benchmarks.accuracy_torch", __doc__, _define, _train, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    command.define_config(values, argv)
    command.define_common(values)
    flags.DEFINE_string("workdir", "", "folder of the run; made where absent", flag_values=values)


def _train(values: flags.FlagValues) -> None:
    config = command.frozen_config(values)
    if not values["workdir"].value:
        raise ConfigError("--workdir is needed: the folder that the run is written to")
    if missing := absent("torch", "timm"):
        raise ConfigError(f"{' and '.join(missing)} not installed: pip install '.[parity]'")
    command.set_up_jax(values["compilation_cache"].value)
    train(config, pathlib.Path(values["workdir"].value).expanduser().resolve())


def check(config: Config) -> None:
    """Raises ConfigError where PyTorch's side lacks the network, or does not follow one of the settings."""
    if config.data.source not in ("folder", "csv"):
        raise ConfigError(f"data.source={config.data.source!r}: must be 'folder' or 'csv' here")
    values, usual, fields = flatten(config), flatten(Config()), settings()
    for key, value in values.items():
        wanted = FIXED.get(key, usual[key])
        free = FOLLOWED.fullmatch(key) and key not in FIXED
        if fields[key].metadata["changes_result"] and not free and value != wanted:
            raise ConfigError(
                f"{key}={value!r}: PyTorch's side does not follow it; allowed: {wanted!r}"
            )
    name, widths = config.model.name, config.model.widths
    if name not in (*RESNETS, "airbench94"):
        raise ConfigError(
            f"model.name={name!r}: PyTorch's side has {', '.join(RESNETS)}, airbench94"
        )
    if widths and name != "airbench94":
        raise ConfigError(f"model.widths={widths!r}: PyTorch's side has {name} as it is")


def network(config: Config, classes: int) -> Any:
    """Returns the configured network, of PyTorch's own weights."""
    from benchmarks.torch_networks import Airbench, cifar_resnet

    if config.model.name == "airbench94":
        return Airbench(create_model("airbench94", **config.model.options()).widths, classes)
    layers = int(config.model.name.removeprefix("resnet"))
    return cifar_resnet(shortcut="pad", depth=(layers - 2) // 6, classes=classes)


def train(config: Config, folder: pathlib.Path) -> None:
    """Trains from the beginning to the end, or says that the run is finished.

    Raises:
      UserError: as `training.loop.train`, and where a setting is not followed.
    """
    check(config)
    began = time.perf_counter()
    sources = [open_source(config.data, train=train) for train in (True, False)]
    order = make_order(sources[0], config)
    plan = make_plan(
        config,
        num_train=order.epoch_size,
        num_eval=len(sources[1]),
        num_classes=len(sources[0].class_names),
    )
    workdir.claim(folder, config, resume="auto")
    if (folder / workdir.SUMMARY).exists():
        log.info("%s is finished", folder)
        return
    images, labels = pixels(sources[0], order.used, config)
    test = pixels(sources[1], np.arange(len(sources[1])), config)
    training = Training(config, plan, order, images, labels)
    split, window, since = config.data.eval_split, [], time.perf_counter()
    with (folder / workdir.METRICS).open("w", buffering=1) as file:

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
                raise DivergedError(f"the loss is {window[-1]['loss']} at step {step}")
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
    (folder / workdir.SUMMARY).write_text(summary)
    log.info("%s", summary.rstrip())


def pixels(source: Source, indices: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Decodes examples with Pillow.

    Returns:
      Images, uint8 [n, image_size, image_size, 3], and labels, int32 [n].

    Raises:
      DataError: one cannot be decoded.
    """
    records = source.read(indices)
    images = []
    for index, encoded in zip(indices, records.images, strict=True):
        try:
            with Image.open(io.BytesIO(encoded)) as opened:
                upright = ImageOps.exif_transpose(opened) if source.orientations else opened
                images.append(prepare(upright, config.data)[0])
        except (OSError, ValueError) as error:
            raise DataError(f"cannot decode {source.describe(index)}: {one_line(error)}") from error
    return np.stack(images), records.labels


class Training:
    """A network in training, in PyTorch.

    Args:
      config: the configuration.
      plan: what it means for the data.
      order: of the training examples.
      images: uint8 [n, S, S, 3], of the examples used, ascending by their index.
      labels: int32 [n], theirs.
    """

    def __init__(
        self, config: Config, plan: Plan, order: Order, images: np.ndarray, labels: np.ndarray
    ):
        import torch

        self._config, self._plan, self._order = config, plan, order
        self._images, self._labels = images, labels
        first = order.batch(np, 0, config.train.batch_size)
        variables = initial_variables(config, plan, images[np.searchsorted(order.used, first)])
        net = network(config, plan.num_classes)
        tensors = {k: torch.from_numpy(v) for k, v in to_torch(variables).items()}
        net.load_state_dict(tensors, strict=True)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._net = net.to(self._device, memory_format=torch.channels_last)
        section = config.optimizer
        rules = (section.learning_rate_rules, section.weight_decay_rules)
        rates, decays = (by_tensor(variables, some) for some in rules)
        groups = [
            {
                "params": [parameter],
                "factor": rates[name],
                "weight_decay": section.weight_decay * decays[name],
            }
            for name, parameter in self._net.named_parameters()
            if parameter.requires_grad
        ]
        self._optimizer = torch.optim.SGD(
            groups,
            section.learning_rate,
            momentum=section.momentum,
            nesterov=section.nesterov,
        )
        self._mean = self._copied() if config.average.decay else None
        schedule = learning_rate(config, plan)
        self.rate = lambda step: float(schedule(step))
        self._augmented = jax.jit(
            lambda step, images, labels: training_batch(
                stream_key(config.train.seed, AUGMENT_STREAM, step),
                images,
                labels,
                plan.num_classes,
                config.augment,
            )
        )
        self._normalized = jax.jit(lambda images: evaluation_images(images, config.augment))

    def step(self, number: int) -> dict[str, float]:
        """Makes an update; returns loss and top1 of its batch before it.

        Args:
          number: of the step, from 0.
        """
        from torch.nn import functional

        indices = self._order.batch(np, number, self._config.train.batch_size)
        places = np.searchsorted(self._order.used, indices)
        batch = self._augmented(number, self._images[places], self._labels[places])
        images, targets = (_tensor(array, self._device) for array in batch)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(number) * group["factor"]
        with self._computing():
            logits = self._net.train()(images.permute(0, 3, 1, 2)).float()
        smoothing = self._config.loss.label_smoothing
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        if self._mean:
            self._average(number + 1)
        right = logits.argmax(1) == targets.argmax(1)
        return {"loss": float(loss.detach()), "top1": float(right.float().mean())}

    def _computing(self) -> Any:
        """Returns the context of the network's call: bfloat16 on a GPU, float32 elsewhere."""
        import torch

        on_gpu = self._device == "cuda"
        return torch.autocast(self._device, torch.bfloat16, enabled=on_gpu)

    def _average(self, step: int) -> None:
        """Moves the mean of the weights, as `training.average.advance` does; step 1 is after the first update."""
        section, state = self._config.average, self._net.state_dict()
        if section.lookahead and step % section.lookahead:
            return
        decay = section.decay
        if section.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        if section.rise:
            decay *= (step / self._plan.total_steps) ** section.rise
        for name, mean in self._mean.items():
            mean.lerp_(state[name], 1 - decay)
            if section.lookahead:
                state[name].copy_(mean)

    def _copied(self) -> dict[str, Any]:
        state = self._net.state_dict()
        return {
            name: tensor.clone() for name, tensor in state.items() if tensor.is_floating_point()
        }

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns the mean loss and top1 over a split, those of the averaged weights, and count.

        Args:
          images: uint8 [n, S, S, 3].
          labels: int32 [n].
        """
        found = {**self._evaluated(images, labels), "count": len(images)}
        if self._mean:
            own = self._copied()
            self._net.load_state_dict(self._mean, strict=False)  # which has no counters
            mean = self._evaluated(images, labels)
            self._net.load_state_dict(own, strict=False)
            found |= {f"average_{key}": value for key, value in mean.items()}
        return found

    def _evaluated(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        import torch

        self._net.eval()
        loss = right = 0.0
        size = self._plan.eval_batch_size
        with torch.inference_mode(), self._computing():
            for first in range(0, len(images), size):
                pixels = self._normalized(images[first : first + size])
                logits = sum(
                    share * self._net(_tensor(view, self._device).permute(0, 3, 1, 2)).float()
                    for share, view in evaluation_views(pixels, self._config.augment)
                )
                targets = torch.from_numpy(labels[first : first + size]).long().to(self._device)
                loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
                right += float((logits.argmax(1) == targets).sum())
        return {"loss": loss / len(images), "top1": right / len(images)}


def initial_variables(config: Config, plan: Plan, images: np.ndarray) -> dict[str, Any]:
    """Returns the variables that this package begins with.

    Args:
      config: the configuration.
      plan: what it means for the data.
      images: uint8 [N, S, S, 3], of the first batch.
    """
    model = build_model(config, plan.num_classes)
    optimizer = make_optimizer(config, plan)
    state = jax.jit(lambda: make_state(config, model, optimizer))()
    if whitens(model):
        moments = jax.jit(lambda pixels: covariance(evaluation_images(pixels, config.augment)))
        state = whitened(state, filters(np.asarray(moments(images))))
    return {"params": state.params, "batch_stats": state.batch_stats}


def by_tensor(variables: dict[str, Any], rules: Rules) -> dict[str, float]:
    """Returns the factor that rules have for each tensor, by PyTorch's name."""
    found = factors(variables["params"], rules, "rules")
    filled = jax.tree.map(
        lambda leaf, number: np.full(leaf.shape, number), variables["params"], found
    )
    tensors = to_torch({**variables, "params": filled})
    return {name: float(tensor.flat[0]) for name, tensor in tensors.items() if tensor.size}


def _tensor(array: jax.Array, device: str) -> Any:
    import torch

    copied = np.array(array)  # JAX's own memory is not to be written to
    return torch.from_numpy(copied).to(device)


if __name__ == "__main__":
    sys.exit(main())
