"""Draw a run: python -m flax_resnet report --workdir /tmp/run

Writes report.png into the workdir: loss, top-1 and the monitored metric over the epochs, and evaluation images with
their predictions: first the mistakes, then the least certain predictions. Needs matplotlib:
pip install 'flax_resnet[plot]'.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import writing

SHOWN = (3, 8)  # rows and columns of example images


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet report", __doc__, _define, _report, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_common(values)
    flags.DEFINE_string("workdir", "", "run folder", flag_values=values)
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
        draw(workdir, output, data_dir=app.flag(values, "data_dir"))
    print(output)


def draw(workdir: pathlib.Path, output: pathlib.Path, *, data_dir: str = "") -> None:
    """Draw the run in `workdir` into the picture `output`.

    Raises:
      UserError: there is no such run, or its data are missing.
      OSError: the picture cannot be written.
    """
    import io

    from matplotlib.figure import Figure
    from PIL import Image, ImageOps

    from flax_resnet.data.open import open_source
    from flax_resnet.inference.classifier import load
    from flax_resnet.optim.evaluation_metrics import monitored
    from flax_resnet.training.runs.folder import RunFolder

    classifier = load(workdir)
    records = RunFolder.at(workdir).read_records()
    data = classifier.config.data
    if data_dir:
        data = data.but(data_dir=data_dir)
    source = open_source(data, train=False)
    some = np.linspace(0, len(source) - 1, min(len(source), 1000)).astype(int)
    examples = source.read(some)
    opened: list[Image.Image] = [Image.open(io.BytesIO(one)) for one in examples.images]
    if source.orientations:
        opened = [ImageOps.exif_transpose(image) for image in opened]
    images = [image.convert("RGB") for image in opened]
    prediction = classifier.predict(images)
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    _draw_curves(halves[0], records, classifier.config.train.monitor)
    _draw_examples(halves[1], images, examples.labels, prediction, classifier.class_names)
    scores = [monitored(r) for r in records if r["split"] == data.eval_split]
    score = f"top-1 {scores[-1]:.2%}" if scores else "not evaluated yet"
    figure.suptitle(
        f"{classifier.config.model.name} on {data.dataset}: {score} "
        f"on {data.eval_split}; below, mistakes and the least certain images"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


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
                style = {"color": colors[name], "marker": marker, "markersize": 4, "label": name}
                axes.plot(*zip(*points, strict=True), **style)
        axes.set(
            xlabel="epoch",
            title=METRICS[key].label,
            **({"yscale": "log"} if key == "loss" else {"ylim": (0, 1.02)}),
        )
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


def _draw_examples(
    figure: Any,
    images: list[Any],
    labels: np.ndarray,
    prediction: Any,
    names: Sequence[str],
) -> None:
    """Draw images with their predictions: mistakes first, then the least certain ones."""
    certainty = prediction.probabilities.max(axis=1)
    certainty[prediction.labels != labels] -= 1  # mistakes come first
    rows, columns = SHOWN
    grid = figure.subplots(rows, columns).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, np.argsort(certainty, kind="stable"), strict=False):
        axes.imshow(images[index], interpolation="nearest")
        guess, truth = prediction.labels[index], labels[index]
        text = f"{names[guess]} ({prediction.probabilities[index].max():.0%})"
        right = guess == truth
        axes.set_title(
            text if right else f"{text}, label {names[truth]}",
            fontsize=9,
            color="green" if right else "red",
        )


if __name__ == "__main__":
    sys.exit(main())
