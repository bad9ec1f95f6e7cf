"""The base class of observers: they receive a run's records, for experiment trackers, pictures or reports."""

import pathlib
from typing import Any


class Observer:
    """Receives what happens in a run. Override the methods that are needed; these do nothing.

    Attributes:
      tracker: the name in `log.trackers` that it serves, or "".
    """

    tracker = ""

    def on_first_update(self) -> None:
        """Receive the first update of this start: before it, there was nothing to save."""

    def on_record(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Receive a record of a run.

        Args:
          step: number of updates made.
          epoch: passes over the training split.
          split: "train", or the evaluation split.
          values: metrics by name, as in metrics.jsonl.
        """

    def on_evaluation(self, step: int, variables: dict[str, dict[str, Any]]) -> None:
        """Receive the variables that were evaluated, after the record of the evaluation.

        Args:
          step: number of updates made.
          variables: {metric prefix: {"params", "batch_stats"}} on the devices; the prefix is "", and "ema_" for the
            moving average. They are valid during this call only: the next step reuses their memory.
        """

    def on_end(self, workdir: pathlib.Path) -> None:
        """Receive the end of a run that reached it: checkpoints and summary.txt are complete.

        A run that is interrupted, fails, or was finished before does not end here.

        Args:
          workdir: the run folder.
        """
