"""Train a network: python -m flax_resnet.main --config configs/resnet18.py --workdir /tmp/run

Run the same command again to resume an interrupted run from its last good checkpoint; a finished run says so and
exits. A larger --config.train.epochs extends a run and stretches its schedule to the new end. At its end, a run
writes report.html into the workdir; --noreport leaves it out.
"""

import shlex
import sys
from collections.abc import Sequence
from functools import partial

from absl import flags

from flax_resnet.cli import app, config_flag


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["flax-resnet", "train", *arguments])
    return app.run("flax-resnet train", __doc__, _define, partial(_train, command), arguments)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    config_flag.define(values, argv)
    app.define_common(values)
    flags.DEFINE_string("workdir", "", "run folder; created if absent", flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "print the plan and exit; write nothing", flag_values=values
    )
    flags.DEFINE_bool(
        "report",
        True,
        "write report.html, classes.csv and report.png at the end; and for TensorBoard, histograms of the weights "
        "at evaluations, images and settings",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "resume",
        "auto",
        ["auto", "force"],
        "auto: refuse a workdir that was trained with another configuration; force: store the new configuration "
        "and resume from the last checkpoint",
        flag_values=values,
    )


def _train(command: str, values: flags.FlagValues) -> None:
    config = config_flag.frozen_config(values)
    if not app.flag(values, "workdir") and not app.flag(values, "dry_run"):
        raise app.needed("--workdir", "the folder that the run is written to")
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.cli.report_observer import ReportObserver
    from flax_resnet.cli.tracker_observer import tracked
    from flax_resnet.training.train import train

    workdir = app.flag(values, "workdir")
    observers = [ReportObserver(workdir, command)] if app.flag(values, "report") else []
    with tracked(config.log, workdir) as trackers:
        train(
            config,
            workdir or None,
            resume=app.flag(values, "resume"),
            dry_run=app.flag(values, "dry_run"),
            observers=[*observers, *trackers],  # the trackers store the report
        )


if __name__ == "__main__":
    sys.exit(main())
