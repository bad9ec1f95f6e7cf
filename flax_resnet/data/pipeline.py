"""tf.data: reads records by index, decodes only the crop, resizes, yields uint8 batches.

A batch is ``{"image": uint8 [n, S, S, 3], "label": int32 [n], "index": int32 [n], "mask": bool [n]}``, where n is
this process's share of the global batch. Which examples it holds is decided by data.order alone.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from flax_resnet.config import Data
from flax_resnet.data import order
from flax_resnet.data.source import Source

tf.config.set_visible_devices([], "GPU")  # TensorFlow only feeds; the GPU belongs to JAX

Batch = dict[str, np.ndarray]
DECODE_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)


def training_batches(
    source: Source,
    config: Data,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
    rows: slice,
    bad: dict[int, int],
) -> Iterator[Batch]:
    """Yields the batches of steps start_step, ..., total_steps - 1.

    Args:
      source: the training split.
      config: the data section.
      batch_size: global batch size.
      seed: the run's seed.
      start_step: first step; costs nothing to reach.
      total_steps: one past the last step.
      rows: this process's part of the global batch.
      bad: unreadable indices and the step each was found at; from there on it is replaced, by a function
        of the index alone. (The step matters: a truncated JPEG may serve for one crop and not for the next.)

    Raises:
      DECODE_ERRORS: an image cannot be decoded (`find_bad` says which).
    """

    def plan(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices = order.training_batch(
            np, int(step), size=len(source), batch_size=batch_size, seed=seed
        )[rows]
        known = frozenset(i for i, found in bad.items() if found <= step)
        replaced = [order.substitute(int(i), size=len(source), bad=known) for i in indices]
        places = int(step) * batch_size + np.arange(batch_size)[rows]
        return np.array(replaced, np.int32), np.stack([np.full(len(places), seed), places], axis=1)

    def decode(image: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        return decode_image(image, config, crop=config.train_crop, seed=place)

    steps = range(start_step, total_steps)
    return _batches(source, config, steps, plan, decode, size=rows.stop - rows.start)


def evaluation_batches(
    source: Source,
    config: Data,
    *,
    batch_size: int,
    start_step: int,
    rows: slice,
    bad: frozenset[int],
) -> Iterator[Batch]:
    """Yields every example once, in order; the last batch is padded with masked repeats of example 0.

    Unreadable examples are masked. Args and Raises are those of `training_batches`.
    """

    def plan(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices = (int(step) * batch_size + np.arange(batch_size))[rows]
        wanted = [i < len(source) and int(i) not in bad for i in indices]
        good = order.substitute(0, size=len(source), bad=bad)
        return np.where(wanted, indices, good).astype(np.int32), np.stack([wanted, wanted], axis=1)

    def decode(image: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        del place
        return decode_image(image, config, crop=config.eval_crop)

    steps = range(start_step, -(-len(source) // batch_size))
    for batch in _batches(source, config, steps, plan, decode, size=rows.stop - rows.start):
        batch["mask"] = batch.pop("place")[:, 0].astype(bool)
        yield batch


def _batches(
    source: Source,
    config: Data,
    steps: range,
    plan: Callable,
    decode: Callable,
    *,
    size: int,
) -> Iterator[Batch]:
    """Runs plan (step -> indices, places), read and decode as one parallel, ordered tf.data graph."""

    def read(step: np.int64) -> tuple[np.ndarray, ...]:
        indices, places = plan(step)
        records = source.read(indices)
        return np.array(records.images, object), records.labels, indices, places.astype(np.int64)

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        # Stateful, so that tf.data neither folds it away nor runs it twice for one step.
        image, label, index, place = tf.numpy_function(
            read, [step], [tf.string, tf.int32, tf.int32, tf.int64], stateful=True
        )
        image.set_shape([size])
        label.set_shape([size])
        index.set_shape([size])
        place.set_shape([size, 2])
        return {"image": image, "label": label, "index": index, "place": place}

    def to_pixels(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**example, "image": decode(example["image"], example["place"])}

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = config.threads or os.cpu_count() or 1
    options.autotune.enabled = False
    dataset = tf.data.Dataset.range(steps.start, steps.stop)
    dataset = dataset.map(load, num_parallel_calls=2).unbatch()
    dataset = dataset.map(to_pixels, num_parallel_calls=config.threads or os.cpu_count() or 1)
    dataset = dataset.batch(size, drop_remainder=True).prefetch(2).with_options(options)
    for batch in dataset.as_numpy_iterator():
        batch.setdefault("mask", np.ones(size, bool))
        yield batch


def find_bad(source: Source, indices: np.ndarray) -> list[int]:
    """Returns those of the indices whose image cannot be decoded, one by one and whole."""
    bad = []
    for index in dict.fromkeys(int(i) for i in indices):
        try:
            tf.io.decode_image(source.read([index]).images[0], channels=3, expand_animations=False)
        except DECODE_ERRORS:
            bad.append(index)
    return bad


def decode_image(
    encoded: tf.Tensor, config: Data, *, crop: str, seed: tf.Tensor | None = None
) -> tf.Tensor:
    """Decodes the crop of one image and resizes it.

    Args:
      encoded: string scalar; JPEG, PNG, BMP, WebP or the first frame of a GIF.
      config: the data section (size, crop, interpolation).
      crop: "resize" (whole image), "center" or "random_resized".
      seed: int64 [2], for "random_resized".

    Returns:
      uint8 [image_size, image_size, 3].
    """
    size = config.image_size

    def window(shape: tf.Tensor) -> tf.Tensor:
        if crop == "random_resized":
            return random_window(shape, config.crop_area, config.crop_aspect, seed)
        if crop == "center":
            return center_window(shape, config.eval_crop_fraction)
        return tf.stack([0, 0, shape[0], shape[1]])

    def jpeg() -> tf.Tensor:
        box = window(tf.io.extract_jpeg_shape(encoded)[:2])
        # The accurate transform and fancy upsampling are what Pillow uses, so predict() sees the same pixels.
        return tf.io.decode_and_crop_jpeg(encoded, box, channels=3, dct_method="INTEGER_ACCURATE")

    def other() -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        box = window(tf.shape(image)[:2])
        return image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    image.set_shape([None, None, 3])

    def resized() -> tf.Tensor:
        scaled = tf.image.resize(image, [size, size], config.interpolation, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(scaled), 0, 255), tf.uint8)

    shape = tf.shape(image)
    fits = tf.logical_and(shape[0] == size, shape[1] == size)
    image = tf.cond(fits, lambda: image, resized)
    return tf.ensure_shape(image, [size, size, 3])


def center_window(shape: tf.Tensor, fraction: float) -> tf.Tensor:
    """Returns the centred square [top, left, side, side] of fraction x the short side, int32."""
    short = tf.minimum(shape[0], shape[1])
    side = tf.maximum(1, tf.cast(tf.round(fraction * tf.cast(short, tf.float32)), tf.int32))
    return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])


def random_window(
    shape: tf.Tensor, area: tuple[float, float], aspect: tuple[float, float], seed: tf.Tensor
) -> tf.Tensor:
    """Draws torchvision's RandomResizedCrop: ten tries, then the largest centred box of allowed aspect.

    Args:
      shape: int32 [2], height and width.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest width / height, drawn evenly on a log scale.
      seed: int64 [2]; the same seed gives the same window.

    Returns:
      int32 [4]: top, left, height, width.

    Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    height, width = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    draws = tf.random.stateless_uniform([4, 10], seed)
    target = height * width * (area[0] + draws[0] * (area[1] - area[0]))
    low, high = np.log(aspect[0]), np.log(aspect[1])
    ratio = tf.exp(low + draws[1] * (high - low))
    heights, widths = tf.round(tf.sqrt(target / ratio)), tf.round(tf.sqrt(target * ratio))
    fits = (heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width)

    def drawn() -> tf.Tensor:
        first = tf.argmax(tf.cast(fits, tf.int32))
        h, w = heights[first], widths[first]
        top = tf.floor(draws[2][first] * (height - h + 1))
        left = tf.floor(draws[3][first] * (width - w + 1))
        return tf.cast(tf.stack([top, left, h, w]), tf.int32)

    def fallback() -> tf.Tensor:
        h = tf.minimum(height, tf.round(width / aspect[0]))
        w = tf.minimum(width, tf.round(height * aspect[1]))
        top, left = (height - h) // 2, (width - w) // 2
        return tf.cast(tf.stack([top, left, h, w]), tf.int32)

    return tf.cond(tf.reduce_any(fits), drawn, fallback)
