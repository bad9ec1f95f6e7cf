"""The confusion matrix of an evaluation, as a CSV file, a picture, or a line of text."""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np

from flax_resnet.cli import app
from flax_resnet.cli.plots.text import drawing, plain
from flax_resnet.errors import ConfigError, writing

NAMED, NUMBERED = 60, 20  # largest numbers of classes to draw with names and with percentages
LONGEST = 24  # characters of a drawn name


def checked(file: str) -> pathlib.Path | None:
    """Return the path to write the matrix to, or None if `file` is empty. Raises ConfigError for other suffixes."""
    if not file:
        return None
    path = pathlib.Path(file).expanduser()
    if path.is_dir() or path.suffix not in (".csv", ".png", ".pdf", ".svg"):
        raise ConfigError(
            key="--confusion", value=file, allowed="a file that ends in .csv, .png, .pdf or .svg"
        )
    return path if path.suffix == ".csv" else app.picture(path, "--confusion")


def write(path: pathlib.Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """Write the matrix as a CSV table (a row per class, a column per prediction) or as a picture.

    Args:
      path: as `checked` returns it.
      counts: [K, K], number of examples by (label, prediction).
      names: names of the K classes.
      title: title of the picture.

    Raises:
      OutputError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            # A name from a folder may hold bytes that are not UTF-8; they are written as they are.
            with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                rows = csv.writer(file)
                rows.writerow(["class", *names])
                rows.writerows(
                    [name, *map(int, row)] for name, row in zip(names, counts, strict=True)
                )
        else:
            with drawing([*names, title]):
                _draw(path, counts, [plain(name, LONGEST) for name in names], plain(title, 80))


def _draw(path: pathlib.Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    from matplotlib.figure import Figure

    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 4 + 0.45 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
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
    """Describe the `most` classes of lowest accuracy, each with its most frequent mistake; "" without mistakes."""
    totals = counts.sum(axis=1)
    shares = np.diag(counts) / np.maximum(totals, 1)
    descriptions: list[str] = []
    for label in np.argsort(shares, kind="stable"):
        if totals[label] and shares[label] < 1 and len(descriptions) < most:
            wrong = counts[label].copy()
            wrong[label] = 0
            other = names[int(wrong.argmax())]
            descriptions.append(
                f"{names[label]} {shares[label]:.1%} of {totals[label]:,.0f} (most often taken for {other})"
            )
    return ", ".join(descriptions)
