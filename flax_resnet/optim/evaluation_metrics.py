"""Evaluation metrics: sums over batches, the metrics computed from them, and the monitored metric of a run.

batch_sums()    logits and labels of a batch -> named sums; add those of all batches
record()        the sums of a split -> the metrics, by name
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.settings import Registry, Row

Array = jax.Array
Totals = Mapping[str, np.ndarray]  # the sums over a split by name, float64

PREDICTIONS = "predictions"  # name of the sum of `predictions_by_example`
EMA = "ema_"  # prefix of the moving average's metrics


class Outputs(NamedTuple):
    """The outputs of a network for an evaluation batch.

    Attributes:
      logits: [N, K], float32.
      labels: int32 [N].
      mask: bool [N], False for examples to leave out, such as padding.
      example: int32 [N], the index of each example in its split; None if no sum needs it.
    """

    logits: Array
    labels: Array
    mask: Array
    example: Array | None = None

    @property
    def counted(self) -> Array:
        """1 for each example that counts, else 0: float32 [N]."""
        return self.mask.astype(jnp.float32)

    @property
    def predictions(self) -> Array:
        """The class of the largest logit of each example: int32 [N]."""
        return jnp.argmax(self.logits, axis=-1)

    @property
    def hits(self) -> Array:
        """1 for each example whose prediction is its label, else 0: float32 [N]."""
        return is_top1(self.logits, self.labels)


# Returns an array of any shape, float32 or int32, to add up over the batches.
Sum = Callable[[Outputs], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricRow(Row):
    """One metric.

    Attributes:
      label: the name in printed text.
      format: format specification of the value in printed text.
      larger_is_better: whether larger values are better.
      sums: {name: sum}. Metrics that need the same sum name the same function, which is then computed once.
      value: (the totals of `sums`, and of `count`: the number of examples) -> the metric.
    """

    label: str
    format: str = ".2%"
    larger_is_better: bool = True
    sums: Mapping[str, Sum]
    value: Callable[[Totals], float]


METRICS: Registry[MetricRow] = Registry("flax_resnet.optim.metrics")


def is_top1(logits: Array, labels: Array) -> Array:
    """Return 1 where the label has the largest logit, else 0: float32 [N]."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def count(outputs: Outputs) -> Array:
    """Return the number of examples, float32 []."""
    return outputs.counted.sum()


def confusion(outputs: Outputs) -> Array:
    """Return the number of examples by (label, prediction), float32 [K, K]."""
    pairs = jnp.zeros((outputs.logits.shape[-1],) * 2).at[outputs.labels, outputs.predictions]
    return pairs.add(outputs.counted)


CONFUSION: Mapping[str, Sum] = {"confusion": confusion}


def predictions_by_example(count: int) -> Mapping[str, Sum]:
    """Return a sum that keeps the prediction of each example.

    Its total is int32 [count]: 1 + the predicted class at the index of the example; 0 if it was left out.
    """

    def predictions(outputs: Outputs) -> Array:
        assert outputs.example is not None  # the evaluation step passes it
        found = jnp.where(outputs.mask, outputs.predictions.astype(jnp.int32) + 1, 0)
        return jnp.zeros(count, jnp.int32).at[outputs.example].add(found)

    return {PREDICTIONS: predictions}


def merged(tables: Iterable[Mapping[str, Sum]]) -> dict[str, Sum]:
    """Merge tables of sums. Raises ValueError if a name stands for two different functions."""
    sums: dict[str, Sum] = {}
    for table in tables:
        for name, function in table.items():
            if sums.setdefault(name, function) is not function:
                raise ValueError(f"two metrics use the name {name!r} for different sums")
    return sums


def batch_sums(
    logits: Array,
    labels: Array,
    mask: Array,
    example: Array | None = None,
    *,
    extra: Mapping[str, Sum] | None = None,
) -> dict[str, Array]:
    """Return the sums over the examples of a batch. Add those of all batches to get the sums of a split.

    Args:
      logits: [N, K], float32.
      labels: int32 [N].
      mask: bool [N], False for examples to leave out, such as padding.
      example: int32 [N], the index of each example in its split; only some of `extra` need it.
      extra: more sums than the metrics need, such as CONFUSION.

    Returns:
      {name: array} of `count`, the METRICS' sums, and `extra`.
    """
    outputs = Outputs(logits, labels, mask, example)
    sums = merged([{"count": count}, *(row.sums for row in METRICS.values()), extra or {}])
    return {name: function(outputs) for name, function in sums.items()}


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Compute the METRICS from the sums over a split."""
    totals = {name: np.asarray(array, np.float64) for name, array in sums.items()}
    return {name: row.value(totals) for name, row in METRICS.items()}


def per_example(total: float | np.ndarray, totals: Totals) -> float:
    """Return a total divided by the number of examples; 0 without examples."""
    return float(total) / max(float(totals["count"]), 1.0)


def record(sums: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of an evaluation and `count` as one dict; those of the moving average are named ema_NAME.

    Args:
      sums: {"": sums, "ema_": sums}; "ema_" only if a moving average was evaluated.
    """
    metrics = {prefix + name: v for prefix, part in sums.items() for name, v in means(part).items()}
    return metrics | {"count": int(sums[""]["count"])}


def monitored(metrics: Mapping[str, float], name: str = "top1") -> float:
    """Return the monitored value of a metric: the moving average's if there is one, else the weights'."""
    return metrics.get(EMA + name, metrics[name])


def score(metrics: Mapping[str, float], name: str) -> float:
    """Return the monitored value with the sign chosen so that larger is better; `name` is one of METRICS.

    It is -inf if the record lacks the metric: a version without it wrote the record.
    """
    if name not in metrics:
        return -math.inf
    value = monitored(metrics, name)
    return value if METRICS[name].larger_is_better else -value


def has_stalled(scores: list[float], evaluations: int) -> bool:
    """Return whether the last `evaluations` scores brought no new best; False for `evaluations` = 0."""
    if not evaluations or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= evaluations


def shown(
    metrics: Mapping[str, float], prefix: str = "", *, only: Collection[str] | None = None
) -> str:
    """Format the metrics of a record for printing.

    Args:
      metrics: the record; what it lacks is left out.
      prefix: EMA for the metrics of the moving average.
      only: names of the metrics to show; None for all.
    """
    return ", ".join(
        f"{row.label} {metrics[prefix + name]:{row.format}}"
        for name, row in METRICS.items()
        if prefix + name in metrics and (only is None or name in only)
    )
