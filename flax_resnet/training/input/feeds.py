"""Batches for the compiled step: streamed ahead of it, or gathered inside it from a set on the device.

A feed yields what changes from call to call, and holds in `data` what does not; its two pure functions turn
both into batches inside the compiled step: ``{"image": uint8 [N, S, S, 3], "label": int32 [N], "index": int32 [N],
"mask": bool [N]}``, the global batch. With `train.steps_per_call` above 1, what it yields has a leading axis
[steps]. Both feeds give the same bits.
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
      data: what does not change from call to call, on the devices; its "seed" is that of the order.
    """

    data: Batch

    @property
    def bad(self) -> dict[int, int]:
        """Return the unreadable examples, and the step at which each was found."""

    def training(self, start_step: int, total_steps: int) -> Iterator[Any]:
        """Yield what changes, for each call from a step on. Raises DataError as `HostBatches` does."""

    def calls(self, start_step: int, total_steps: int) -> list[Any]:
        """Return the shapes of what `training` yields, each once."""

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Yield what changes for each batch of a pass over the split. Raises as `training`."""

    def training_batch(self, data: Batch, call: Any) -> Batch:
        """Return the batch of a step; traced inside the compiled step."""

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
    """Returns the configured feed of a split.

    Args:
      source: the split.
      sampler: its order in training, and which of its examples are used.
      config: the configuration.
      mesh: where batches go.
      crop: how the split's images are cut; what is cut at random cannot be resident.
      sizes: of training images: `Plan.sizes`.
      bad: unreadable images known from a checkpoint.
    """
    if config.keeps_resident(sampler.epoch_size, crop):
        return ResidentFeed(source, sampler, config, mesh, crop=crop, bad=bad)
    return StreamingFeed(source, sampler, config, mesh, sizes=sizes, bad=bad)


def every_example(
    source: Source, config: Config, mesh: Mesh, *, batch_size: int, limit: int = 0
) -> Iterator[Batch]:
    """Streams a split once, cut as for evaluation, for a pass outside a run.

    Args:
      source: the split.
      config: the configuration.
      mesh: where batches go.
      batch_size: images per batch; rounded up to divide over the devices.
      limit: most examples, the random subset that `data.limit` takes; 0 for all.

    Returns:
      Batches as `StreamingFeed.evaluation` yields them, which raises what `HostBatches` does.
    """
    kept = min(limit, len(source))
    order = EpochSampler(len(source), seed=0, kept=kept, subset_seed=config.data.split_seed)
    feed = StreamingFeed(source, order, config.evaluating(), mesh)
    return feed.evaluation(sharding.round_up(mesh, batch_size))


class StreamingFeed:
    """Decodes batches on the host while the device works on the ones before.

    Attributes:
      data: seed uint32 [], of the order: the run's in training, 0 in evaluation.
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
        self.data = _replicated({"seed": np.uint32(sampler.seed)}, mesh)
        self._host = HostBatches(source, config.data, bad)
        self._sampler, self._config, self._mesh = sampler, config, mesh

    @property
    def bad(self) -> dict[int, int]:
        """Returns the unreadable examples and the step at which each was found."""
        return self._host.bad

    def training(self, start_step: int, total_steps: int) -> Iterator[Batch]:
        """Yields the batches of each call: arrays [N, ...], or [steps, N, ...]; raises as `HostBatches` does."""
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
        """Returns the shapes of what `training` yields, each once."""
        found = calls_of(start_step, total_steps, self._config.train.steps_per_call)
        kinds = dict.fromkeys((count, self._size(step)) for step, count in found)
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
        """Yields every example once, padded and masked to full batches; raises as `HostBatches` does."""
        rows = sharding.local_rows(batch_size)
        batches = self._host.evaluation(self._sampler.used, batch_size=batch_size, rows=rows)
        return self._ahead(batches, steps=False)

    def training_batch(self, data: Any, batch: Batch) -> Batch:
        """Returns the batch of a step inside the compiled function: it is there already."""
        return batch

    def evaluation_batch(self, data: Any, batch: Batch) -> Batch:
        """Returns the batch, as `training_batch` does."""
        return batch

    def _ahead(self, batches: Iterable[dict[str, np.ndarray]], *, steps: bool) -> Iterator[Batch]:
        """Places batches on the device before they are asked for."""
        waiting: deque[Batch] = deque()
        for batch in batches:
            waiting.append(sharding.place(batch, self._mesh, steps=steps))
            if len(waiting) > self._config.train.prefetch:
                yield waiting.popleft()
        yield from waiting


class ResidentFeed:
    """Keeps the whole split on every device as uint8; order and gather are part of the compiled step.

    Attributes:
      data: seed uint32 [], of the order; of the examples used image uint8 [n, S, S, 3], label and index int32 [n],
        where at the place of an unreadable one stands its substitute.
      bad: the unreadable examples, all found at step 0.
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
            place, other = np.searchsorted(sampler.used, [index, good])
            for array in arrays.values():
                array[place] = array[other]
        self.data = _replicated({"seed": np.uint32(sampler.seed), **arrays}, mesh)

    def training(self, start_step: int, total_steps: int) -> Iterator[np.ndarray]:
        """Yields the number of each call's step: uint32 []; or of its steps: uint32 [steps]."""
        per_call = self._config.train.steps_per_call
        for first, count in calls_of(start_step, total_steps, per_call):
            steps = np.arange(first, first + count, dtype=np.uint32)
            yield steps if per_call > 1 else steps.reshape(())

    def calls(self, start_step: int, total_steps: int) -> list[jax.ShapeDtypeStruct]:
        """Returns the shapes of what `training` yields, each once."""
        found = calls_of(start_step, total_steps, self._config.train.steps_per_call)
        counts = dict.fromkeys(count for _, count in found)
        several = self._config.train.steps_per_call > 1
        return [jax.ShapeDtypeStruct((count,) * several, np.uint32) for count in counts]

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Yields place and mask of every example once, padded to full batches; the unreadable are masked."""
        used, rows = self._sampler.used, sharding.local_rows(batch_size)
        for start in range(0, len(used), batch_size):
            place = start + np.arange(batch_size, dtype=np.int32)[rows]
            within = np.minimum(place, len(used) - 1)
            mask = (place < len(used)) & ~np.isin(used[within], list(self.bad))
            yield sharding.place({"place": within, "mask": mask}, self._mesh, steps=False)

    def training_batch(self, data: Batch, step: jax.Array) -> Batch:
        """Gathers the batch of a step inside the compiled function."""
        size = self._config.train.batch_size
        place = self._sampler.batch(jnp, step, size, data["seed"])
        if self._sampler.epoch_size < self._sampler.size:
            place = jnp.searchsorted(jnp.asarray(self._sampler.used), place)
        return self._gathered(data, place, jnp.ones(size, bool))

    def evaluation_batch(self, data: Batch, places: Batch) -> Batch:
        """Gathers an evaluation batch inside the compiled function."""
        return self._gathered(data, places["place"], places["mask"])

    def _gathered(self, data: Batch, place: jax.Array, mask: jax.Array) -> Batch:
        chosen = {
            name: data[name].at[place].get(mode="clip") for name in ("image", "label", "index")
        }
        return jax.lax.with_sharding_constraint(
            {**chosen, "mask": mask}, sharding.split(self._mesh)
        )


def _replicated(arrays: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Places arrays on every device."""
    whole = sharding.replicated(mesh)
    return {
        name: jax.make_array_from_process_local_data(whole, np.asarray(array))
        for name, array in arrays.items()
    }


def _load(host: HostBatches, used: np.ndarray, size: int, crop: str) -> dict[str, np.ndarray]:
    """Decodes the examples that are used. Raises DataError as `HostBatches` does."""
    count = len(used)
    arrays: dict[str, np.ndarray] = {
        "image": np.empty((count, size, size, 3), np.uint8),
        "label": np.empty(count, np.int32),
        "index": used.astype(np.int32),
    }
    batch_size = min(LOADING_BATCH, count)
    batches = host.evaluation(used, batch_size=batch_size, rows=slice(0, batch_size), crop=crop)
    shown = sys.stderr.isatty()
    with tqdm(total=count, unit="img", desc="decoding", leave=False, disable=not shown) as bar:
        for batch in batches:
            kept = batch["mask"]
            place = np.searchsorted(used, batch["index"][kept])
            for name in ("image", "label"):
                arrays[name][place] = batch[name][kept]
            bar.update(int(kept.sum()))
    return arrays


def calls_of(start_step: int, total_steps: int, steps_per_call: int) -> Iterator[tuple[int, int]]:
    """Yields first step and number of steps of each call; calls end at multiples of `steps_per_call`.

    >>> list(calls_of(3, 11, 4))
    [(3, 1), (4, 4), (8, 3)]
    """
    step = start_step
    while step < total_steps:
        end = min((step // steps_per_call + 1) * steps_per_call, total_steps)
        yield step, end - step
        step = end


def stacked(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the batches of some steps along a new leading axis."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
