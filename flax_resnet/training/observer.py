"""The interface of observers: they receive a run's records, for experiment trackers, pictures or reports."""

from typing import Protocol


class Observer(Protocol):
    """Receives every record of a run."""

    def on_record(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Receive a record of a run.

        Args:
          step: number of updates made.
          epoch: passes over the training split.
          split: "train", or the evaluation split.
          values: metrics by name, as in metrics.jsonl.
        """
