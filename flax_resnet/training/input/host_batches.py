"""Batches decoded on the host. Unreadable images are logged, counted and replaced."""

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
    """The batches of a split. If an image cannot be decoded, the step is repeated without it.

    Args:
      source: the split.
      config: the data section.
      bad: the known unreadable examples.
      lists_bad: only list unreadable examples in `bad`: log none, and allow any number.

    Attributes:
      bad: {index of an unreadable example: step at which it was found}. Checkpoints hold it, to resume exactly.
    """

    def __init__(
        self,
        source: Source,
        config: Data,
        bad: dict[int, int] | None = None,
        *,
        lists_bad: bool = False,
    ):
        self.bad = dict(bad or {})
        self._source, self._config, self._lists_bad = source, config, lists_bad

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
        """Yield `rows` of the global batches from `start_step` on, with images of `image_size` pixels.

        Raises:
          DataError: more than `data.max_bad_images` images cannot be decoded.
        """
        config = self._config.but(image_size=image_size)

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
        """Yield the examples with the indices `among`, each once; the padding of the last batch is masked.

        Raises:
          DataError: as in `training`.
        """

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
        """Yield batches(start). After a decoding error, find the unreadable images and resume at the same step."""
        step, iterator = start, batches(start)
        while True:
            try:
                batch = next(iterator, None)
            except pipeline.DECODE_ERRORS as error:
                unreadable = pipeline.find_bad(self._source, candidates(step))
                if not unreadable:  # no single image fails, so the decoder's message is all we have
                    raise self._error(f"cannot read step {step}: {one_line(error)}") from error
                self._note_bad(unreadable, step)
                iterator = batches(step)
                continue
            if batch is None:
                return
            yield batch
            step += 1

    def learn_bad(self, bad: dict[int, int]) -> None:
        """Take in the unreadable examples that any process has found.

        Raises:
          DataError: they are more than `data.max_bad_images`.
        """
        # Nothing is removed: the threads that read ahead use this dict.
        for index, step in sorted(bad.items(), key=lambda found: found[1]):
            if index not in self.bad:
                self._check_limit(index)
            self.bad[index] = step

    def _note_bad(self, found: list[int], step: int) -> None:
        if self._lists_bad:
            self.bad |= dict.fromkeys(found, step)
            return
        limit = self._config.max_bad_images
        for index in found:
            self._check_limit(index)
            self.bad[index] = step
            if len(self.bad) == len(self._source):
                raise self._error(f"none of the {len(self.bad)} images can be decoded")
            log.warning(
                "cannot decode %s: skipped (%d of at most %d)",
                self._source.describe(index),
                len(self.bad),
                limit,
            )

    def _check_limit(self, index: int) -> None:
        """Raise DataError if no further example may be unreadable."""
        limit = self._config.max_bad_images
        if len(self.bad) >= limit:
            raise DataError(
                f"cannot be decoded, and data.max_bad_images={limit} allows no more unreadable images",
                key=self._source.describe(index),
                cure="repair or remove it, or increase data.max_bad_images",
            )

    def _error(self, problem: str) -> DataError:
        return DataError(problem, key="data.source", value=self._config.source)
