"""Batches for the compiled step: streamed from the host, or gathered from a decoded split on the device.

    feed.data                      arrays that stay the same in all calls
    feed.training(...)             yields the arrays that change from call to call
    feed.training_batch(data, x)   combines both into a batch, inside the compiled step

A batch is global: ``{"image": uint8 [N, S, S, 3], "label": int32 [N], "index": int32 [N], "mask": bool [N]}``. With
`train.steps_per_call` above 1, `training` yields arrays with a leading axis [steps]. Both feeds give identical
batches.
"""

import itertools
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from flax_resnet.config import Config
from flax_resnet.data.records import Source
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.training import sharding
from flax_resnet.training.input.host_batches import HostBatches

Batch = dict[str, jax.Array]

LOADING_BATCH = 512


class Feed(Protocol):
    """The batches of a split.

    Attributes:
      data: arrays on the devices that stay the same in all calls; "seed" is the seed of the order.
    """

    data: Batch

    @property
    def bad(self) -> dict[int, int]:
        """Return {index of an unreadable example: step at which it was found}."""

    def learn_bad(self, bad: dict[int, int]) -> None:
        """Take in the unreadable examples of all processes. Raises DataError if they are too many."""

    def training(self, start_step: int, total_steps: int) -> Iterator[Any]:
        """Yield the input of each call, from `start_step` on. Raises DataError as `HostBatches` does."""

    def calls(self, start_step: int, total_steps: int) -> list[Any]:
        """Return the distinct shapes of the inputs that `training` yields."""

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Yield the input of each batch of one pass over the split. Raises DataError as `HostBatches` does."""

    def training_batch(self, data: Batch, call: Any) -> Batch:
        """Return the training batch of a step; traced inside the compiled step."""

    def evaluation_batch(self, data: Batch, batch: Any) -> Batch:
        """Return an evaluation batch; traced inside the compiled step."""


def make_feed(
    source: Source,
    sampler: EpochSampler,
    config: Config,
    mesh: Mesh,
    *,
    crop: str,
    sizes: tuple[tuple[int, int], ...] = (),
    bad: dict[int, int] | None = None,
) -> Feed:
    """Return the configured feed of a split.

    Args:
      source: the split.
      sampler: the order of the examples in training, and the examples in use.
      config: the configuration.
      mesh: the devices to place batches on.
      crop: crop of the split's images; a split with random crops cannot be resident.
      sizes: sizes of the training images, as `Plan.sizes`.
      bad: known unreadable images, from a checkpoint.
    """
    if config.keeps_resident(sampler.epoch_size, crop):
        return ResidentFeed(source, sampler, config, mesh, crop=crop, bad=bad)
    return StreamingFeed(source, sampler, config, mesh, sizes=sizes, bad=bad)


def every_example(
    source: Source, config: Config, mesh: Mesh, *, batch_size: int, limit: int = 0
) -> Iterator[Batch]:
    """Return the batches of one pass over a split outside a run, with the crop of evaluation.

    Args:
      source: the split.
      config: the configuration.
      mesh: the devices to place batches on.
      batch_size: images per batch; rounded up to a multiple of the number of devices.
      limit: largest number of examples, the same random subset as for `data.limit`; 0 for all.

    Returns:
      The batches of `StreamingFeed.evaluation`. Iterating over them raises as `HostBatches` does.
    """
    sampler = EpochSampler(
        len(source),
        seed=0,
        subset_size=min(limit, len(source)),
        subset_seed=config.data.split_seed,
    )
    feed = StreamingFeed(source, sampler, config.evaluating(), mesh)
    return feed.evaluation(sharding.round_up(mesh, batch_size))


class StreamingFeed:
    """A feed that decodes batches on the host while the device works on earlier ones.

    Attributes:
      data: "seed", uint32 []: the run's seed in training, 0 in evaluation.
      bad: as in `HostBatches`.
    """

    def __init__(
        self,
        source: Source,
        sampler: EpochSampler,
        config: Config,
        mesh: Mesh,
        *,
        sizes: tuple[tuple[int, int], ...] = (),
        bad: dict[int, int] | None = None,
    ):
        self._sizes = sizes or ((0, config.data.image_size),)
        self.data = sharding.replicate({"seed": np.uint32(sampler.seed)}, mesh)
        self._host = HostBatches(source, config.data, bad)
        self._sampler, self._config, self._mesh = sampler, config, mesh

    @property
    def bad(self) -> dict[int, int]:
        """Return {index of an unreadable example: step at which it was found}."""
        return self._host.bad

    def learn_bad(self, bad: dict[int, int]) -> None:
        """Take in the unreadable examples of all processes. Raises DataError if they are too many."""
        self._host.learn_bad(bad)

    def training(self, start_step: int, total_steps: int) -> Iterator[Batch]:
        """Yield the batches of each call, arrays [N, ...] or [steps, N, ...]. Raises as `HostBatches` does."""
        train = self._config.train
        ends = [start for start, _ in self._sizes[1:]] + [total_steps]
        parts = (
            self._host.training(
                self._sampler,
                batch_size=train.batch_size,
                start_step=max(start, start_step),
                total_steps=min(end, total_steps),
                rows=sharding.local_rows(train.batch_size),
                image_size=size,
            )
            for (start, size), end in zip(self._sizes, ends, strict=True)
            if max(start, start_step) < min(end, total_steps)
        )
        batches = itertools.chain.from_iterable(parts)
        if train.steps_per_call == 1:
            return self._ahead(batches, steps=False)
        calls = (
            stacked(list(itertools.islice(batches, count)))
            for _, count in calls_of(start_step, total_steps, train.steps_per_call)
        )
        return self._ahead(calls, steps=True)

    def calls(self, start_step: int, total_steps: int) -> list[Any]:
        """Return the distinct shapes of the inputs that `training` yields."""
        calls = calls_of(start_step, total_steps, self._config.train.steps_per_call)
        kinds = dict.fromkeys((count, self._size(step)) for step, count in calls)
        return [self._shapes(count, size) for count, size in kinds]

    def _size(self, step: int) -> int:
        return next(size for start, size in reversed(self._sizes) if start <= step)

    def _shapes(self, steps: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        several = self._config.train.steps_per_call > 1
        rows = (steps,) * several + (self._config.train.batch_size,)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((*rows, size, size, 3), np.uint8),
            "label": (rows, np.int32),
            "index": (rows, np.int32),
            "mask": (rows, bool),
        }
        where = sharding.split_steps(self._mesh) if several else sharding.split(self._mesh)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
            for name, (shape, dtype) in shapes.items()
        }

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Yield every example once; the padding of the last batch is masked. Raises as `HostBatches` does."""
        rows = sharding.local_rows(batch_size)
        batches = self._host.evaluation(self._sampler.used, batch_size=batch_size, rows=rows)
        return self._ahead(batches, steps=False)

    def training_batch(self, data: Any, batch: Batch) -> Batch:
        """Return `batch` unchanged: it is complete already."""
        return batch

    def evaluation_batch(self, data: Any, batch: Batch) -> Batch:
        """Return `batch` unchanged: it is complete already."""
        return batch

    def _ahead(self, batches: Iterable[dict[str, np.ndarray]], *, steps: bool) -> Iterator[Batch]:
        """Place `train.prefetch` batches on the device ahead of the consumer, and yield them."""
        waiting: deque[Batch] = deque()
        for batch in batches:
            waiting.append(sharding.place(batch, self._mesh, steps=steps))
            if len(waiting) > self._config.train.prefetch:
                yield waiting.popleft()
        yield from waiting


class ResidentFeed:
    """A feed that keeps the decoded split on every device; the compiled step gathers each batch from it.

    Attributes:
      data: "seed", uint32 []; and for the n examples in use "image", uint8 [n, S, S, 3], "label" and "index",
        int32 [n]. The row of an unreadable example holds its substitute.
      bad: {index of an unreadable example: 0}; all are found at step 0.
    """

    def __init__(
        self,
        source: Source,
        sampler: EpochSampler,
        config: Config,
        mesh: Mesh,
        *,
        crop: str,
        bad: dict[int, int] | None = None,
    ):
        self._sampler, self._config, self._mesh = sampler, config, mesh
        host = HostBatches(source, config.data, bad)
        arrays = _load(host, sampler.used, config.data.image_size, crop)
        self.bad = dict.fromkeys(host.bad, 0)
        known = frozenset(self.bad)
        for index in known & set(sampler.used.tolist()):
            good = sampler.substitute(index, known)
            bad_row, good_row = np.searchsorted(sampler.used, [index, good])
            for array in arrays.values():
                array[bad_row] = array[good_row]
        self.data = sharding.replicate({"seed": np.uint32(sampler.seed), **arrays}, mesh)

    def learn_bad(self, bad: dict[int, int]) -> None:
        """Do nothing: each process has decoded the whole split."""

    def training(self, start_step: int, total_steps: int) -> Iterator[np.ndarray]:
        """Yield the step numbers of each call: uint32 [steps], or uint32 [] with one step per call."""
        per_call = self._config.train.steps_per_call
        for first, count in calls_of(start_step, total_steps, per_call):
            steps = np.arange(first, first + count, dtype=np.uint32)
            yield steps if per_call > 1 else steps.reshape(())

    def calls(self, start_step: int, total_steps: int) -> list[jax.ShapeDtypeStruct]:
        """Return the distinct shapes of the inputs that `training` yields."""
        calls = calls_of(start_step, total_steps, self._config.train.steps_per_call)
        counts = dict.fromkeys(count for _, count in calls)
        several = self._config.train.steps_per_call > 1
        return [jax.ShapeDtypeStruct((count,) * several, np.uint32) for count in counts]

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Yield "row" and "mask" of each batch; padding and unreadable examples are masked."""
        used, rows = self._sampler.used, sharding.local_rows(batch_size)
        for start in range(0, len(used), batch_size):
            position = start + np.arange(batch_size, dtype=np.int32)[rows]
            row = np.minimum(position, len(used) - 1)
            mask = (position < len(used)) & ~np.isin(used[row], list(self.bad))
            yield sharding.place({"row": row, "mask": mask}, self._mesh, steps=False)

    def training_batch(self, data: Batch, step: jax.Array) -> Batch:
        """Compute which examples belong to a step, and gather them."""
        size = self._config.train.batch_size
        row = self._sampler.batch(jnp, step, size, data["seed"])
        if self._sampler.epoch_size < self._sampler.size:
            row = jnp.searchsorted(jnp.asarray(self._sampler.used), row)
        return self._gathered(data, row, jnp.ones(size, bool))

    def evaluation_batch(self, data: Batch, rows: Batch) -> Batch:
        """Gather an evaluation batch."""
        return self._gathered(data, rows["row"], rows["mask"])

    def _gathered(self, data: Batch, row: jax.Array, mask: jax.Array) -> Batch:
        chosen = {name: data[name].at[row].get(mode="clip") for name in ("image", "label", "index")}
        return jax.lax.with_sharding_constraint(
            {**chosen, "mask": mask}, sharding.split(self._mesh)
        )


def _load(host: HostBatches, used: np.ndarray, size: int, crop: str) -> dict[str, np.ndarray]:
    """Decode the examples in use into arrays. Raises DataError as `HostBatches` does."""
    count = len(used)
    arrays: dict[str, np.ndarray] = {
        "image": np.empty((count, size, size, 3), np.uint8),
        "label": np.empty(count, np.int32),
        "index": used.astype(np.int32),
    }
    batch_size = min(LOADING_BATCH, count)
    batches = host.evaluation(used, batch_size=batch_size, rows=slice(0, batch_size), crop=crop)
    shown = sys.stderr.isatty() and jax.process_index() == 0
    with tqdm(total=count, unit="img", desc="decoding", leave=False, disable=not shown) as bar:
        for batch in batches:
            mask = batch["mask"]
            rows = np.searchsorted(used, batch["index"][mask])
            for name in ("image", "label"):
                arrays[name][rows] = batch[name][mask]
            bar.update(int(mask.sum()))
    return arrays


def calls_of(start_step: int, total_steps: int, steps_per_call: int) -> Iterator[tuple[int, int]]:
    """Yield (first step, number of steps) of each call; calls end at multiples of `steps_per_call`.

    >>> list(calls_of(3, 11, 4))
    [(3, 1), (4, 4), (8, 3)]
    """
    step = start_step
    while step < total_steps:
        end = min((step // steps_per_call + 1) * steps_per_call, total_steps)
        yield step, end - step
        step = end


def stacked(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack the batches of several steps along a new leading axis."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
