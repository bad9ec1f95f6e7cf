"""Batches on the device, ahead of the step; unreadable images named, counted and replaced."""

import logging
from collections import deque
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.data import order, pipeline
from flax_resnet.data.source import Source
from flax_resnet.errors import DataError, one_line
from flax_resnet.training import sharding

log = logging.getLogger("flax_resnet")
DeviceBatch = dict[str, jax.Array]


class StreamingFeed:
    """Decodes batches on the host while the device works on the ones before.

    Attributes:
      bad: unreadable training examples and the step at which each was found. It is part of what a
        checkpoint must hold to resume exactly.
    """

    def __init__(
        self, source: Source, config: Config, mesh: Mesh, bad: dict[int, int] | None = None
    ):
        self.bad = dict(bad or {})
        self._source, self._config, self._mesh = source, config, mesh

    def training(self, start_step: int, total_steps: int) -> Iterator[DeviceBatch]:
        """Yields the global batches of the steps from start_step on: image, label, index, mask.

        Raises:
          DataError: more than `data.max_bad_images` images cannot be decoded.
        """
        train, size = self._config.train, len(self._source)
        rows = sharding.local_rows(train.batch_size)

        def batches(start: int) -> Iterator[pipeline.Batch]:
            return pipeline.training_batches(
                self._source,
                self._config.data,
                batch_size=train.batch_size,
                seed=train.seed,
                start_step=start,
                total_steps=total_steps,
                rows=rows,
                bad=self.bad,
            )

        def candidates(step: int) -> np.ndarray:
            indices = order.training_batch(
                np, step, size=size, batch_size=train.batch_size, seed=train.seed
            )
            return np.array(
                [
                    order.substitute(int(i), size=size, bad=frozenset(self.bad))
                    for i in indices[rows]
                ]
            )

        return self._ahead(self._mended(batches, candidates, start_step))

    def evaluation(self, batch_size: int) -> Iterator[DeviceBatch]:
        """Yields every example once, padded and masked to full batches; raises as `training` does."""
        rows = sharding.local_rows(batch_size)

        def batches(start: int) -> Iterator[pipeline.Batch]:
            return pipeline.evaluation_batches(
                self._source,
                self._config.data,
                batch_size=batch_size,
                start_step=start,
                rows=rows,
                bad=frozenset(self.bad),
            )

        def candidates(step: int) -> np.ndarray:
            indices = (step * batch_size + np.arange(batch_size))[rows]
            return np.array([i for i in indices if i < len(self._source) and i not in self.bad])

        return self._ahead(self._mended(batches, candidates, 0))

    def _mended(
        self, batches: Callable, candidates: Callable, start: int
    ) -> Iterator[pipeline.Batch]:
        """Yields batches(start); where one cannot be decoded, finds out why and goes on from there."""
        step, iterator = start, batches(start)
        while True:
            try:
                batch = next(iterator, None)
            except pipeline.DECODE_ERRORS as error:
                found = pipeline.find_bad(self._source, candidates(step))
                if not found:  # the decoder names no image; what it says is all there is
                    raise DataError(f"cannot read step {step}: {one_line(error)}") from error
                self._note_bad(found, step)
                iterator = batches(step)
                continue
            if batch is None:
                return
            yield batch
            step += 1

    def _note_bad(self, found: list[int], step: int) -> None:
        limit = self._config.data.max_bad_images
        for index in found:
            if len(self.bad) >= limit:
                raise DataError(
                    f"cannot decode {self._source.describe(index)}, and data.max_bad_images={limit} "
                    "unreadable images are allowed: mend or remove it, or allow more"
                )
            self.bad[index] = step
            if len(self.bad) == len(self._source):
                raise DataError(f"none of the {len(self.bad)} images can be decoded")
            log.warning(
                "cannot decode %s: left out (%d of at most %d)",
                self._source.describe(index),
                len(self.bad),
                limit,
            )

    def _ahead(self, batches: Iterator[pipeline.Batch]) -> Iterator[DeviceBatch]:
        """Places batches on the device before they are asked for."""
        waiting: deque[DeviceBatch] = deque()
        for batch in batches:
            waiting.append(sharding.place(batch, self._mesh))
            if len(waiting) > self._config.train.prefetch:
                yield waiting.popleft()
        yield from waiting
