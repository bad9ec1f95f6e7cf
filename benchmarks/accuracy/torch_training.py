"""Train a network in PyTorch, with the initial weights and the batches of this package."""

from typing import Any, cast

import jax
import numpy as np

from flax_resnet.augment import evaluation_images, evaluation_views, training_batch
from flax_resnet.config import Config
from flax_resnet.config.plan import Plan, planned_learning_rate, planned_optimizer
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.models import create_model
from flax_resnet.models.network import DataInitializedNetwork
from flax_resnet.optim.parameter_rules import Rules, factors
from flax_resnet.training import sharding
from flax_resnet.training.state import build_model, initial_state
from flax_resnet.training.step.train_step import AUGMENT_STREAM, stream_key
from flax_resnet.weights import to_torch

NETWORKS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "airbench94")


def network(config: Config, classes: int) -> Any:
    """Return the configured network with PyTorch's initialization."""
    from benchmarks.speed.torch_networks import Airbench, cifar_resnet

    if config.model.name == "airbench94":
        return Airbench(create_model("airbench94", **config.model.options()).widths, classes)
    layers = int(config.model.name.removeprefix("resnet"))
    return cifar_resnet(shortcut="pad", depth=(layers - 2) // 6, classes=classes)


class Training:
    """A PyTorch network with its optimizer, learning-rate schedule and training data.

    Args:
      config: the configuration.
      plan: the lengths of the run in steps, from `flax_resnet.config.plan.plan`.
      order: the sampler of the training examples.
      images: the training images, uint8 [n, S, S, 3], by ascending example index.
      labels: labels of the images, int32 [n].
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        order: EpochSampler,
        images: np.ndarray,
        labels: np.ndarray,
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
        self._mean = self._copied() if config.ema.decay else {}
        schedule = planned_learning_rate(config, plan)
        self.rate = lambda step: float(schedule(step))
        self._augmented = jax.jit(
            lambda key, images, labels: training_batch(
                key, images, labels, plan.num_classes, config.augment
            )
        )
        self._normalized = jax.jit(lambda images: evaluation_images(images, config.augment))

    def step(self, number: int) -> dict[str, float]:
        """Run one training step; return the loss and top1 of its batch, computed before the update.

        Args:
          number: number of the step, from 0.
        """
        from torch.nn import functional

        train = self._config.train
        indices = self._order.batch(np, number, train.batch_size)
        rows = np.searchsorted(self._order.used, indices)
        key = stream_key(train.seed, AUGMENT_STREAM, number)
        batch = self._augmented(key, self._images[rows], self._labels[rows])
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
        """Return the context of a forward pass: bfloat16 on a GPU, float32 elsewhere."""
        import torch

        on_gpu = self._device == "cuda"
        return torch.autocast(self._device, torch.bfloat16, enabled=on_gpu)

    def _average(self, step: int) -> None:
        """Update the averaged weights as `optim.ema.advance` does. `step` is 1 after the first update."""
        section, state = self._config.ema, self._net.state_dict()
        if section.lookahead and step % section.lookahead:
            return
        decay = section.decay
        if section.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        if section.decay_power:
            decay *= (step / self._plan.total_steps) ** section.decay_power
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
        """Return the loss, top1 and image count of a split; of averaged weights, also `ema_loss` and `ema_top1`.

        Args:
          images: uint8 [n, S, S, 3].
          labels: int32 [n].
        """
        metrics = {**self._evaluated(images, labels), "count": len(images)}
        if self._mean:
            own = self._copied()
            self._net.load_state_dict(
                self._mean, strict=False
            )  # the averages lack num_batches_tracked
            mean = self._evaluated(images, labels)
            self._net.load_state_dict(own, strict=False)
            metrics |= {f"ema_{key}": value for key, value in mean.items()}
        return metrics

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
    """Return the initial variables of this package.

    Args:
      config: the configuration.
      plan: the lengths of the run in steps, from `flax_resnet.config.plan.plan`.
      images: the images of the first batch, uint8 [N, S, S, 3].
    """
    model = build_model(config, plan.num_classes)
    optimizer = planned_optimizer(config, plan, model)
    state = initial_state(config, model, optimizer, sharding.make_mesh())
    batch_stats = state.batch_stats
    if model.initializes_from_data:
        net = cast(DataInitializedNetwork, model)
        seen = jax.jit(lambda x: net.data_statistics(evaluation_images(x, config.augment)))
        batch_stats = net.initialized(batch_stats, np.asarray(seen(images)))
    return {"params": state.params, "batch_stats": batch_stats}


def by_tensor(variables: dict[str, Any], rules: Rules) -> dict[str, float]:
    """Return {name of the PyTorch tensor: factor that the rules give it}."""
    by_parameter = factors(variables["params"], rules, "rules")
    filled = jax.tree.map(
        lambda leaf, number: np.full(leaf.shape, number), variables["params"], by_parameter
    )
    tensors = to_torch({**variables, "params": filled})
    return {name: float(tensor.flat[0]) for name, tensor in tensors.items() if tensor.size}


def _tensor(array: jax.Array, device: str) -> Any:
    import torch

    copied = np.array(array)  # torch may write to it; JAX's own memory is read-only
    return torch.from_numpy(copied).to(device)
