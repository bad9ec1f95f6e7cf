"""The precision of float32 matrix products and convolutions, as a run sets it."""

import contextlib

import jax

from flax_resnet.config import Config

# `train.matmul_precision`: the name in JAX, or None for JAX's own setting.
PRECISIONS = {"default": None, "tf32": "tensorfloat32", "float32": "float32"}


def matmul_precision(config: Config) -> contextlib.AbstractContextManager[None]:
    """Return a context in which this thread traces programs with `train.matmul_precision`.

    With "default", JAX's own setting stays in force: `jax_default_matmul_precision`.
    """
    precision = PRECISIONS[config.train.matmul_precision]
    return (
        contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)
    )
