"""Which classes a network takes for which: the matrix as a table, a picture, and a sentence."""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np

from flax_resnet.cli import app
from flax_resnet.errors import ConfigError, WorkdirError, one_line

NAMED, NUMBERED = 60, 20  # most classes whose names, and whose shares, a picture has room for


def checked(file: str) -> pathlib.Path | None:
    """Returns where to write the matrix, or None for the empty text. Raises ConfigError: another suffix."""
    if not file:
        return None
    path = pathlib.Path(file).expanduser()
    if path.is_dir() or path.suffix not in (".csv", ".png", ".pdf", ".svg"):
        raise ConfigError(
            f"--confusion={file}: must be a file that ends in .csv, .png, .pdf or .svg"
        )
    return path if path.suffix == ".csv" else app.picture(path, "--confusion")


def write(path: pathlib.Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """Writes the matrix as a table (.csv: a row per class, a column per guess) or as a picture.

    Args:
      path: as `checked` returns it.
      counts: [K, K], how often the class of the row was taken for that of the column.
      names: of the K classes.
      title: of the picture.

    Raises:
      WorkdirError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(["class", *names])
                rows.writerows(
                    [name, *map(int, row)] for name, row in zip(names, counts, strict=True)
                )
        else:
            _draw(path, counts, names, title)
    except OSError as error:
        raise WorkdirError(f"{path} cannot be written: {one_line(error)}") from error


def _draw(path: pathlib.Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    from matplotlib.figure import Figure

    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 4 + 0.45 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="taken for", ylabel="is", title=title)
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                colour = "white" if share > 50 else "black"
                text = f"{share:.3g}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(drawn, ax=axes, label="% of the class", shrink=0.8)
    figure.savefig(path, dpi=110)


def weakest(counts: np.ndarray, names: Sequence[str], most: int = 3) -> str:
    """Returns the classes found least often, and what each is taken for most; empty where all are found always."""
    totals = counts.sum(axis=1)
    shares = np.diag(counts) / np.maximum(totals, 1)
    told: list[str] = []
    for place in np.argsort(shares, kind="stable"):
        if totals[place] and shares[place] < 1 and len(told) < most:
            wrong = counts[place].copy()
            wrong[place] = 0
            other = names[int(wrong.argmax())]
            told.append(
                f"{names[place]} {shares[place]:.1%} of {totals[place]:,.0f} (taken for {other})"
            )
    return ", ".join(told)
