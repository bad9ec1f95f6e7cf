"""A network on both sides, and what ours makes of it; needs no torch."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet import create_model
from flax_resnet.weights import to_torch

FLOAT32_BOUND = 1e-4  # max|difference| / max|reference|
FLOAT64_BOUND = 1e-6
# Parameters beyond which a network is not compiled as a whole: XLA standardises the kernels of all layers before
# it uses the first, and BiT-152x4 would take 20 GB in float64 instead of 15.
LARGE = 300e6
SMALL_GRADIENT = 1e-3  # of the largest of all: below it a gradient is measured against that


class Pair(NamedTuple):
    """One network on both sides.

    Attributes:
      torch: name in timm; ``torchvision/NAME``; or a key of parity_networks.BUILDERS.
      torch_options: keyword arguments there.
      ours: name here.
      options: keyword arguments of `create_model` here.
      size: height and width of the images, in pixels.
      channels: of the images.
    """

    torch: str
    torch_options: dict[str, Any]
    ours: str
    options: dict[str, Any]
    size: int = 96
    channels: int = 3


def abstract(pair: Pair) -> Any:
    """Returns the shapes of our variables, float32."""
    images = jax.ShapeDtypeStruct((1, pair.size, pair.size, pair.channels), jnp.float32)
    model = create_model(pair.ours, **pair.options)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def torch_shapes_of(variables: Any) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes that our variables, or their shapes, have in the torch layout."""
    nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
    return {name: array.shape for name, array in to_torch(nothing).items()}


def as_arrays(variables: Any, dtype: str) -> Any:
    """Returns the variables as JAX arrays of `dtype` (float64 needs x64)."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)


def our_outputs(
    pair: Pair, variables: Any, images: np.ndarray, dtype: str, **call: Any
) -> np.ndarray:
    """Returns what our network makes of [N, H, W, C], computing in `dtype`."""
    with jax.enable_x64(dtype == "float64"):
        model = create_model(pair.ours, dtype=dtype, **pair.options)
        apply = partial(model.apply, **call)
        if sum(leaf.size for leaf in jax.tree.leaves(variables)) < LARGE:
            apply = jax.jit(apply)
        return jax.tree.map(
            np.asarray, apply(as_arrays(variables, dtype), jnp.asarray(images, dtype))
        )


def our_loss(model: Any, params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Returns the mean cross-entropy in training mode, and the new running statistics."""
    variables = {"params": params, "batch_stats": stats}
    logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    scores = jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
    return -scores.mean(), updated.get("batch_stats", {})


def our_gradients(
    pair: Pair, variables: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Returns our loss in training mode and every gradient by its torch name, in float64."""
    with jax.enable_x64(True):
        model = create_model(pair.ours, dtype="float64", **pair.options)
        arrays = as_arrays(variables, "float64")
        (loss, _), gradients = jax.jit(jax.value_and_grad(partial(our_loss, model), has_aux=True))(
            arrays["params"], arrays.get("batch_stats", {}), jnp.asarray(images), labels
        )
        return float(loss), to_torch({"params": gradients})


def distance(ours: np.ndarray, reference: np.ndarray) -> float:
    """Returns max|difference| / max|reference|; infinity where the shapes differ."""
    if ours.shape != reference.shape:
        return np.inf
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def relative(value: float, reference: float) -> float:
    """Returns |value - reference| / |reference|."""
    return abs(value - reference) / abs(reference)


def gradient_errors(
    ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> dict[str, float]:
    """Returns max|difference| / max(max|g|, 1e-3 of the largest of all) of every gradient g.

    Raises:
      ValueError: the two have other names.
    """
    if ours.keys() != reference.keys():
        raise ValueError(f"gradients of one side only: {sorted(ours.keys() ^ reference.keys())}")
    sizes = {name: np.abs(value).max() for name, value in reference.items()}
    floor = SMALL_GRADIENT * max(sizes.values())
    return {
        name: float(np.abs(ours[name] - value).max() / max(sizes[name], floor))
        for name, value in reference.items()
    }
