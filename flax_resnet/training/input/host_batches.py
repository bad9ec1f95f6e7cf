"""Batches on the host, as the data room decodes them; unreadable images named, counted and replaced."""

import dataclasses
import logging
from collections.abc import Callable, Iterator

import numpy as np

from flax_resnet.data import pipeline
from flax_resnet.data.data_section import Data
from flax_resnet.data.records import Source
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.errors import DataError, one_line

log = logging.getLogger("flax_resnet")


class HostBatches:
    """The batches of a split, restarted at the step where an image could not be decoded.

    Args:
      source: the split.
      config: the data section.
      bad: what is known already to be unreadable.

    Attributes:
      bad: unreadable examples and the step at which each was found. It is part of what a checkpoint must hold
        to resume exactly.
    """

    def __init__(self, source: Source, config: Data, bad: dict[int, int] | None = None):
        self.bad = dict(bad or {})
        self._source, self._config = source, config

    def training(
        self,
        sampler: EpochSampler,
        *,
        batch_size: int,
        start_step: int,
        total_steps: int,
        rows: slice,
        image_size: int,
    ) -> Iterator[pipeline.Batch]:
        """Yields some rows of the global batches from start_step on, of images of a size in pixels.

        Raises:
          DataError: more than `data.max_bad_images` images cannot be decoded.
        """
        config = dataclasses.replace(self._config, image_size=image_size)

        def batches(start: int) -> Iterator[pipeline.Batch]:
            return pipeline.training_batches(
                self._source,
                sampler,
                config,
                batch_size=batch_size,
                start_step=start,
                total_steps=total_steps,
                rows=rows,
                bad=self.bad,
            )

        def candidates(step: int) -> np.ndarray:
            return pipeline.training_indices(sampler, step, batch_size, rows, self.bad)

        return self._mended(batches, candidates, start_step)

    def evaluation(
        self, among: np.ndarray, *, batch_size: int, rows: slice, crop: str = ""
    ) -> Iterator[pipeline.Batch]:
        """Yields each of these examples once, padded and masked to full batches; raises as `training`."""

        def batches(start: int) -> Iterator[pipeline.Batch]:
            return pipeline.evaluation_batches(
                self._source,
                self._config,
                batch_size=batch_size,
                start_step=start,
                rows=rows,
                bad=frozenset(self.bad),
                among=among,
                crop=crop,
            )

        def candidates(step: int) -> np.ndarray:
            indices = pipeline.evaluation_indices(among, step, batch_size, rows)
            return np.array([i for i in indices if i >= 0 and i not in self.bad])

        return self._mended(batches, candidates, 0)

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
        limit = self._config.max_bad_images
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
