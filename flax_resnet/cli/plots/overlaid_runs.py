"""The curves of several runs laid over each other, and their top-1 on the same images with intervals."""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flax_resnet.cli.plots.text import drawing, plain
from flax_resnet.errors import writing

if TYPE_CHECKING:
    from flax_resnet.inference.comparison import Comparison, Contender

LONGEST = 28  # characters of a drawn name


def draw(contenders: Sequence["Contender"], found: "Comparison", output: pathlib.Path) -> None:
    """Draw a comparison into the picture `output`. Raises OutputError if it cannot be written."""
    from matplotlib.figure import Figure

    names = labels(contenders)
    with drawing([*names, contenders[0].config.data.dataset]), writing(output):
        height = 4.2 + max(1.4, 0.4 * len(contenders) + 0.9)
        figure = Figure(figsize=(11, height), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(4.2, height - 4.2))
        _draw_curves(halves[0], contenders, names)
        _draw_intervals(halves[1], contenders[0], found, names)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=110)


def labels(contenders: Sequence["Contender"]) -> list[str]:
    """Return a short name of each network: without the folders that all have in common."""
    folders = [os.path.dirname(os.path.abspath(c.name)) for c in contenders if c.history]
    common = os.path.commonpath(folders) if len(folders) > 1 else ""
    short = [
        os.path.relpath(c.name, common) if c.history and common else c.name for c in contenders
    ]
    return [plain(name, LONGEST) for name in short]


def _draw_curves(figure: Any, contenders: Sequence["Contender"], names: Sequence[str]) -> None:
    """Draw loss and top-1 over the epochs: of the evaluation split solid, of training dotted."""
    from flax_resnet.optim.evaluation_metrics import METRICS, monitored

    for axes, key in zip(figure.subplots(1, 2), ("loss", "top1"), strict=True):
        for number, (contender, name) in enumerate(zip(contenders, names, strict=True)):
            if not (history := contender.history):
                continue
            for split, style in (
                (history.config.data.eval_split, {"label": name, "marker": "o", "markersize": 3}),
                ("train", {"linestyle": ":", "linewidth": 1}),
            ):
                own = [r for r in history.records if r["split"] == split and key in r]
                points = [(r["epoch"], monitored(r, key)) for r in own]
                if points:
                    axes.plot(*zip(*points, strict=True), color=f"C{number % 10}", **style)
        # Runs with other losses, and no value of 0, which a logarithmic axis lacks.
        values = [y for line in axes.lines for y in line.get_ydata()]
        is_log = key == "loss" and values and min(values) > 0
        axes.set(
            xlabel="epoch",
            title=f"{METRICS[key].label}: evaluation solid, training dotted",
            yscale="log" if is_log else "linear",
        )
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)


def _draw_intervals(
    figure: Any, first: "Contender", found: "Comparison", names: Sequence[str]
) -> None:
    """Draw the top-1 of each network on the same images, with its 95 % interval."""
    axes = figure.subplots()
    for number, score in enumerate(found.scores):
        ends = [[100 * (score.top1 - score.low)], [100 * (score.high - score.top1)]]
        style = {"fmt": "o", "color": f"C{number % 10}", "capsize": 4}
        axes.errorbar([100 * score.top1], [number], xerr=ends, **style)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    data = first.config.data
    axes.set(
        xlabel="top-1 in %",
        title=f"{found.scores[0].images:,} images of {plain(data.dataset)}, split {plain(data.eval_split)}: "
        "top-1 with 95 % intervals",
    )
    axes.grid(alpha=0.3, axis="x")
