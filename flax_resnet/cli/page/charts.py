"""Charts of a run as SVG inside HTML, in the colours and the font of the page."""

import io
import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from flax_resnet.cli.plots.log_axis import logarithmic
from flax_resnet.cli.plots.text import drawing, plain
from flax_resnet.inference.split_statistics import Calibration
from flax_resnet.optim.evaluation_metrics import EMA, METRICS

POINTS = 500  # largest number of points of a curve
SIZE = (4.6, 2.9)  # inches, at 72 units each
# Matplotlib draws in these colours, and the page replaces each by a variable of its style sheet.
INK, GRID, BAD = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0a0a{number:02x}" for number in range(6))
VARIABLES = {
    INK: "--muted",
    GRID: "--line",
    BAD: "--bad",
    **{color: f"--series{number}" for number, color in enumerate(SERIES)},
}
STYLE: dict[str, Any] = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.linewidth": 0.8},
    **{f"{part}.facecolor": "none" for part in ("figure", "axes", "savefig", "legend")},
    **{f"{part}color": INK for part in ("axes.edge", "axes.label", "axes.title", "text.")},
    **{"xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "grid.color": GRID},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10},
}


def curves(records: Sequence[dict[str, Any]], monitor: str) -> list[tuple[str, str]]:
    """Draw loss, top-1, the monitored metric and the learning rate over the epochs.

    Args:
      records: the records of the run.
      monitor: the name of the monitored metric.

    Returns:
      (name, SVG) of each chart.
    """
    keys = [*dict.fromkeys(("loss", "top1", monitor)), "learning_rate"]
    splits = list(dict.fromkeys(r["split"] for r in records))
    charts = []
    for key in keys:
        name = METRICS[key].label if key in METRICS else "learning rate"
        lines = {
            s: [(r["epoch"], r[key]) for r in records if r["split"] == s and key in r]
            for s in splits
        }
        lines["moving average"] = [(r["epoch"], r[EMA + key]) for r in records if EMA + key in r]
        if any(lines.values()):
            charts.append((name, _curve(key, lines)))
    return charts


def _curve(key: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    with drawing(lines):
        figure, axes = _figure(SIZE)
        for number, (name, points) in enumerate(lines.items()):
            if not points:
                continue
            some = np.unique(np.linspace(0, len(points) - 1, POINTS).astype(int))
            x, y = np.array(points, float)[some].T
            # Matplotlib leaves labels that begin with _ out of the legend.
            label = re.sub("^_", " _", plain(name).replace(r"\$", "$"))
            marker = "o" if len(x) <= 30 and name != "train" else ""
            axes.plot(
                x,
                y,
                color=SERIES[number % len(SERIES)],
                label=label,
                marker=marker,
                markersize=3.5,
                lw=1.6,
            )
        axes.set(xlabel="epoch")
        if key == "loss":
            logarithmic(axes)
        if key in METRICS and METRICS[key].format.endswith("%"):
            axes.yaxis.set_major_formatter("{x:.0%}")
        if key != "learning_rate":
            axes.legend(loc="best", fontsize=8.5)
        return _svg(figure, key)


def reliability(found: Calibration) -> str:
    """Draw accuracy over confidence, with its gap to the diagonal, and the number of images per bin."""
    with drawing([]):
        figure, axes = _figure((4.6, 4.0), rows=2, height_ratios=(3, 1), sharex=True)
        top, bottom = axes
        width = np.diff(found.edges)
        middle = found.edges[:-1] + width / 2
        filled = found.counts > 0
        x, w, accuracy, sure = (
            a[filled] for a in (middle, width, found.accuracy, found.confidence)
        )
        top.bar(x, accuracy, 0.9 * w, color=SERIES[0], alpha=0.6, label="accuracy")
        gap = {
            "bottom": accuracy,
            "facecolor": "none",
            "edgecolor": BAD,
            "hatch": "////",
            "lw": 0.8,
        }
        top.bar(x, sure - accuracy, 0.9 * w, label="gap to the mean confidence", **gap)
        top.plot([0, 1], [0, 1], color=INK, lw=1, ls="--")
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        top.legend(loc="upper left", fontsize=8.5)
        bottom.bar(middle, found.counts, 0.9 * width, color=SERIES[0], alpha=0.6)
        bottom.set(xlabel="confidence", ylabel="images")
        bottom.xaxis.set_major_formatter("{x:.0%}")
        top.yaxis.set_major_formatter("{x:.0%}")
        return _svg(figure, "reliability")


def _figure(size: tuple[float, float], *, rows: int = 1, **grid: Any) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(cast(Any, STYLE))  # inside `drawing`, which restores the user's own
    figure = Figure(figsize=size, layout="constrained")
    if rows > 1:
        height_ratios = grid.pop("height_ratios")
        axes = figure.subplots(rows, 1, gridspec_kw={"height_ratios": height_ratios}, **grid)
    else:
        axes = figure.subplots()
    for one in np.ravel(axes):
        one.grid(visible=True, lw=0.6)
        one.set_axisbelow(True)
        one.tick_params(length=0)
    return figure, axes


def _svg(figure: Any, name: str) -> str:
    """Return the figure as an element of HTML."""
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = name  # the names of clip paths of several charts differ
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    # The size is that of the page's column; the font is that of the page.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text
