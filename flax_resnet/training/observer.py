"""Who is told what a run records: trackers, pictures, a report; the trainer knows none of them."""

from typing import Protocol


class Observer(Protocol):
    """Is told of every record of a run."""

    def on_record(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Take a record of a run.

        Args:
          step: number of updates made.
          epoch: passes over the training split.
          split: "train", or the evaluation split.
          values: by name, as in metrics.jsonl.
        """
