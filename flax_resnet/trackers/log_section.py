"""The log section: experiment trackers."""

import dataclasses

from flax_resnet.settings import NOT_EMPTY, Rule, Section, all_of, refuse, setting
from flax_resnet.trackers.tracker import TRACKERS

NAMES = tuple(TRACKERS)
KNOWN = Rule(
    lambda v: len(set(v)) == len(v) and set(v) <= set(NAMES),
    f"different names out of {', '.join(NAMES)}",
    numbers=False,
    schema={"items": {"enum": list(NAMES)}, "uniqueItems": True},
)


@dataclasses.dataclass(frozen=True)
class Log(Section):
    """The settings of experiment trackers."""

    trackers: tuple = setting(
        (),
        KNOWN,
        "experiment trackers that receive settings, metrics and results besides the run folder; "
        + "; ".join(f"{row.name} is {row.help}" for row in TRACKERS.values()),
        changes_result=False,
    )
    project: str = setting(
        "flax_resnet",
        NOT_EMPTY,
        "group of runs in the trackers: an experiment in MLflow, a project in W&B",
        needs=all_of("trackers"),
        changes_result=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.trackers:
            if name in TRACKERS:
                refuse(TRACKERS[name].clashes, self, "log.")
