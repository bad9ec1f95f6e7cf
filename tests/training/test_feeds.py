import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from flax_resnet.config import freeze
from flax_resnet.data.open import open_source
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import DataError


def config_of(photographs, limit=10):
    return freeze(
        {
            "data": {
                "source": "folder", "path": str(photographs), "image_size": 8, "eval_fraction": 0.01,
                "max_bad_images": limit,
            },
            "train": {"batch_size": 8},
        }
    )  # fmt: skip


def feed_of(photographs, limit=10, **options):
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import StreamingFeed

    config = config_of(photographs, limit)
    source = open_source(config.data, train=True)
    sampler = EpochSampler(len(source), seed=0, **options)
    return StreamingFeed(source, sampler, config, sharding.make_mesh()), source


def test_a_truncated_image_is_reported_once_counted_and_replaced(photographs, caplog):
    feed, source = feed_of(photographs)
    stream = EpochSampler(len(source), seed=0)
    index = next(i for i in range(len(source)) if i not in stream.batch(np, 0, 8))
    assert index in np.concatenate([stream.batch(np, step, 8) for step in range(1, 6)])
    victim = pathlib.Path(source.describe(index))  # first used in the second step or later
    victim.write_bytes(victim.read_bytes()[:200])
    seen = [np.asarray(b["index"]) for b in feed.training(0, 6)]
    assert len(seen) == 6
    assert feed.bad.keys() == {index}
    assert index not in np.concatenate(seen)
    assert caplog.text.count(str(victim)) == 1
    # A restart gives the same batches, with and without the bad images that a checkpoint recorded.
    for start, known in ((0, {}), (3, {}), (3, feed.bad)):
        again, _ = feed_of(photographs)
        again.bad.update(known)
        for got, expected in zip(again.training(start, 6), seen[start:], strict=True):
            np.testing.assert_array_equal(got["index"], expected)


def test_an_unreadable_image_is_left_out_of_an_evaluation(photographs):
    (photographs / "flower" / "2.jpg").write_bytes(b"not an image")
    feed, source = feed_of(photographs)
    masks = [np.asarray(b["mask"]) for b in feed.evaluation(8)]
    assert np.concatenate(masks).sum() == len(source) - 1


def test_too_many_bad_images_are_an_error_with_a_file_name(photographs):
    for number in (1, 4):
        (photographs / "china" / f"{number}.jpg").write_bytes(b"")
    feed, _ = feed_of(photographs, limit=1)
    with pytest.raises(DataError) as error:
        list(feed.training(0, 6))
    assert error.value.key in [str(photographs / "china" / f"{n}.jpg") for n in (1, 4)]
    assert "data.max_bad_images=1" in error.value.problem


# --- the resident feed ---


def pixels(size=6, count=100):
    draw = np.random.default_rng(1)
    images = draw.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    return ArraySource(images, draw.integers(0, 3, count), ("a", "b", "c"))


def both_feeds(source, stream=None, **sections):
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import ResidentFeed, StreamingFeed

    defaults = {"data": {"source": "python", "image_size": 6}, "train": {"batch_size": 16}}
    config = freeze({k: {**v, **sections.get(k, {})} for k, v in defaults.items()})
    stream = stream or EpochSampler(len(source), seed=4)
    arguments = source, stream, config, sharding.make_mesh()
    return StreamingFeed(*arguments), ResidentFeed(*arguments, crop=config.data.train_crop)


def unpacked(feed, batches, make):
    """Apply `make`, a jitted function of a feed, to each of its batches; yield the results."""
    jitted = jax.jit(make)
    for call in batches:
        yield {k: np.asarray(v) for k, v in jitted(feed.data, call).items()}


def steps_of(feed, start, total, *, several=False):
    """Yield the input of each step of a feed. `several`: calls have a leading axis [steps], which is split."""
    for call in feed.training(start, total):
        if not several:
            yield call
            continue
        for number in range(len(jax.tree.leaves(call)[0])):
            yield jax.tree.map(lambda leaf, n=number: leaf[n], call)


@pytest.mark.parametrize("per_call", [1, 3])
@pytest.mark.parametrize("options", [{}, {"subset_size": 40, "repeats": 2}], ids=["all", "subset"])
def test_both_feeds_give_the_same_bits(per_call, options):
    source = pixels()
    stream = EpochSampler(len(source), seed=4, **options)
    feeds = both_feeds(source, stream, train={"steps_per_call": per_call})
    streamed, resident = (
        list(unpacked(feed, steps_of(feed, 2, 12, several=per_call > 1), feed.training_batch))
        for feed in feeds
    )
    assert len(streamed) == len(resident) == 10
    for got, expected in zip(resident, streamed, strict=True):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert got[key].dtype == value.dtype
            np.testing.assert_array_equal(got[key], value)
    np.testing.assert_array_equal(streamed[0]["index"], stream.batch(np, 2, 16))


def test_both_feeds_evaluate_every_example_once():
    feeds = both_feeds(pixels())
    streamed, resident = (
        list(unpacked(feed, feed.evaluation(24), feed.evaluation_batch)) for feed in feeds
    )
    assert len(streamed) == len(resident) == 5
    for got, expected in zip(resident, streamed, strict=True):
        np.testing.assert_array_equal(got["mask"], expected["mask"])
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(got[key][got["mask"]], expected[key][got["mask"]])
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in resident])
    np.testing.assert_array_equal(seen, np.arange(100))


def test_the_resident_feed_replaces_and_masks_unreadable_images(photographs, caplog):
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import ResidentFeed

    victim = photographs / "flower" / "2.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    streaming, source = feed_of(photographs)
    config = config_of(photographs)
    stream = EpochSampler(len(source), seed=0)
    resident = ResidentFeed(source, stream, config, sharding.make_mesh(), crop="resize")
    (index,) = resident.bad
    assert source.describe(index) == str(victim)
    assert caplog.text.count(str(victim)) == 1
    assert resident.bad == {index: 0}
    streaming.bad.update(resident.bad)
    for feed in (resident, streaming):
        feed.seen = list(unpacked(feed, steps_of(feed, 0, 8), feed.training_batch))
    for got, expected in zip(resident.seen, streaming.seen, strict=True):
        assert index not in got["index"]
        for key, value in expected.items():
            np.testing.assert_array_equal(got[key], value)
    masks = [
        b["mask"] for b in unpacked(resident, resident.evaluation(8), resident.evaluation_batch)
    ]
    assert np.concatenate(masks).sum() == len(source) - 1


def test_the_resident_feed_decodes_only_the_subset(photographs):
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import ResidentFeed

    streaming, source = feed_of(photographs, limit=0, subset_size=8)
    stream = EpochSampler(len(source), seed=0, subset_size=8)
    (unused, *_) = set(range(len(source))) - set(stream.used.tolist())
    pathlib.Path(source.describe(unused)).write_bytes(
        b""
    )  # not in the subset, so the run must not read it
    config, mesh = config_of(photographs, limit=0), sharding.make_mesh()
    resident = ResidentFeed(source, stream, config, mesh, crop="resize")
    assert resident.data["image"].shape[0] == 8
    for got, expected in zip(
        unpacked(resident, steps_of(resident, 0, 4), resident.training_batch),
        unpacked(streaming, steps_of(streaming, 0, 4), streaming.training_batch),
        strict=True,
    ):
        for key, value in expected.items():
            np.testing.assert_array_equal(got[key], value)


def test_the_order_is_computed_once_per_image(monkeypatch):
    """XLA must not repeat the computation for each pixel, in the loop over pixels."""
    from flax_resnet.augment import training_batch
    from flax_resnet.ops import dispatch
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import ResidentFeed

    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    draw, rows, size = np.random.default_rng(0), 16, 32
    images = draw.integers(0, 256, (100, size, size, 3)).astype(np.uint8)
    source = ArraySource(images, np.arange(100) % 4)
    config = freeze({
        "data": {"source": "python", "image_size": size},
        "augment": {"pad_crop": 2, "pad_crop_fill": "reflect"},
        "train": {"batch_size": rows},
    })  # fmt: skip
    resident = ResidentFeed(
        source, EpochSampler(100, 0), config, sharding.make_mesh(), crop="resize"
    )

    def images_of(data, step):
        batch = resident.training_batch(data, step)
        return training_batch(jax.random.key(0), batch["image"], batch["label"], 4, config.augment)

    compiled = jax.jit(images_of).lower(resident.data, np.uint32(0)).compile()
    loops = re.split(r"\n(?=%|ENTRY)", compiled.as_text())
    hashes = [loop.count(" xor(") for loop in loops if "u8[" in loop]
    assert max(hashes) < 32  # the number of rounds of the permutation


def test_auto_is_resident_for_small_data_without_random_crops():
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import ResidentFeed, StreamingFeed, make_feed

    source, mesh = pixels(), sharding.make_mesh()
    for train, crop, kind in (
        ({}, "resize", ResidentFeed),
        ({"resident_gib": 1e-5}, "resize", StreamingFeed),  # 10.8 KB of images, 10.7 KB allowed
        ({"feed": "streaming"}, "resize", StreamingFeed),
        ({"feed": "resident"}, "resize", ResidentFeed),
        ({}, "random_resized", StreamingFeed),
    ):
        config = freeze({"data": {"source": "python", "image_size": 6}, "train": train})
        assert type(make_feed(source, EpochSampler(100, 0), config, mesh, crop=crop)) is kind


def test_calls_end_at_multiples_of_the_steps_per_call():
    from flax_resnet.training.input.feeds import calls_of

    assert list(calls_of(3, 11, 4)) == [(3, 1), (4, 4), (8, 3)]
    assert list(calls_of(0, 2, 1)) == [(0, 1), (1, 1)]
    assert list(calls_of(5, 5, 4)) == []


# --- real processes ---

PROCESS = """
import json, sys, zlib
import jax
number, count, port = map(int, sys.argv[1:4])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=number)
import numpy as np
from flax_resnet.config import freeze
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.data.open import open_source
from flax_resnet.training import sharding
from flax_resnet.training.input.feeds import ResidentFeed, StreamingFeed

found = {}
for crop in ("random_resized", "resize"):
    config = freeze({
        "data": {"source": "folder", "path": sys.argv[4], "image_size": 16, "train_crop": crop,
                 "eval_fraction": 0.01},
        "train": {"batch_size": 8, "steps_per_call": 2},
    })
    source = open_source(config.data, train=True)
    mesh, stream = sharding.make_mesh(), EpochSampler(len(source), seed=1)
    feeds = [StreamingFeed(source, stream, config, mesh)]
    if crop == "resize":
        feeds.append(ResidentFeed(source, stream, config, mesh, crop=crop))
    for feed in feeds:
        whole = sharding.replicated(mesh)
        def steps(data, call):
            return jax.lax.map(lambda x: feed.training_batch(data, x), call)
        gather = jax.jit(steps, out_shardings=whole)
        sums = []
        for call in feed.training(3, 9):
            batch = {k: np.asarray(v.addressable_data(0)) for k, v in gather(feed.data, call).items()}
            sums.append({k: zlib.crc32(np.ascontiguousarray(v).tobytes()) for k, v in batch.items()})
        found[f"{type(feed).__name__} {crop}"] = sums
print(json.dumps(found))
"""


def global_batches(count, folder):
    """Start `count` processes, and return the checksums of the global batches from each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(n), str(count), str(port), str(folder)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(count)
    ]  # fmt: skip
    found = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    return found


@pytest.mark.slow  # real processes, each importing JAX and TensorFlow
@pytest.mark.parametrize("count", [2, 8])
def test_processes_build_the_same_global_batches(photographs, count):
    (alone,) = global_batches(1, photographs)
    assert len(alone) == 3
    assert all(len(sums) == 4 for sums in alone.values())  # four calls: steps 3; 4, 5; 6, 7; 8
    streamed, resident = alone["StreamingFeed resize"], alone["ResidentFeed resize"]
    assert streamed == resident
    assert global_batches(count, photographs) == [alone] * count
