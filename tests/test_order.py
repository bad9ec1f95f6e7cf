import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet.data import order
from flax_resnet.data.order import Order


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1437, 50_000])
def test_each_epoch_is_a_bijection_with_the_same_bits_in_jit(size):
    places = np.arange(size, dtype=np.uint32)
    for epoch in (0, 1, 2**32 - 1):
        on_host = order.permute(np, places, size=size, seed=7, epoch=epoch)
        assert on_host.dtype == np.uint32
        np.testing.assert_array_equal(np.sort(on_host), places)
    jitted = jax.jit(partial(order.permute, jnp, size=size, seed=7))
    np.testing.assert_array_equal(jitted(jnp.asarray(places), epoch=jnp.uint32(2**32 - 1)), on_host)


def test_the_largest_size_wraps_nowhere():
    size = order.MAX_SIZE
    places = np.array([0, 1, size // 2, size - 1], np.uint32)
    images = order.permute(np, places, size=size, seed=2**31 - 1, epoch=3)
    assert (images < size).all()
    assert len(set(images.tolist())) == 4
    with pytest.raises(ValueError, match="size"):
        order.permute(np, places, size=size + 1, seed=0, epoch=0)


def test_every_permutation_is_equally_likely():
    epochs, size = 100_000, 5
    places = np.broadcast_to(np.arange(size, dtype=np.uint32), (epochs, size))
    orders = order.permute(
        np, places, size=size, seed=0, epoch=np.arange(epochs, dtype=np.uint32)[:, None]
    )
    codes = (orders * size ** np.arange(size, dtype=np.uint32)).sum(axis=1)
    _, counts = np.unique(codes, return_counts=True)
    freedom = math.factorial(size) - 1
    assert len(counts) == freedom + 1
    expected = epochs / (freedom + 1)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)


def test_neighbours_are_scattered_and_epochs_unrelated():
    size, epochs = 1437, 100
    orders = np.stack(
        [
            order.permute(np, np.arange(size, dtype=np.uint32), size=size, seed=1, epoch=e)
            for e in range(epochs)
        ]
    ).astype(np.int64)
    steps = np.bincount((np.diff(orders, axis=1) % size).ravel(), minlength=size)[1:]
    expected = steps.sum() / (size - 1)
    assert abs(((steps - expected) ** 2 / expected).sum() / (size - 2) - 1) < 0.2
    correlation = np.corrcoef(orders)[np.triu_indices(epochs, 1)]
    assert abs(correlation.std() * math.sqrt(size) - 1) < 0.1


def test_a_training_batch_is_a_function_of_the_step_and_crosses_no_epoch():
    batch = partial(Order(103, seed=5).batch, np, batch_size=10)
    first = np.concatenate([batch(step) for step in range(10)])
    second = np.concatenate([batch(step) for step in range(10, 20)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 100
    assert (first != second).any()
    np.testing.assert_array_equal(batch(13), second[30:40])
    jitted = jax.jit(partial(Order(103, seed=5).batch, jnp, batch_size=10))
    np.testing.assert_array_equal(jitted(jnp.uint32(13)), batch(13))
    assert (Order(103, seed=6).batch(np, 13, 10) != batch(13)).any()


def test_a_substitute_depends_on_the_index_and_is_good():
    bad = frozenset({3, 4, 9})
    assert [order.substitute(i, size=10, bad=bad) for i in (2, 3, 4, 9)] == [2, 5, 5, 0]
    with pytest.raises(ValueError, match="all 2"):
        order.substitute(0, size=2, bad=frozenset({0, 1}))
