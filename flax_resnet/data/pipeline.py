"""tf.data: reads records by index, decodes only the crop, resizes, yields uint8 batches.

A batch is ``{"image": uint8 [n, S, S, 3], "label": int32 [n], "index": int32 [n], "mask": bool [n]}``, where n is
this process's share of the global batch. Which examples it holds is decided by data.order alone.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from flax_resnet.data.data_section import Data
from flax_resnet.data.decode import decodable, evaluation_pixels, training_pixels
from flax_resnet.data.records import Source
from flax_resnet.data.sampling import EpochSampler

tf.config.set_visible_devices([], "GPU")  # TensorFlow only feeds; the GPU belongs to JAX

Batch = dict[str, np.ndarray]
DECODE_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)
READERS = 2  # batches of records read at once: reading takes a thirtieth of the time of decoding


def training_batches(
    source: Source,
    sampler: EpochSampler,
    config: Data,
    *,
    batch_size: int,
    start_step: int,
    total_steps: int,
    rows: slice,
    bad: dict[int, int],
) -> Iterator[Batch]:
    """Yields the batches of steps start_step, ..., total_steps - 1.

    Args:
      source: the training split.
      sampler: which example stands where.
      config: the data section.
      batch_size: global batch size.
      start_step: first step; costs nothing to reach.
      total_steps: one past the last step.
      rows: this process's part of the global batch.
      bad: unreadable indices and the step each was found at; from there on it is replaced (`Order.substitute`).
        The step matters: a truncated JPEG may serve for one crop and not for the next.

    Raises:
      DECODE_ERRORS: an image cannot be decoded (`find_bad` says which).
    """

    def plan(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = training_indices(sampler, step, batch_size, rows, bad)
        places = step * batch_size + np.arange(batch_size)[rows]
        seeds = np.stack([np.full(len(places), sampler.seed), places], axis=1)
        return indices, np.ones(len(indices), bool), seeds

    def pixels(image: tf.Tensor, seed: tf.Tensor, orientation: tf.Tensor | None) -> tf.Tensor:
        return training_pixels(image, config, seed=seed, orientation=orientation)

    steps = range(start_step, total_steps)
    return _batches(source, config, steps, plan, pixels, size=rows.stop - rows.start)


def training_indices(
    sampler: EpochSampler, step: int, batch_size: int, rows: slice, bad: dict[int, int]
) -> np.ndarray:
    """Returns the examples of some rows of a step's global batch, int32, known bad ones replaced."""
    indices = sampler.batch(np, step, batch_size)[rows]
    known = frozenset(i for i, found in bad.items() if found <= step)
    if known:
        indices = [sampler.substitute(int(i), known) for i in indices]
    return np.asarray(indices, np.int32)


def evaluation_batches(
    source: Source,
    config: Data,
    *,
    batch_size: int,
    start_step: int,
    rows: slice,
    bad: frozenset[int],
    among: np.ndarray,
    crop: str = "",
) -> Iterator[Batch]:
    """Yields each example of `among` once, in order; the last batch is padded with masked repeats of a good one.

    Unreadable examples are masked. `crop` stands for `config.eval_crop`; other Args and Raises are those of
    `training_batches`.
    """
    good = next((int(i) for i in among if int(i) not in bad), int(among[0]))

    def plan(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = evaluation_indices(among, step, batch_size, rows)
        wanted = np.array([i >= 0 and int(i) not in bad for i in indices])
        nothing = np.zeros((len(indices), 2), np.int64)  # is drawn
        return np.where(wanted, indices, good).astype(np.int32), wanted, nothing

    def pixels(image: tf.Tensor, seed: tf.Tensor, orientation: tf.Tensor | None) -> tf.Tensor:
        del seed
        return evaluation_pixels(image, config, crop=crop, orientation=orientation)

    steps = range(start_step, -(-len(among) // batch_size))
    return _batches(source, config, steps, plan, pixels, size=rows.stop - rows.start)


def evaluation_indices(among: np.ndarray, step: int, batch_size: int, rows: slice) -> np.ndarray:
    """Returns the examples of some rows of an evaluation batch, int64; -1 behind the last one."""
    places = (step * batch_size + np.arange(batch_size))[rows]
    known = among[np.minimum(places, len(among) - 1)].astype(np.int64)
    return np.where(places < len(among), known, -1)


def _batches(
    source: Source,
    config: Data,
    steps: range,
    plan: Callable,
    pixels: Callable,
    *,
    size: int,
) -> Iterator[Batch]:
    """Runs plan (step -> indices, mask, seeds), read and decode as one parallel, ordered tf.data graph."""
    types = {
        "image": tf.string,
        "label": tf.int32,
        "index": tf.int32,
        "mask": tf.bool,
        "seed": tf.int64,
    }
    if source.orientations:
        types["orientation"] = tf.int32

    failed: list[Exception] = []

    def read(step: np.int64) -> list[np.ndarray]:
        indices, mask, seeds = plan(int(step))
        try:
            records = source.read(indices)
        except Exception as error:  # TensorFlow would hand on its text only
            failed.append(error)
            raise
        images = np.array([decodable(image) for image in records.images], object)
        read = [images, records.labels, indices, mask, seeds.astype(np.int64)]
        return [*read, records.orientations] if source.orientations else read

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        # Stateful, so that tf.data neither folds it away nor runs it twice for one step.
        loaded = tf.numpy_function(read, [step], list(types.values()), stateful=True)
        for name, array in zip(types, loaded, strict=True):
            array.set_shape([size, 2] if name == "seed" else [size])
        return dict(zip(types, loaded, strict=True))

    def decode(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        seed, orientation = example.pop("seed"), example.pop("orientation", None)
        return {**example, "image": pixels(example["image"], seed, orientation)}

    threads = config.threads or os.cpu_count() or 1
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = False
    dataset = tf.data.Dataset.range(steps.start, steps.stop)
    # Nothing for AutoGraph: conditions are tf.cond already. To convert them took 0.4 s of 8.7 to the first step.
    load, decode = map(tf.autograph.experimental.do_not_convert, (load, decode))
    dataset = dataset.map(load, num_parallel_calls=READERS).unbatch()
    # One more than threads, so that none waits while a batch is put together: 3 % on two cores.
    dataset = dataset.map(decode, num_parallel_calls=threads + 1)
    dataset = dataset.batch(size, drop_remainder=True).prefetch(2).with_options(options)
    batches = dataset.as_numpy_iterator()
    while True:
        try:
            batch = next(batches, None)
        except tf.errors.OpError:
            if failed:
                raise failed[0] from None
            raise
        if batch is None:
            return
        yield batch


def find_bad(source: Source, indices: np.ndarray) -> list[int]:
    """Returns those of the indices whose image cannot be decoded, one by one and whole."""
    bad = []
    for index in dict.fromkeys(int(i) for i in indices):
        try:
            image = decodable(source.read([index]).images[0])
            tf.io.decode_image(image, channels=3, expand_animations=False)
        except DECODE_ERRORS:
            bad.append(index)
    return bad
