"""Comparisons of training: every gradient, and the losses and statistics of ten steps of SGD."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from golden.pairs import (
    FLOAT64_BOUND,
    Pair,
    abstract,
    as_arrays,
    distance,
    gradient_errors,
    our_gradients,
    our_loss,
    relative,
)
from parity_networks import exact, loaded, to_channels_first, torch_shapes
from parity_outputs import Row
from torch import nn
from weights_by_name import images_of, last_of_branch, tensors_of

from flax_resnet import create_model
from flax_resnet.models.baselines import BASELINES
from flax_resnet.weights import from_torch, to_torch

LOSS_BOUND = 1e-5  # of the first loss in float32, relative
STEPS, LEARNING_RATE, LAST_SCALE = 10, 0.01, 0.1


class Training(NamedTuple):
    """Both sides ready to train, dropout off.

    Attributes:
      net: torch's.
      pair: what is compared, our dropout off.
      variables: ours, NumPy.
      images: float64 [4 STEPS, H, W, C], four for each step.
      labels: int64 [4 STEPS].
    """

    net: nn.Module
    pair: Pair
    variables: Any
    images: np.ndarray
    labels: np.ndarray


def _training(pair: Pair, change: Callable[[dict], None] = lambda tensors: None) -> Training:
    if pair.ours in BASELINES:
        pair = pair._replace(torch_options={**pair.torch_options, "dropout": 0.0}, size=96)
        pair = pair._replace(options={**pair.options, "dropout": 0.0})
    tensors = tensors_of(torch_shapes(pair))
    change(tensors)
    variables = from_torch(tensors, abstract(pair))
    net = loaded(pair, tensors).train()
    images = images_of(4 * STEPS, pair.size, pair.channels)
    classes = create_model(pair.ours, **pair.options).num_classes
    labels = np.random.RandomState(0).randint(0, classes, 4 * STEPS)
    return Training(net, pair, variables, images, labels)


def _first_losses(training: Training) -> tuple[float, float]:
    """Returns torch's and our first loss in float32; leaves the torch side as it was."""
    net, pair, variables, images, labels = training
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        logits = net(to_channels_first(images[:4], torch.float32))
        theirs = nn.functional.cross_entropy(logits, torch.from_numpy(labels[:4])).item()
    net.load_state_dict(state)
    model = create_model(pair.ours, **pair.options)
    arrays = as_arrays(variables, "float32")
    loss, _ = jax.jit(partial(our_loss, model))(
        arrays["params"],
        arrays.get("batch_stats", {}),
        jnp.asarray(images[:4], jnp.float32),
        labels[:4],
    )
    return theirs, float(loss)


def compare_gradients(pair: Pair) -> Row:
    """Compares the gradient of every parameter in float64, and the loss in float32."""
    training = _training(pair)
    theirs32, ours32 = _first_losses(training)
    net, pair, variables, images, labels = training
    with exact():
        logits = net.double()(to_channels_first(images[:4], torch.float64))
    theirs64 = nn.functional.cross_entropy(logits, torch.from_numpy(labels[:4]))
    theirs64.backward()
    theirs64 = theirs64.item()
    reference = {name: value.grad.numpy() for name, value in net.named_parameters()}
    ours64, gradients = our_gradients(pair, variables, images[:4], labels[:4])
    errors = gradient_errors(gradients, reference)
    worst = max(errors, key=errors.get)
    figures = {
        "worst gradient": errors[worst],
        "of": worst,
        "tensors": len(errors),
        "loss float64": relative(ours64, theirs64),
        "loss float32": relative(ours32, theirs32),
        "our own": relative(ours32, ours64),
        "torch's own": relative(theirs32, theirs64),
    }
    far = [name for name, error in errors.items() if not error <= FLOAT64_BOUND]
    failure = f"gradients differ: {', '.join(far[-5:])} ({len(far)})" if far else ""
    if not figures["loss float32"] <= LOSS_BOUND:
        failure += f" first loss in float32: {ours32}, torch's {theirs32}"
    return Row("", figures, failure.strip())


def compare_trajectory(pair: Pair) -> Row:
    """Compares losses and running statistics over ten steps of plain SGD in float64."""
    training = _training(pair, _calm)
    theirs32, ours32 = _first_losses(training)
    net, pair, variables, images, labels = training
    net.double()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    losses, statistics = [], []
    with jax.enable_x64(True):
        model = create_model(pair.ours, dtype="float64", **pair.options)

        @jax.jit
        def step(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
            gradient = jax.value_and_grad(partial(our_loss, model), has_aux=True)
            (loss, stats), gradients = gradient(params, stats, images, labels)
            return (
                jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients),
                stats,
                loss,
            )

        arrays = as_arrays(variables, "float64")
        params, stats = arrays["params"], arrays["batch_stats"]
        for start in range(0, len(images), 4):
            x, y = images[start : start + 4], labels[start : start + 4]
            optimizer.zero_grad()
            with exact():
                logits = net(to_channels_first(x, torch.float64))
            theirs = nn.functional.cross_entropy(logits, torch.from_numpy(y))
            theirs.backward()
            optimizer.step()
            params, stats, ours = step(params, stats, jnp.asarray(x), jnp.asarray(y))
            losses.append((float(ours), theirs.item()))
            state = {name: value.numpy() for name, value in net.state_dict().items()}
            for name, value in to_torch({"batch_stats": stats}).items():
                if not name.endswith("num_batches_tracked"):
                    statistics.append(distance(value, state[name]))
    figures = {
        "losses": float(np.max([relative(*pair) for pair in losses])),
        "running statistics": float(np.max(statistics)),
        "first loss": f"{losses[0][1]:.6f}",
        "last loss": f"{losses[-1][1]:.6f}",
        "first loss float32": relative(ours32, theirs32),
        "our own": relative(ours32, losses[0][0]),
        "torch's own": relative(theirs32, losses[0][1]),
    }
    bounds = {
        "losses": FLOAT64_BOUND,
        "running statistics": FLOAT64_BOUND,
        "first loss float32": LOSS_BOUND,
    }
    far = [name for name, bound in bounds.items() if not figures[name] <= bound]
    return Row("", figures, f"{', '.join(far)} differ" if far else "")


def _calm(tensors: dict[str, np.ndarray]) -> None:
    """Lets the residual branches start small, without which ten steps diverge by themselves."""
    for name in tensors:
        if last_of_branch("bn|norm", name.removesuffix(".weight"), tensors):
            tensors[name][:] = LAST_SCALE
