"""Report on a run: python -m flax_resnet report --workdir /tmp/run

Writes into the workdir:
    report.html   one page that needs no other file: the result and its uncertainty, curves, confusion matrix,
                  classes, calibration, mistakes and uncertain images with Grad-CAM, labels and files to check
    classes.csv   precision, recall, F1 and number of images of each class
    report.png    a picture of the curves, of mistakes and of uncertain images
Needs jinja2 and matplotlib: pip install 'flax_resnet[report]'.
"""

import csv
import importlib.util
import io
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import ConfigError

if TYPE_CHECKING:
    from flax_resnet.cli.page.run_report import RunReport
    from flax_resnet.inference.split_statistics import ClassScores

PAGE, CLASSES, PICTURE = "report.html", "classes.csv", "report.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet report", __doc__, _define, _report, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_common(values)
    flags.DEFINE_string("workdir", "", "run folder", flag_values=values)
    flags.DEFINE_string(
        "dataset",
        "",
        "images to judge: a folder, a CSV file or a TFDS dataset (default: those of the run)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", "", "folder to write the files to (default: WORKDIR)", flag_values=values
    )


def _report(values: flags.FlagValues) -> None:
    if not app.flag(values, "workdir"):
        raise app.needed("--workdir", "the folder of the run to report on")
    check_packages()
    workdir = pathlib.Path(app.flag(values, "workdir")).expanduser()
    output = pathlib.Path(app.flag(values, "output") or workdir).expanduser()
    if output.exists() and not output.is_dir():
        raise ConfigError("is a file", key="--output", value=output, allowed="a folder")
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.cli.page.run_report import gather

    dataset, data_dir = (app.flag(values, name) for name in ("dataset", "data_dir"))
    for file in write_report(gather(workdir, dataset=dataset, data_dir=data_dir), output):
        print(file)


def check_packages() -> None:
    """Raise ConfigError if a package that a report needs is missing."""
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"a report needs {package}",
                key="report",
                cure="pip install 'flax_resnet[report]'",
            )


def write_report(report: "RunReport", output: pathlib.Path) -> list[pathlib.Path]:
    """Write report.html, classes.csv and report.png, each as a whole, and return their paths.

    Args:
      report: what the report shows.
      output: the folder to write to; created if absent.

    Raises:
      UserError: an image cannot be read, or a file cannot be written.
    """
    from flax_resnet.cli.atomic_write import atomic_write
    from flax_resnet.cli.page.cases import collect
    from flax_resnet.cli.page.render import render
    from flax_resnet.cli.plots.run_picture import picture
    from flax_resnet.inference.split_statistics import calibration, class_scores

    scores = class_scores(report.split)
    page = render(report, collect(report), scores, calibration(report.split))
    contents = {
        # A name from a folder may hold bytes that are not UTF-8.
        PAGE: page.encode("utf-8", "replace"),
        CLASSES: classes_csv(report.split.class_names, scores),
        PICTURE: picture(report),
    }
    for name, content in contents.items():
        atomic_write(output / name, content)
    return [output / name for name in contents]


def classes_csv(names: Sequence[str], scores: "ClassScores") -> bytes:
    """Return a table with a row per class; an undefined score is an empty cell."""
    buffer = io.StringIO(newline="")
    rows = csv.writer(buffer)
    rows.writerow(["class", "precision", "recall", "f1", "images", "predicted"])
    for number, name in enumerate(names):
        shares = (float(column[number]) for column in scores[:3])
        texts = ["" if share != share else f"{share:.6f}" for share in shares]
        rows.writerow([name, *texts, int(scores.support[number]), int(scores.predicted[number])])
    return buffer.getvalue().encode("utf-8", "surrogateescape")


if __name__ == "__main__":
    sys.exit(main())
