"""A logarithmic axis whose labels do not overlap, in plain numbers."""

import math
from typing import Any


def logarithmic(axes: Any) -> None:
    """Make the vertical axis logarithmic, after all curves are drawn. Label as many ticks as there is room for."""
    from matplotlib.ticker import LogLocator

    values = [value for line in axes.lines for value in line.get_ydata() if value > 0]
    axes.set_yscale("log")
    decades = math.log10(max(values) / min(values)) if values else 0
    steps = tuple(range(2, 10)) if decades < 0.7 else (2, 5) if decades < 1.6 else ()
    axes.yaxis.set_minor_locator(LogLocator(subs=steps) if steps else LogLocator(subs=(1,)))
    for tell in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        tell("{x:.6g}")
