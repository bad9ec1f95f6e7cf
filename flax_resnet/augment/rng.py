"""Named streams of random numbers, one per operation, so that no operation changes the draws of another."""

import enum

import jax
import jax.numpy as jnp

Array = jax.Array


class Stream(enum.IntEnum):
    """The number that each operation folds into the step's key. Never change an existing number."""

    PAD_CROP = 1
    FLIP = 2
    JITTER = 3
    POLICY = 4
    RANDOM_ERASING = 5
    CUTOUT = 6
    MIX = 7


def row_keys(key: Array, rows: int | Array) -> Array:
    """Return a key for each row of the global batch: fold_in(key, row).

    Args:
      key: an operation's key.
      rows: the number of rows, for one key per row; or uint32 [N], the row index from which each key is derived.
    """
    if isinstance(rows, int):
        rows = jnp.arange(rows, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def uniform(keys: Array, count: int) -> Array:
    """Draw `count` numbers in [0, 1) with each key [N]: float32 [count, N].

    Draw all numbers of an operation in one call: each call of jax.random costs 0.1 to 0.3 s of compilation on CPU.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys).T


def below(uniform: Array, limit: int | Array) -> Array:
    """Map uniform numbers in [0, 1) to int32 from 0 to limit - 1.

    The probability of each integer differs from 1 / limit by at most about 2^-23, the spacing of the numbers.
    """
    return (uniform * limit).astype(jnp.int32)
