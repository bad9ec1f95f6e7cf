"""Draw a run: python -m flax_resnet report --workdir /tmp/run

Writes report.png into the workdir: loss, top-1 and the monitored metric over the epochs, and evaluation images with
their predictions: first the mistakes, then the least certain predictions. Needs matplotlib:
pip install 'flax_resnet[plot]'.
"""

import logging
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import flags

from flax_resnet.cli import app
from flax_resnet.cli.plots.text import drawing, plain
from flax_resnet.errors import DataError, writing

if TYPE_CHECKING:
    from PIL import Image

    from flax_resnet.data.records import Source
    from flax_resnet.inference.classifier import Classifier

SHOWN = (3, 8)  # rows and columns of example images
SIDE = 200  # longer side of an image that is drawn, at most, in pixels; its place has 165
MOST = 1000  # examples from which the drawn ones are chosen
READ = 16  # examples read at once
LONGEST = 14  # characters of a drawn class name
log = logging.getLogger("flax_resnet")


class Example(NamedTuple):
    """An example of the evaluation split: its position, its label, and the upright RGB image at its stored size."""

    position: int
    label: int
    image: "Image.Image"


class Judged(NamedTuple):
    """An example that is drawn: a small image, the true class, the predicted class, and its probability."""

    image: "Image.Image"
    label: int
    guess: int
    probability: float


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
        "output", "", "picture to write (default: WORKDIR/report.png)", flag_values=values
    )


def _report(values: flags.FlagValues) -> None:
    if not app.flag(values, "workdir"):
        raise app.needed("--workdir", "the folder of the run to draw")
    app.set_up_jax(app.flag(values, "compilation_cache"))
    workdir = pathlib.Path(app.flag(values, "workdir")).expanduser()
    output = app.picture(app.flag(values, "output") or workdir / "report.png")
    with writing(output):
        dataset, data_dir = (app.flag(values, name) for name in ("dataset", "data_dir"))
        draw(workdir, output, dataset=dataset, data_dir=data_dir)
    print(output)


def draw(
    workdir: pathlib.Path, output: pathlib.Path, *, dataset: str = "", data_dir: str = ""
) -> None:
    """Draw the run in `workdir` into the picture `output`, with images of `dataset` (see `run_data`).

    Raises:
      UserError: there is no such run, or its data are missing.
      OSError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    from flax_resnet.data.open import open_source
    from flax_resnet.inference.classifier import classifier_of
    from flax_resnet.inference.evaluation import with_weights_labels
    from flax_resnet.inference.run_data import run_data
    from flax_resnet.optim.evaluation_metrics import monitored
    from flax_resnet.training.runs.folder import RunFolder
    from flax_resnet.training.runs.load import load_run

    run = load_run(workdir)
    classifier, own = classifier_of(run), run.config.data
    records = RunFolder.at(workdir).read_records()
    data = run_data(run, dataset, data_dir=data_dir)
    opened = open_source(data, train=False)
    examples = judge(classifier, with_weights_labels(opened, run.class_names, data.dataset))
    scores = [monitored(r) for r in records if r["split"] == own.eval_split]
    score = f"top-1 {scores[-1]:.2%}" if scores else "not evaluated yet"
    title = (
        f"{classifier.config.model.name} on {plain(own.dataset)}: {score} on {plain(own.eval_split)}; "
        f"below, mistakes and the least certain images{f' of {plain(dataset)}' if dataset else ''}"
    )
    with drawing([*classifier.class_names, own.dataset, dataset, *(r["split"] for r in records)]):
        figure = Figure(figsize=(12, 7.5), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.1))
        _draw_curves(halves[0], records, classifier.config.train.monitor)
        _draw_examples(halves[1], examples, classifier.class_names)
        figure.suptitle(title)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=110)


def judge(classifier: "Classifier", source: "Source") -> list[Judged]:
    """Return the mistakes, then the least certain predictions, among at most `MOST` examples.

    One image at a time is held at its full size. Unreadable images are left out, each with a warning.
    """
    seen: list[tuple[int, int]] = []

    def images() -> Iterator["Image.Image"]:
        some = np.linspace(0, len(source) - 1, min(len(source), MOST)).astype(int)
        for index, label, image in readable(source, some):
            seen.append((index, label))
            yield image

    prediction = classifier.predict(images())
    if not seen:
        return []
    indices, labels = np.array(seen).T
    certainty = prediction.probabilities.max(axis=1)
    order = np.argsort(certainty - (prediction.labels != labels), kind="stable")  # mistakes first
    first = order[: SHOWN[0] * SHOWN[1]]
    drawn = []
    for row, (_, label, image) in zip(first, readable(source, indices[first]), strict=False):
        image.thumbnail((SIDE, SIDE))
        drawn.append(Judged(image, label, int(prediction.labels[row]), float(certainty[row])))
    return drawn


def readable(source: "Source", indices: np.ndarray) -> Iterator[Example]:
    """Yield the examples with a label and a readable image, one by one. Warn of each unreadable image."""
    from flax_resnet.data.images import upright

    for start in range(0, len(indices), READ):
        chosen = indices[start : start + READ]
        records = source.read(chosen)
        for index, label, encoded in zip(chosen, records.labels, records.images, strict=True):
            name = source.describe(int(index))
            try:
                image = upright(encoded, exif=source.orientations, name=name)
            except DataError as error:
                log.warning("%s: left out", error)
                continue
            if label >= 0:
                yield Example(int(index), int(label), image)


def _draw_curves(figure: Any, records: list[dict[str, Any]], monitor: str) -> None:
    """Draw loss, top-1 and the monitored metric of every split, and of the moving average, over the epochs."""
    from flax_resnet.optim.evaluation_metrics import EMA, METRICS

    keys = tuple(dict.fromkeys(("loss", "top1", monitor)))
    names = [*dict.fromkeys(r["split"] for r in records), "moving average"]
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    for axes, key in zip(figure.subplots(1, len(keys)), keys, strict=True):
        curves = {
            name: [(r["epoch"], r[key]) for r in records if r["split"] == name and key in r]
            for name in names[:-1]
        }
        curves[names[-1]] = [(r["epoch"], r[EMA + key]) for r in records if EMA + key in r]
        for name, points in curves.items():
            if points:
                marker = {"train": "", names[-1]: "s"}.get(name, "o")
                # Matplotlib leaves labels that begin with _ out of the legend.
                text = re.sub("^_", " _", plain(name))
                style = {"color": colors[name], "marker": marker, "markersize": 4, "label": text}
                axes.plot(*zip(*points, strict=True), **style)
        axes.set(
            xlabel="epoch",
            title=METRICS[key].label,
            **({"yscale": "log"} if key == "loss" else {"ylim": (0, 1.02)}),
        )
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


def _draw_examples(figure: Any, examples: list[Judged], names: Sequence[str]) -> None:
    """Draw images with their predictions, in this order."""
    rows, columns = SHOWN
    grid = figure.subplots(rows, columns).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, (image, label, guess, probability) in zip(grid, examples, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(
            judgement(names[guess], names[label], probability),
            fontsize=9,
            color="green" if guess == label else "red",
        )


def judgement(guess: str, label: str, probability: float) -> str:
    """Format a prediction for a picture: ``cat (62%)``, or ``cat (62%), label dog`` in one or two lines."""
    text = f"{plain(guess, LONGEST)} ({probability:.0%})"
    if guess == label:
        return text
    is_short = len(guess + label) < LONGEST // 2 and (guess + label).isascii()
    separator = ", " if is_short else "\n"
    return f"{text}{separator}label {plain(label, LONGEST)}"


if __name__ == "__main__":
    sys.exit(main())
