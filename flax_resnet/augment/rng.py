"""Named streams of random numbers: one per operation, so that none of them changes another's draws."""

import enum

import jax
import jax.numpy as jnp

Array = jax.Array


class Stream(enum.IntEnum):
    """What is folded into the step's key for each operation. A number once given stays."""

    PAD_CROP = 1
    FLIP = 2
    JITTER = 3
    POLICY = 4
    RANDOM_ERASING = 5
    CUTOUT = 6
    MIX = 7


def row_keys(key: Array, rows: int | Array) -> Array:
    """Returns a key for each row of the global batch: fold_in(key, row).

    Args:
      key: an operation's key.
      rows: how many rows there are, or which row's draws each one takes: uint32 [N].
    """
    if isinstance(rows, int):
        rows = jnp.arange(rows, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def uniform(keys: Array, count: int) -> Array:
    """Draws `count` numbers of [0, 1) with each key [N]: float32 [count, N].

    One draw for all that an operation needs: each call of jax.random costs 0.1 to 0.3 s of compilation on CPU.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys).T


def below(uniform: Array, limit: int | Array) -> Array:
    """Maps numbers of [0, 1) to integers 0 to limit - 1, int32, as likely as each other to 2^-23 of limit."""
    return (uniform * limit).astype(jnp.int32)
