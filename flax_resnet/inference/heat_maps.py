"""Grad-CAM heat maps of images, batch by batch, for named classes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.config import Config
from flax_resnet.errors import ConfigError
from flax_resnet.inference.grad_cam import grad_cam
from flax_resnet.models.network import Network
from flax_resnet.ops import dispatch
from flax_resnet.training.matmul_precision import matmul_precision


def make_heat(model: Network, config: Config) -> Callable[..., jax.Array]:
    """Return the jitted function (variables, uint8 [N, S, S, 3], int32 [N]) -> heat maps, float32 [N, S, S].

    The class -1 stands for the predicted one: that of the mean logits over `evaluation_views`.
    """

    def heat(variables: Any, pixels: jax.Array, classes: jax.Array) -> jax.Array:
        images = evaluation_images(pixels, config.augment)
        views = evaluation_views(images, config.augment)
        with matmul_precision(config):
            logits: Any = sum(share * model.apply(variables, v, train=False) for share, v in views)
            wanted = jnp.where(classes < 0, jnp.argmax(logits, axis=-1), classes)
            return grad_cam(model, variables, images, wanted)

    return jax.jit(heat, compiler_options=dispatch.compiler_options())


def heat_maps(
    heat: Callable[[np.ndarray, np.ndarray], jax.Array],
    batches: Iterable[np.ndarray],
    classes: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Compute the heat maps of all images of `batches`, float32 [N, S, S].

    Args:
      heat: (uint8 [n, S, S, 3], int32 [n]) -> float32 [n, S, S].
      batches: images, uint8 [n, S, S, 3], with n at most `batch_size`; at least one batch.
      classes: int32 [] for all images, or [N].
      batch_size: the largest n.

    Raises:
      ConfigError: there are more or fewer classes than images.
    """
    parts: list[np.ndarray] = []
    done = 0
    for pixels in batches:
        wanted = classes[done : done + len(pixels)] if classes.ndim else classes
        done += len(pixels)
        if classes.ndim and len(classes) < done:
            break
        images = padded(pixels, batch_size if parts else 0, batch_size)
        labels = np.full(len(images), -1, np.int32)
        labels[: len(pixels)] = wanted
        parts.append(np.asarray(heat(images, labels))[: len(pixels)])
    if classes.ndim and len(classes) != done:
        raise ConfigError(
            f"there are {len(classes)} classes for other images",
            key="classes",
            allowed="one class, or one per image",
        )
    return np.concatenate(parts)


def padded(pixels: np.ndarray, rows: int, most: int) -> np.ndarray:
    """Pad images [n, ...] with black ones to `rows`; for 0, to a power of two, but at most to `most`.

    So a single image needs no padding, and few sizes are compiled.
    """
    rows = rows or min(most, 1 << max(len(pixels) - 1, 0).bit_length())
    return np.pad(pixels, ((0, rows - len(pixels)), (0, 0), (0, 0), (0, 0)))


def class_indices(
    classes: int | str | Sequence[int | str] | None, names: Sequence[str], count: int
) -> np.ndarray:
    """Return the indices of classes, int32 [] for one class, or [N]; -1 for None.

    Args:
      classes: the index or the name of a class, or a sequence of these, or None.
      names: the names of the classes; if a name is given twice, its first index counts.
      count: number of logits.

    Raises:
      ConfigError: there is no such class.
    """

    def index(wanted: Any) -> int:
        if isinstance(wanted, str) and wanted in names:
            return names.index(wanted)
        is_index = isinstance(wanted, int | np.integer) and not isinstance(wanted, bool)
        if is_index and 0 <= wanted < count:
            return int(wanted)
        allowed = tuple(names) if isinstance(wanted, str) else f"an index from 0 to {count - 1}"
        raise ConfigError("no such class", key="classes", value=wanted, allowed=allowed)

    if classes is None:
        return np.array(-1, np.int32)
    if isinstance(classes, str | int | np.integer):
        return np.array(index(classes), np.int32)
    return np.array([index(one) for one in classes], np.int32)
