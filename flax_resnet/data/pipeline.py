"""The tf.data pipeline: read records by index, decode only the crop, resize, and yield uint8 batches.

A batch is ``{"image": uint8 [n, S, S, 3], "label": int32 [n], "index": int32 [n], "mask": bool [n]}``, where n is
this process's share of the global batch. `data.sampling` alone decides which examples a batch holds.
"""

import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from flax_resnet.data.data_section import Data
from flax_resnet.data.decodable import decodable
from flax_resnet.data.decode import evaluation_pixels, training_pixels
from flax_resnet.data.records import Source, read_labelled
from flax_resnet.data.sampling import EpochSampler

tf.config.set_visible_devices([], "GPU")  # TensorFlow only loads data; JAX uses the GPU

Batch = dict[str, np.ndarray]
DECODE_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)
READERS = 2  # batches of records read in parallel; reading takes 1/30 of the time of decoding


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
    """Yield the batches of steps start_step, ..., total_steps - 1.

    Args:
      source: the training split.
      sampler: the order of the examples.
      config: the data section.
      batch_size: global batch size.
      start_step: first step; earlier steps are skipped at no cost.
      total_steps: one past the last step.
      rows: this process's rows of the global batch.
      bad: index of each unreadable example -> step at which it was found. From that step on, the example is
        replaced (`EpochSampler.substitute`). Earlier steps keep it: one crop of a truncated JPEG may be readable,
        and the next one not.

    Raises:
      DECODE_ERRORS: an image cannot be decoded; `find_bad` finds out which image.
    """

    def plan(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = training_indices(sampler, step, batch_size, rows, bad)
        positions = step * batch_size + np.arange(batch_size)[rows]
        seeds = np.stack([np.full(len(positions), sampler.seed), positions], axis=1)
        return indices, np.ones(len(indices), bool), seeds

    def pixels(image: tf.Tensor, seed: tf.Tensor, orientation: tf.Tensor | None) -> tf.Tensor:
        return training_pixels(image, config, seed=seed, orientation=orientation)

    steps = range(start_step, total_steps)
    return _batches(source, config, steps, plan, pixels, size=rows.stop - rows.start)


def training_indices(
    sampler: EpochSampler, step: int, batch_size: int, rows: slice, bad: dict[int, int]
) -> np.ndarray:
    """Return the example indices of some rows of a step's global batch, int32; known bad examples are replaced."""
    indices = sampler.batch(np, step, batch_size)[rows]
    known = frozenset(i for i, found in dict(bad).items() if found <= step)
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
    """Yield each example of `among` once, in order.

    One readable example, with mask False, fills the rest of the last batch and replaces unreadable examples. `crop`
    overrides `config.eval_crop`; the other arguments and errors are those of `training_batches`.
    """
    good = next((int(i) for i in among if int(i) not in bad), int(among[0]))

    def plan(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = evaluation_indices(among, step, batch_size, rows)
        wanted = np.array([i >= 0 and int(i) not in bad for i in indices])
        seeds = np.zeros((len(indices), 2), np.int64)  # unused: evaluation draws nothing
        return np.where(wanted, indices, good).astype(np.int32), wanted, seeds

    def pixels(image: tf.Tensor, seed: tf.Tensor, orientation: tf.Tensor | None) -> tf.Tensor:
        del seed
        return evaluation_pixels(image, config, crop=crop, orientation=orientation)

    steps = range(start_step, -(-len(among) // batch_size))
    return _batches(source, config, steps, plan, pixels, size=rows.stop - rows.start)


def evaluation_indices(among: np.ndarray, step: int, batch_size: int, rows: slice) -> np.ndarray:
    """Return the example indices of some rows of an evaluation batch, int64; -1 after the last example."""
    positions = (step * batch_size + np.arange(batch_size))[rows]
    known = among[np.minimum(positions, len(among) - 1)].astype(np.int64)
    return np.where(positions < len(among), known, -1)


def _batches(
    source: Source,
    config: Data,
    steps: range,
    plan: Callable,
    pixels: Callable,
    *,
    size: int,
) -> Iterator[Batch]:
    """Yield batches from a parallel, ordered tf.data graph: plan (step -> indices, mask, seeds), read, decode."""
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
            records = read_labelled(source, indices)
        except Exception as error:  # TensorFlow would pass on only the error's text
            failed.append(error)
            raise
        images = np.array([decodable(image) for image in records.images], object)
        read = [images, records.labels, indices, mask, seeds.astype(np.int64)]
        if source.orientations:
            assert records.orientations is not None  # such a source reads them with every image
            read.append(records.orientations)
        return read

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        # Stateful, so that tf.data does not fold it into a constant or run it twice for a step.
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
    # No AutoGraph: all conditions are tf.cond already. AutoGraph would take 0.4 s of the 8.7 s to the first step.
    load, decode = map(tf.autograph.experimental.do_not_convert, (load, decode))
    dataset = dataset.map(load, num_parallel_calls=READERS).unbatch()
    # One more call than threads, so that no thread waits while a batch is assembled: 3 % faster on two cores.
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
    """Return the indices whose images cannot be decoded; each whole image is decoded by itself."""
    bad = []
    for index in dict.fromkeys(int(i) for i in indices):
        try:
            image = decodable(source.read([index]).images[0])
            tf.io.decode_image(image, channels=3, expand_animations=False)
        except DECODE_ERRORS:
            bad.append(index)
    return bad
