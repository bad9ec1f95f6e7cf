"""Two records of the same measurements: what became faster, what slower, and what is noise."""

from typing import NamedTuple

from benchmarks.gpu.record import Measurement, StageRecord

# A smaller change is always noise. Two runs on one H100 differed by 0.4 % (ResNet-50's step, 6,380 and 6,408 images
# a second); the noise of a single round may be several times as large.
LEAST_CHANGE, LEAST_CHANGE_OF_ONE_ROUND = 0.01, 0.05


class Change(NamedTuple):
    """A measurement beside a former one.

    Attributes:
      former: the median before.
      ratio: ratio of the medians, inverted if a smaller value is better: above 1 is always an improvement.
      verdict: "better", "worse" or "noise".
    """

    former: float
    ratio: float
    verdict: str


def compare(now: Measurement, former: Measurement) -> Change:
    """Return how a measurement changed: "noise" if the rounds overlap or the medians hardly differ."""
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
