"""The picture of a run, report.png: its curves, and images with their predictions."""

import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from flax_resnet.cli.page.run_report import RunReport
from flax_resnet.cli.plots.log_axis import logarithmic
from flax_resnet.cli.plots.text import drawing, plain
from flax_resnet.inference.judged_split import input_images
from flax_resnet.inference.split_statistics import confident_mistakes, least_certain

SHOWN = (3, 8)  # rows and columns of example images
WIDEST = 11  # width of a drawn class name, in letters: a column has room for it and " (100%)"
DPI = 110


def picture(report: RunReport) -> bytes:
    """Draw the curves of a run, and below them its most confident mistakes, then its least certain predictions.

    Returns:
      The picture, PNG.
    """
    from matplotlib.figure import Figure

    config, split = report.classifier.config, report.split
    count = len(split.labels)
    score = f"top-1 {split.is_right.mean():.2%}" if count else "no image has a label"
    title = (
        f"{config.model.name} on {plain(config.data.dataset)}: {score} on {plain(report.where)}; "
        "below, the most confident mistakes and the least certain images"
    )
    splits = [record["split"] for record in report.records]
    with drawing([*split.class_names, config.data.dataset, report.where, *splits]):
        figure = Figure(figsize=(12, 7.8), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.25))
        _draw_curves(halves[0], report.records, config.train.monitor)
        _draw_examples(halves[1], report)
        figure.suptitle(title)
        return _png(figure)


def examples_picture(report: RunReport) -> bytes:
    """Draw the most confident mistakes, then the least certain predictions. Return the picture, PNG."""
    from matplotlib.figure import Figure

    with drawing(report.split.class_names):
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        _draw_examples(figure, report)
        return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def shown_rows(report: RunReport) -> list[int]:
    """Return the examples to draw, each once: the most confident mistakes, then the least certain predictions."""
    split, (rows, columns) = report.split, SHOWN
    mistakes = confident_mistakes(split)[: (rows - 1) * columns].tolist()
    uncertain = [row for row in least_certain(split).tolist() if row not in mistakes]
    return [*mistakes, *uncertain[: rows * columns - len(mistakes)]]


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
        axes.set(xlabel="epoch", title=METRICS[key].label)
        if key == "loss":
            logarithmic(axes)
        else:
            axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


def _draw_examples(figure: Any, report: RunReport) -> None:
    rows, columns = SHOWN
    grid = figure.subplots(rows, columns).ravel()
    for axes in grid:
        axes.axis("off")
    split, names, shown = report.split, report.split.class_names, shown_rows(report)
    images = input_images(report.classifier, report.source, split.indices[shown].tolist())
    for axes, image, row in zip(grid, images, shown, strict=False):
        guess, label = int(split.predictions[row]), int(split.labels[row])
        axes.imshow(image, interpolation="nearest")
        text = caption(names[guess], names[label], float(split.confidences[row]))
        axes.set_title(text, fontsize=8.5, color="green" if guess == label else "red")


def caption(guess: str, label: str, probability: float) -> str:
    """Format a prediction: ``cat (62%)``, and for a mistake ``label dog`` in a second line."""
    text = f"{_short(guess)} ({probability:.0%})"
    return text if guess == label else f"{text}\nlabel {_short(label)}"


def _short(text: str) -> str:
    """Return a name in one line, shortened in the middle to the width of `WIDEST` letters."""
    longest = WIDEST
    while _width(shortened := plain(text, longest)) > WIDEST:
        longest -= 1
    return shortened


def _width(text: Sequence[str]) -> int:
    """Return the width in letters: characters of East Asian scripts are two letters wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
