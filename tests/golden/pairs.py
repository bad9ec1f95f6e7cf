"""Pairs of a PyTorch network and our network, and the outputs and gradients of ours; needs no torch."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet import create_model
from flax_resnet.weights import to_torch

FLOAT32_BOUND = 1e-4  # max|difference| / max|reference|
FLOAT64_BOUND = 1e-6
# A network with more parameters is not compiled as a whole. XLA would standardise the kernels of all layers before
# it uses the first one: BiT-152x4 would take 20 GB in float64 instead of 15 GB.
LARGE = 300e6
SMALL_GRADIENT = 1e-3  # as a share of the largest gradient; the smallest divisor of an error in `gradient_errors`


class Pair(NamedTuple):
    """A PyTorch network, and the same network in this package.

    Attributes:
      torch: name in timm; ``torchvision/NAME``; or a key of parity_networks.BUILDERS.
      torch_options: keyword arguments of the PyTorch network.
      ours: name of our network.
      options: keyword arguments of `create_model`.
      size: height and width of the images, in pixels.
      channels: channels of the images.
    """

    torch: str
    torch_options: dict[str, Any]
    ours: str
    options: dict[str, Any]
    size: int = 96
    channels: int = 3


def abstract(pair: Pair) -> Any:
    """Return the shapes of our variables, float32."""
    images = jax.ShapeDtypeStruct((1, pair.size, pair.size, pair.channels), jnp.float32)
    model = create_model(pair.ours, **pair.options)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def torch_shapes_of(variables: Any) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of our variables in the torch layout; `variables` are arrays or shapes."""
    nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
    return {name: array.shape for name, array in to_torch(nothing).items()}


def as_arrays(variables: Any, dtype: str) -> Any:
    """Return the variables as JAX arrays of `dtype` (float64 needs x64)."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)


def our_outputs(
    pair: Pair, variables: Any, images: np.ndarray, dtype: str, **call: Any
) -> np.ndarray:
    """Return the outputs of our network for images [N, H, W, C], computed in `dtype`."""
    with jax.enable_x64(dtype == "float64"):
        model = create_model(pair.ours, dtype=dtype, **pair.options)
        apply = partial(model.apply, **call)
        if sum(leaf.size for leaf in jax.tree.leaves(variables)) < LARGE:
            apply = jax.jit(apply)
        return jax.tree.map(
            np.asarray, apply(as_arrays(variables, dtype), jnp.asarray(images, dtype))
        )


def our_loss(model: Any, params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Return the mean cross-entropy in training mode, and the new running statistics."""
    variables = {"params": params, "batch_stats": stats}
    logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    scores = jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
    return -scores.mean(), updated.get("batch_stats", {})


def our_gradients(
    pair: Pair, variables: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Return our loss in training mode, and {torch name: gradient}, in float64."""
    with jax.enable_x64(True):
        model = create_model(pair.ours, dtype="float64", **pair.options)
        arrays = as_arrays(variables, "float64")
        (loss, _), gradients = jax.jit(jax.value_and_grad(partial(our_loss, model), has_aux=True))(
            arrays["params"], arrays.get("batch_stats", {}), jnp.asarray(images), labels
        )
        return float(loss), to_torch({"params": gradients})


def distance(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return max|difference| / max|reference|; infinity if the shapes differ."""
    if ours.shape != reference.shape:
        return np.inf
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def relative(value: float, reference: float) -> float:
    """Return |value - reference| / |reference|."""
    return abs(value - reference) / abs(reference)


def gradient_errors(
    ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return {name: max|difference| / max(max|g|, 1e-3 G)} for each gradient g of the reference.

    G is the largest absolute value in all gradients of the reference.

    Raises:
      ValueError: the names of the gradients differ.
    """
    if ours.keys() != reference.keys():
        raise ValueError(
            f"these gradients have no counterpart: {sorted(ours.keys() ^ reference.keys())}"
        )
    sizes = {name: np.abs(value).max() for name, value in reference.items()}
    floor = SMALL_GRADIENT * max(sizes.values())
    return {
        name: float(np.abs(ours[name] - value).max() / max(sizes[name], floor))
        for name, value in reference.items()
    }
