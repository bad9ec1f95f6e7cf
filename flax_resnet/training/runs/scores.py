"""The scores of a run: the monitored metric of its evaluations, as the records hold it."""

from typing import Any

from flax_resnet.config import Config
from flax_resnet.optim.evaluation_metrics import score

Records = list[dict[str, Any]]


def evaluations(records: Records, config: Config, scores_from: int = 0) -> Records:
    """Return the records of evaluations on `data.eval_split` from the step `scores_from` on, in order."""
    split = config.data.eval_split
    return [r for r in records if r["split"] == split and r["step"] >= scores_from]


def scores(records: Records, config: Config, scores_from: int = 0) -> dict[int, float]:
    """Return {step: score} of the evaluations by `train.monitor`; a larger score is better.

    Args:
      records: the records of the run.
      config: the configuration.
      scores_from: ignore evaluations before this step; they were made on other data, or with another configuration.
    """
    found = evaluations(records, config, scores_from)
    return {record["step"]: score(record, config.train.monitor) for record in found}


def best_step(scores: dict[int, float]) -> int | None:
    """Return the first step with the best score, or None without scores."""
    return max(scores, key=lambda step: scores[step], default=None)
