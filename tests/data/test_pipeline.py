import io

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from flax_resnet.config import freeze
from flax_resnet.data import pipeline
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.data.sampling import EpochSampler


def batches(source, data, **options):
    stream = options.pop("stream", None) or EpochSampler(len(source), seed=3)
    defaults = dict(batch_size=16, start_step=0, total_steps=4, rows=slice(0, 16), bad={})
    return list(pipeline.training_batches(source, stream, data, **{**defaults, **options}))


def test_a_training_batch_follows_the_sampler(data_dir):
    data = Data(data_dir=data_dir)
    source = open_source(data, train=True)
    for step, batch in enumerate(batches(source, data)):
        indices = EpochSampler(1437, seed=3).batch(np, step, 16)
        np.testing.assert_array_equal(batch["index"], indices)
        np.testing.assert_array_equal(batch["label"], source.read(indices).labels)
        assert {k: v.dtype.name for k, v in batch.items()} == {
            "image": "uint8", "label": "int32", "index": "int32", "mask": "bool",
        }  # fmt: skip
        assert batch["mask"].all()
        pixels = np.array(Image.open(io.BytesIO(source.read(indices[:1]).images[0])))
        np.testing.assert_array_equal(batch["image"][0, :, :, 1], pixels)


def test_the_stream_does_not_depend_on_processes_threads_or_restarts(photographs):
    data = Data(
        source="folder",
        path=str(photographs),
        image_size=24,
        train_crop="random_resized",
        eval_fraction=0.2,
    )
    source = open_source(data, train=True)
    batch = len(source) - 1 - len(source) % 2
    whole = batches(source, data, batch_size=batch, rows=slice(0, batch), total_steps=6)
    assert len(whole) == 6
    again = batches(
        source, data, batch_size=batch, rows=slice(0, batch), total_steps=6, start_step=4
    )
    halves = [
        batches(source, data, batch_size=batch, rows=rows, total_steps=6)
        for rows in (slice(0, batch // 2), slice(batch // 2, batch))
    ]
    single = Data(**{**data.__dict__, "threads": 1})
    alone = batches(source, single, batch_size=batch, rows=slice(0, batch), total_steps=6)
    for key in ("image", "label", "index"):
        for step, expected in enumerate(whole):
            joined = np.concatenate([half[step][key] for half in halves])
            np.testing.assert_array_equal(joined, expected[key])
            np.testing.assert_array_equal(alone[step][key], expected[key])
        for got, expected in zip(again, whole[4:], strict=True):
            np.testing.assert_array_equal(got[key], expected[key])


def test_a_thousand_draws_of_seed_step_and_processes_give_the_same_examples():
    draw = np.random.default_rng(0)
    for _ in range(1000):
        size, seed = int(draw.integers(50, 5000)), int(draw.integers(2**31))
        step, count = int(draw.integers(100_000)), int(draw.choice([1, 2, 8]))
        batch = 8 * int(draw.integers(1, 6))
        bad = {int(i): 0 for i in draw.integers(0, size, 3)}
        stream = EpochSampler(size, seed)
        parts = [
            pipeline.training_indices(stream, step, batch, slice(a, a + batch // count), bad)
            for a in range(0, batch, batch // count)
        ]
        whole = pipeline.training_indices(stream, step, batch, slice(0, batch), bad)
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert not set(whole.tolist()) & bad.keys()


@pytest.mark.slow  # takes a minute: builds 200 tf.data graphs
def test_a_thousand_batches_after_random_restarts_equal_uninterrupted_ones(photographs):
    """40 restarts with a random seed, step and number of processes; 25 steps after each."""
    data = Data(
        source="folder",
        path=str(photographs),
        image_size=12,
        train_crop="random_resized",
        eval_fraction=0.01,
    )
    source, draw = open_source(data, train=True), np.random.default_rng(0)
    for _ in range(40):
        seed, start = int(draw.integers(2**31)), int(draw.integers(40))
        count, steps = int(draw.choice([1, 2, 8])), {"total_steps": start + 25}
        stream = EpochSampler(len(source), seed)
        whole = batches(source, data, stream=stream, batch_size=8, rows=slice(0, 8), **steps)[
            start:
        ]
        parts = [
            batches(source, data, stream=stream, batch_size=8, rows=rows, start_step=start, **steps)
            for rows in (slice(a, a + 8 // count) for a in range(0, 8, 8 // count))
        ]
        for expected, *shares in zip(whole, *parts, strict=True):
            for key, value in expected.items():
                np.testing.assert_array_equal(np.concatenate([s[key] for s in shares]), value)


def test_crops_differ_from_epoch_to_epoch(photographs):
    data = Data(source="folder", path=str(photographs), image_size=8, train_crop="random_resized")
    source = open_source(data, train=True)
    size = len(source)
    first, second = batches(source, data, batch_size=size, rows=slice(0, size), total_steps=2)
    a, b = (batch["image"][np.argsort(batch["index"])] for batch in (first, second))
    assert (a != b).any(axis=(1, 2, 3)).all()


def test_evaluation_sees_every_example_once(data_dir):
    data = Data(data_dir=data_dir)
    source = open_source(data, train=False)
    seen = list(
        pipeline.evaluation_batches(
            source,
            data,
            batch_size=56,
            start_step=0,
            rows=slice(0, 56),
            bad=frozenset({5}),
            among=np.arange(360),
        )
    )
    assert [len(b["index"]) for b in seen] == [56] * 7
    index = np.concatenate([b["index"][b["mask"]] for b in seen])
    np.testing.assert_array_equal(index, [i for i in range(360) if i != 5])


def test_a_bad_image_is_replaced_from_the_step_that_found_it(data_dir):
    data = Data(data_dir=data_dir)
    source = open_source(data, train=True)
    size = len(source)  # the batch is an epoch, so every step has every example
    steps = batches(source, data, batch_size=size, rows=slice(0, size), total_steps=3, bad={7: 1})
    assert [7 in batch["index"] for batch in steps] == [True, False, False]
    assert [(batch["index"] == 8).sum() for batch in steps] == [1, 2, 2]


def test_the_packaged_configs_are_valid():
    import sys

    sys.path.insert(0, str(ROOT))
    from configs.resnet18 import get_config

    for argument in (
        "digits",
        "cifar10",
        "imagenet2012",
        "folder=/somewhere",
        "csv=/x.csv",
        "tfds=x",
    ):
        freeze(get_config(argument))
