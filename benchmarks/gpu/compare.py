"""Compare measurements with former ones: a change is "better", "worse" or "noise"."""

from typing import NamedTuple

from benchmarks.gpu.record import Measurement, StageRecord

# Relative changes below these limits count as noise. Two runs of ResNet-50's step on one H100 differed by 0.4 %
# (6,380 and 6,408 images/s). With a single round, the noise may be several times as large.
LEAST_CHANGE, LEAST_CHANGE_OF_ONE_ROUND = 0.01, 0.05


class Change(NamedTuple):
    """The change from a former measurement to a new one.

    Attributes:
      former: median of the former measurement.
      ratio: new median / former median, or its inverse if smaller values are better. Above 1 is an improvement.
      verdict: "better", "worse" or "noise".
    """

    former: float
    ratio: float
    verdict: str


def compare(now: Measurement, former: Measurement) -> Change:
    """Return the change between two measurements.

    The verdict is "noise" if the ranges of the rounds overlap, or if the medians differ by less than the limits
    above.
    """
    if not now.median or not former.median:
        return Change(former.median, 1.0, "noise")
    ratio = now.median / former.median
    ratio = ratio if now.larger_is_better else 1 / ratio
    overlap = min(now.values) <= max(former.values) and min(former.values) <= max(now.values)
    rounds = min(len(now.values), len(former.values))
    least = LEAST_CHANGE if rounds > 1 else LEAST_CHANGE_OF_ONE_ROUND
    if abs(ratio - 1) < least or overlap:
        return Change(former.median, ratio, "noise")
    return Change(former.median, ratio, "better" if ratio > 1 else "worse")


def changes(now: list[StageRecord], former: list[StageRecord]) -> dict[tuple[str, str], Change]:
    """Return {(stage, name): change} for the measurements that both records have in the same unit."""
    before = {(stage.stage, one.name): one for stage in former for one in stage.measurements}
    return {
        key: compare(one, before[key])
        for stage in now
        for one in stage.measurements
        for key in [(stage.stage, one.name)]
        if key in before and before[key].unit == one.unit
    }
