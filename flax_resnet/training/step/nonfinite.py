"""Steps that are not finite leave the state as it is (`train.on_nonfinite`, float16)."""

from typing import Any

import jax
import jax.numpy as jnp

from flax_resnet.config import Config

SKIP = "skip"


def skips(config: Config) -> bool:
    """Return whether a step that is not finite is skipped. With float16, the search for a loss scale needs it."""
    return config.train.on_nonfinite == SKIP or config.model.dtype == "float16"


def is_finite(*trees: Any) -> jax.Array:
    """Return whether all elements of all leaves are finite, bool []."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).all()


def unless_finite(old: Any, new: Any, finite: jax.Array) -> Any:
    """Return the training state after a step: `new` if it is finite, else `old` with the step of `new`.

    Args:
      old: training state before the update.
      new: training state after the update.
      finite: whether loss, gradient and new state are finite, bool []. They are sums over all devices, so all
        devices skip alike.
    """
    state = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
    return state.replace(step=new.step)
