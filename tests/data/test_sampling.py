import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused

from flax_resnet.data import sampling
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.errors import DataError


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1437, 50_000])
def test_each_epoch_is_a_bijection_with_the_same_bits_in_jit(size):
    places = np.arange(size, dtype=np.uint32)
    for epoch in (0, 1, 2**32 - 1):
        on_host = sampling.permute(np, places, size=size, seed=7, epoch=epoch)
        assert on_host.dtype == np.uint32
        np.testing.assert_array_equal(np.sort(on_host), places)
    jitted = jax.jit(partial(sampling.permute, jnp, size=size, seed=7))
    np.testing.assert_array_equal(jitted(jnp.asarray(places), epoch=jnp.uint32(2**32 - 1)), on_host)


def test_the_largest_size_does_not_overflow():
    size = sampling.MAX_SIZE
    places = np.array([0, 1, size // 2, size - 1], np.uint32)
    images = sampling.permute(np, places, size=size, seed=2**31 - 1, epoch=3)
    assert (images < size).all()
    assert len(set(images.tolist())) == 4
    with pytest.raises(ValueError, match="size"):
        sampling.permute(np, places, size=size + 1, seed=0, epoch=0)


def test_every_permutation_is_equally_likely():
    epochs, size = 100_000, 5
    places = np.broadcast_to(np.arange(size, dtype=np.uint32), (epochs, size))
    orders = sampling.permute(
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
            sampling.permute(np, np.arange(size, dtype=np.uint32), size=size, seed=1, epoch=e)
            for e in range(epochs)
        ]
    ).astype(np.int64)
    steps = np.bincount((np.diff(orders, axis=1) % size).ravel(), minlength=size)[1:]
    expected = steps.sum() / (size - 1)
    assert abs(((steps - expected) ** 2 / expected).sum() / (size - 2) - 1) < 0.2
    correlation = np.corrcoef(orders)[np.triu_indices(epochs, 1)]
    assert abs(correlation.std() * math.sqrt(size) - 1) < 0.1


def test_a_training_batch_depends_only_on_the_step_and_stays_within_an_epoch():
    batch = partial(EpochSampler(103, seed=5).batch, np, batch_size=10)
    first = np.concatenate([batch(step) for step in range(10)])
    second = np.concatenate([batch(step) for step in range(10, 20)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 100
    assert (first != second).any()
    np.testing.assert_array_equal(batch(13), second[30:40])
    jitted = jax.jit(partial(EpochSampler(103, seed=5).batch, jnp, batch_size=10))
    np.testing.assert_array_equal(jitted(jnp.uint32(13)), batch(13))
    assert (EpochSampler(103, seed=6).batch(np, 13, 10) != batch(13)).any()


def test_a_substitute_is_the_next_good_example_of_the_subset_and_class():
    bad = frozenset({3, 4, 9})
    stream = EpochSampler(10, seed=0)
    assert [stream.substitute(i, bad) for i in (2, 3, 4, 9)] == [2, 5, 5, 0]
    with refused("images", kind=DataError) as caught:
        EpochSampler(2, seed=0).substitute(0, frozenset({0, 1}))
    assert "2" in caught.value.problem
    some = EpochSampler(100, seed=0, subset_size=8)
    used = some.used.tolist()
    assert used == sorted(set(epoch_of(some, batch=8).tolist()))
    assert some.substitute(used[2], frozenset({used[2]})) == used[3]
    assert some.substitute(used[-1], frozenset({used[-1]})) == used[0]
    classes = EpochSampler(10, seed=0, labels=np.arange(10) % 2)
    assert classes.substitute(3, bad) == 5
    assert classes.substitute(9, bad) == 1
    assert classes.substitute(1, frozenset({1, 3, 5, 7, 9})) == 2  # its class has no good example


def epoch_of(stream, epoch=0, batch=10):
    steps = stream.epoch_size // batch
    return np.concatenate([stream.batch(np, epoch * steps + i, batch) for i in range(steps)])


def test_a_subset_is_chosen_by_its_own_seed():
    chosen = [
        set(epoch_of(EpochSampler(1000, seed, subset_size=100, subset_seed=subset), epoch).tolist())
        for seed, subset, epoch in ((0, 0, 0), (5, 0, 3), (0, 1, 0))
    ]
    assert len(chosen[0]) == 100
    assert max(chosen[0]) > 800
    assert chosen[0] == chosen[1]
    assert 1 < len(chosen[0] & chosen[2]) < 30  # the expected overlap is 10
    orders = [epoch_of(EpochSampler(1000, seed, subset_size=100), 0) for seed in (0, 5)]
    assert (orders[0] != orders[1]).any()


def test_repeats_of_an_example_are_adjacent_in_a_batch():
    stream = EpochSampler(99, seed=2, repeats=3)
    for epoch in (0, 1):
        once, counts = np.unique(epoch_of(stream, epoch, batch=9), return_counts=True)
        assert len(once) == 33
        assert (counts == 3).all()
    batch = stream.batch(np, 4, 9)
    np.testing.assert_array_equal(batch.reshape(3, 3), batch[[0, 3, 6]][:, None].repeat(3, 1))


def test_balanced_classes_are_equally_frequent_and_use_all_their_examples():
    labels = np.repeat([0, 1, 2], [70, 20, 10])[np.random.default_rng(0).permutation(100)]
    stream = EpochSampler(100, seed=1, labels=labels)
    first = epoch_of(stream, 0, 99)
    assert np.bincount(labels[first]).tolist() == [33, 33, 33]
    for block in labels[first].reshape(33, 3):
        assert sorted(block) == [0, 1, 2]
    assert (
        len(np.unique(labels[first].reshape(33, 3), axis=0)) > 1
    )  # the order of the classes changes
    counts = np.bincount(first, minlength=100)
    assert counts[labels == 0].max() == 1
    assert set(counts[labels == 1].tolist()) == {1, 2}
    assert set(counts[labels == 2].tolist()) == {3, 4}
    second = epoch_of(stream, 1, 99)
    rare = [e[labels[e] == 2][:10].tolist() for e in (first, second)]
    assert sorted(rare[0]) == sorted(rare[1]) == np.flatnonzero(labels == 2).tolist()
    assert rare[0] != rare[1]
    ever = np.concatenate([epoch_of(stream, e, 99) for e in range(20)])
    assert len(np.unique(ever)) == 100
    some = EpochSampler(100, seed=1, subset_size=50, labels=labels)
    assert len(np.unique(np.concatenate([epoch_of(some, e, 50) for e in range(20)]))) == 50


@pytest.mark.parametrize(
    "stream",
    [
        EpochSampler(5000, seed=3),
        EpochSampler(5000, seed=3, subset_size=1200, subset_seed=7, repeats=3),
        EpochSampler(5000, seed=3, labels=np.arange(5000) ** 2 % 7),
        EpochSampler(5000, seed=3, subset_size=999, repeats=2, labels=np.arange(5000) // 4000),
    ],
    ids=["plain", "subset", "balanced", "all at once"],
)
def test_every_order_has_the_same_bits_in_jit(stream):
    """The seed is an argument of the jitted function: one program serves all seeds."""
    other = dataclasses.replace(stream, seed=0)
    jitted = jax.jit(lambda step, seed: other.batch(jnp, step, 64, seed))
    for step in (0, 17, 12345):
        on_host = stream.batch(np, step, 64)
        assert on_host.dtype == np.uint32
        np.testing.assert_array_equal(jitted(jnp.uint32(step), jnp.uint32(3)), on_host)
