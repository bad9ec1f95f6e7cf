import io

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from flax_resnet.config import Data, freeze
from flax_resnet.data import decode, pipeline
from flax_resnet.data.files import folder_source
from flax_resnet.data.order import Order
from flax_resnet.data.source import open_source
from flax_resnet.data.tfds import TfdsSource
from flax_resnet.errors import DataError
from flax_resnet.preprocessing import prepare


def batches(source, data, **options):
    stream = options.pop("stream", None) or Order(len(source), seed=3)
    defaults = dict(batch_size=16, start_step=0, total_steps=4, rows=slice(0, 16), bad={})
    return list(pipeline.training_batches(source, stream, data, **{**defaults, **options}))


def test_digits_are_the_1797_of_scikit_learn_in_a_fixed_split(data_dir):
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, test = (open_source(Data(data_dir=data_dir), train=t) for t in (True, False))
    assert (len(train), len(test)) == (1437, 360)
    images, labels, _ = test.read(range(360))
    np.testing.assert_array_equal(labels, digits.target[::5])
    pixels = np.array(Image.open(io.BytesIO(images[7])))
    np.testing.assert_array_equal(pixels, np.rint(digits.images[35] * 255 / 16))
    held = TfdsSource(Data(data_dir=data_dir), "train[1200:]")
    assert held.read([0]).images == train.read([1200]).images


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("digit", "train", "did you mean 'digits'"),
        ("digits", "tain", "splits: train, test"),
        ("digits", "train[", "slices"),
        ("digits", "train[:0]", "is empty"),
        ("cifar10", "train", "python -m flax_resnet.prepare --name=cifar10 --data_dir="),
        ("imagenet2012", "train", "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"),
    ],
)
def test_absent_data_is_one_line_with_the_cure(data_dir, name, split, words):
    with pytest.raises(DataError) as error:
        TfdsSource(Data(name=name, data_dir=data_dir), split)
    assert words in str(error.value)
    if "prepare" in words:
        assert data_dir in str(error.value)


def test_any_tfds_dataset_opens_with_mock_data():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=20):  # made-up pixels behind the real interface
        source = TfdsSource(Data(name="cifar10"), "train")
        assert len(source) == 20
        assert len(source.class_names) == 10
        data = Data(name="cifar10", image_size=32)
        (batch,) = batches(source, data, total_steps=1)
        assert batch["image"].shape == (16, 32, 32, 3)


def test_a_training_batch_holds_what_the_order_says(data_dir):
    data = Data(data_dir=data_dir)
    source = open_source(data, train=True)
    for step, batch in enumerate(batches(source, data)):
        indices = Order(1437, seed=3).batch(np, step, 16)
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
        holdout=0.2,
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


def test_crops_differ_from_epoch_to_epoch(photographs):
    data = Data(source="folder", path=str(photographs), image_size=8, train_crop="random_resized")
    source = open_source(data, train=True)
    size = len(source)
    first, second = batches(source, data, batch_size=size, rows=slice(0, size), total_steps=2)
    a, b = (batch["image"][np.argsort(batch["index"])] for batch in (first, second))
    assert (a != b).any(axis=(1, 2, 3)).all()


def test_random_windows_follow_torchvisions_rule():
    import tensorflow as tf

    shape = tf.constant([300, 200])
    seeds = tf.data.Dataset.range(2000)  # compiled: one by one they take half a minute
    windows = seeds.map(lambda i: decode.random_window(shape, (0.08, 1.0), (0.75, 4 / 3), [1, i]))
    boxes = np.stack(list(windows.as_numpy_iterator()))
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 200).all()
    area, aspect = height * width / 60_000, width / height
    assert 0.07 < area.min() < 0.10
    assert area.max() > 0.8
    assert 0.74 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.35
    small = area < 0.4  # there no try is turned down, so the draws are even
    assert abs(area[small].mean() - 0.24) < 0.01
    assert abs(np.log(aspect[small]).mean()) < 0.02
    fallback = decode.random_window(
        tf.constant([10, 400]), (1.0, 1.0), (0.75, 4 / 3), tf.constant([0, 0])
    )
    np.testing.assert_array_equal(fallback, [0, 193, 10, 13])


def test_evaluation_sees_every_example_once(data_dir):
    data = Data(data_dir=data_dir)
    source = open_source(data, train=False)
    seen = list(
        pipeline.evaluation_batches(
            source, data, batch_size=56, start_step=0, rows=slice(0, 56), bad=frozenset({5})
        )
    )
    assert [len(b["index"]) for b in seen] == [56] * 7
    index = np.concatenate([b["index"][b["mask"]] for b in seen])
    np.testing.assert_array_equal(index, [i for i in range(360) if i != 5])


def test_pillow_and_tensorflow_see_the_same_pixels(photographs):
    for data in (
        Data(image_size=32, eval_crop="center"),
        Data(image_size=48, eval_crop="resize", interpolation="bicubic"),
        Data(image_size=300, eval_crop="center", eval_crop_fraction=1.0),
    ):
        for file in sorted(photographs.rglob("*.jpg"))[:4]:
            theirs = decode.evaluation_pixels(file.read_bytes(), data).numpy()
            ours = prepare([file], data)[0]
            difference = np.abs(ours.astype(int) - theirs)
            # Where a filter's edge falls on a half pixel, the two round it to different sides.
            assert difference.mean() < 0.3, (data.image_size, file)
            assert (difference > 2).mean() < 1e-3


def test_prepare_takes_arrays_of_any_size_and_refuses_others():
    data = Data(image_size=8)
    assert prepare(np.zeros((2, 20, 30, 3), np.uint8), data).shape == (2, 8, 8, 3)
    assert prepare([np.zeros((5, 6, 1), np.uint8), np.zeros((8, 8, 3), np.uint8)], data).shape == (
        2,
        8,
        8,
        3,
    )
    for wrong in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 2), np.uint8)):
        with pytest.raises(DataError, match="must be uint8"):
            prepare(wrong, data)
    with pytest.raises(DataError, match=r"nowhere\.jpg"):
        prepare(["nowhere.jpg"], data)


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "gif"])
def test_every_suffix_can_be_decoded(tmp_path, kind):
    pixels = np.zeros((9, 7, 3), np.uint8)
    pixels[:5] = 255
    Image.fromarray(pixels).save(
        tmp_path / f"x.{kind}", **({"lossless": True} if kind == "webp" else {})
    )
    encoded = (tmp_path / f"x.{kind}").read_bytes()
    image = decode.evaluation_pixels(encoded, Data(image_size=7), crop="center").numpy()
    assert image.shape == (7, 7, 3)
    assert image[0].min() > 250
    assert image[-1].max() < 5


def test_a_folder_with_train_and_test(tmp_path, photographs):
    (tmp_path / "set").mkdir()
    photographs.rename(tmp_path / "set" / "train")
    data = Data(source="folder", path=str(tmp_path / "set"))
    with pytest.raises(DataError, match="none of test, val, validation"):
        open_source(data, train=False)
    for name in ("china", "flower"):
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        file = tmp_path / "set" / "train" / name / "0.jpg"
        (tmp_path / "set" / "val" / name / "1.jpg").write_bytes(file.read_bytes())
    assert len(open_source(data, train=True)) == 12
    held = open_source(data, train=False)
    assert (len(held), held.class_names) == (2, ("china", "flower"))
    (tmp_path / "set" / "val" / "flower").rename(tmp_path / "set" / "val" / "flwr")
    with pytest.raises(DataError, match="flower, flwr"):
        open_source(data, train=False)


def test_a_folders_split_is_stable(photographs):
    data = Data(source="folder", path=str(photographs), holdout=0.4)
    sides = [
        {s.describe(i) for i in range(len(s))}
        for s in (open_source(data, train=t) for t in (True, False))
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 12
    (photographs / "china" / "another.jpg").write_bytes(
        (photographs / "china" / "0.jpg").read_bytes()
    )
    after = open_source(data, train=True)
    assert sides[0] <= {after.describe(i) for i in range(len(after))}


def test_folder_errors(tmp_path):
    def opening():
        return open_source(Data(source="folder", path=str(tmp_path)), train=True)

    with pytest.raises(DataError, match="found none"):
        opening()
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="found only 'a'"):
        opening()
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        opening()
    with pytest.raises(DataError, match="is not a folder"):
        folder_source(Data(path=str(tmp_path / "c")), "train", train=True)


def feed_of(photographs, limit=10, **data):
    from flax_resnet.training import sharding
    from flax_resnet.training.feed import StreamingFeed

    config = freeze(
        {
            "data": {
                "source": "folder", "path": str(photographs), "image_size": 8, "holdout": 0.01,
                "max_bad_images": limit, **data,
            },
            "train": {"batch_size": 8},
        }
    )  # fmt: skip
    source = open_source(config.data, train=True)
    stream = Order(len(source), seed=0)
    return StreamingFeed(source, stream, config, sharding.make_mesh()), source


def test_a_truncated_image_is_named_counted_and_replaced(photographs, caplog):
    victim = photographs / "china" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    feed, source = feed_of(photographs)
    index = next(i for i in range(len(source)) if source.describe(i) == str(victim))
    seen = [np.asarray(b["index"][0]) for b in feed.training(0, 6)]
    assert len(seen) == 6
    assert feed.bad.keys() == {index}
    assert index not in np.concatenate(seen)
    assert caplog.text.count(str(victim)) == 1
    # A restart that knows what the checkpoint knew, or nothing, gives the same batches.
    for start, known in ((0, {}), (3, {}), (3, feed.bad)):
        again, _ = feed_of(photographs)
        again.bad.update(known)
        for got, expected in zip(again.training(start, 6), seen[start:], strict=True):
            np.testing.assert_array_equal(got["index"][0], expected)


def test_a_bad_image_is_replaced_from_the_step_on_at_which_it_was_found(data_dir):
    data = Data(data_dir=data_dir)
    source = open_source(data, train=True)
    size = len(source)  # every step holds every example
    steps = batches(source, data, batch_size=size, rows=slice(0, size), total_steps=3, bad={7: 1})
    assert [7 in batch["index"] for batch in steps] == [True, False, False]
    assert [(batch["index"] == 8).sum() for batch in steps] == [1, 2, 2]


def test_an_unreadable_image_is_left_out_of_an_evaluation(photographs):
    (photographs / "flower" / "2.jpg").write_bytes(b"not an image")
    feed, source = feed_of(photographs)
    masks = [np.asarray(b["mask"]) for b in feed.evaluation(8)]
    assert np.concatenate(masks).sum() == len(source) - 1


def test_too_many_bad_images_end_the_run_by_name(photographs):
    for number in (1, 4):
        (photographs / "china" / f"{number}.jpg").write_bytes(b"")
    feed, _ = feed_of(photographs, limit=1)
    with pytest.raises(DataError, match=r"china/[14]\.jpg, and data\.max_bad_images=1"):
        list(feed.training(0, 6))


def test_the_packaged_configs_are_valid():
    import sys

    sys.path.insert(0, str(ROOT))
    from configs.resnet18 import get_config

    for argument in ("digits", "cifar10", "imagenet2012", "folder=/somewhere"):
        freeze(get_config(argument))
