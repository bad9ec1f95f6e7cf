"""Predict the classes of images: python -m flax_resnet predict PHOTOS... --workdir /tmp/run

PHOTOS are image files, folders (with their sub-folders), patterns such as 'photos/*.jpg', CSV files with a column
path, or - for paths on standard input. Each image gives a row: path, label, probability.
python -m flax_resnet predict photos/ --model resnet50.a1_in1k --top_k 5 --output predictions.csv
    Predicts with timm's weights, or a weights file (--weights). The suffix of the output is its format: .csv,
    .jsonl or .parquet. --append continues an interrupted file.
python -m flax_resnet predict photos/ --workdir /tmp/run --features pre_logits --output features.parquet
    Also writes the features of each image, as a column of .parquet or as the array of .npy.
"""

import contextlib
import itertools
import logging
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from tqdm import tqdm

from flax_resnet.cli import app, device, network_flags
from flax_resnet.cli.continued_output import Written, after, written_rows
from flax_resnet.cli.row_writers import FORMATS, array_writer, format_of, row_writer
from flax_resnet.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from flax_resnet.inference.file_predictions import FilePrediction

log = logging.getLogger("flax_resnet")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet predict", __doc__, _define, _predict, argv, rest="photos")


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_compilation_cache(values)
    device.define(values)
    network_flags.define(values)
    network_flags.define_batch_size(values)
    flags.DEFINE_multi_string(
        "photos", [], "image files, folders, patterns, CSV files, or -", flag_values=values
    )
    flags.DEFINE_string(
        "output", "", "file to write (default: standard output)", flag_values=values
    )
    flags.DEFINE_enum(
        "format", "", ["", *FORMATS], "format (default: by the suffix, or csv)", flag_values=values
    )
    flags.DEFINE_integer("top_k", 1, "number of labels per image", 1, flag_values=values)
    flags.DEFINE_string(
        "features",
        "",
        "feature to write besides, such as pre_logits or stage4; the output is .parquet or .npy",
        flag_values=values,
    )
    for name, help in (
        ("probabilities", "add a column with the probability of each class"),
        ("append", "continue an interrupted output: leave out the images that have a row"),
        (
            "skip_bad",
            "leave out images that cannot be read, instead of an empty row and exit code 4",
        ),
    ):
        flags.DEFINE_bool(name, False, help, flag_values=values)


def _predict(values: flags.FlagValues) -> None:
    network_flags.check(values, purpose="predict with", model_only=("weights",))
    photos, output, features = (app.flag(values, n) for n in ("photos", "output", "features"))
    if not photos:
        raise app.needed("PHOTOS", "image files, folders, or - for paths on standard input")
    as_array = bool(features) and output.lower().endswith(".npy")
    kind = "csv" if as_array else format_of(output, app.flag(values, "format"))
    if features and not as_array and kind != "parquet":
        raise ConfigError(key="--output", value=output, allowed="a .parquet or .npy file")
    append = app.flag(values, "append")
    if append and (not output or as_array):
        raise ConfigError("needs --output, a .csv or .jsonl file", key="--append")
    _check_output(output, photos)
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.data.image_paths import check_named, image_paths
    from flax_resnet.inference.evaluation import all_class_names
    from flax_resnet.inference.file_predictions import predict_files
    from flax_resnet.inference.network_choice import NetworkChoice

    check_named(photos)
    files = image_paths(photos)
    first = next(files, None)  # raises for a wrong path before the network is read
    if first is None:
        raise DataError("names no image", key="PHOTOS", value=" ".join(photos))
    files = itertools.chain([first], files)
    network = NetworkChoice(**{name: app.flag(values, name) for name in NetworkChoice._fields})
    classifier = network.load()
    known = classifier.model.feature_info()
    if features and features not in known:
        raise ConfigError("unknown feature", key="--features", value=features, allowed=known)
    names = all_class_names(classifier.class_names, classifier.model.num_classes)
    rows = _Rows(names, app.flag(values, "top_k"), app.flag(values, "probabilities"))
    written = written_rows(output, kind, rows.columns) if append else Written()
    files = after(files, written, output)
    batch_size, wanted = app.flag(values, "batch_size") or 64, [features] if features else []
    predictions = predict_files(classifier, files, batch_size=batch_size, features=wanted)
    columns = rows.columns if as_array or not features else [*rows.columns, features]
    bad = count = 0
    with contextlib.ExitStack() as stack:
        array = stack.enter_context(array_writer(output)) if as_array else None
        to = "" if as_array else output
        writer = stack.enter_context(row_writer(to, kind, columns, keep=written.size))
        for found in _shown(predictions, photos, quiet=not to):
            count += 1
            if found.problem:
                bad += 1
                tqdm.write(f"warning: {printable(found.file)}: {found.problem}", file=sys.stderr)
                if app.flag(values, "skip_bad"):
                    continue
            row = rows.row(found)
            if array:
                array.write(found.features[features])
            elif features:
                row[features] = found.features[features].ravel().tolist()
            writer.write(row)
    if bad and not app.flag(values, "skip_bad"):
        raise DataError(
            f"{bad:,} of {count:,} images cannot be read",
            key="PHOTOS",
            cure="repair or remove them, or set --skip_bad",
        )


def _shown(
    predictions: Iterator["FilePrediction"], photos: Sequence[str], *, quiet: bool
) -> Iterator["FilePrediction"]:
    """Show a progress bar on a terminal, unless the rows go there."""
    from flax_resnet.data.image_paths import STANDARD_INPUT, image_paths

    shown = sys.stderr.isatty() and not (quiet and sys.stdout.isatty())
    total = None
    if shown and STANDARD_INPUT not in photos:
        total = sum(1 for _ in image_paths(photos))
    return iter(tqdm(predictions, total=total, unit="img", disable=not shown, leave=False))


class _Rows:
    """Makes the rows of predictions: path; pairs of label and probability; and the probabilities of all classes."""

    def __init__(self, class_names: Sequence[str], top_k: int, all_classes: bool):
        self._names, self._all = class_names, all_classes
        self._top = min(top_k, len(class_names))
        if self._top < top_k:
            log.info("--top_k=%d: the network has only %d classes", top_k, self._top)
        ends = ["", *(f"_{place}" for place in range(2, self._top + 1))]
        self._pairs = [(f"label{end}", f"probability{end}") for end in ends]
        every = [f"probability of {name}" for name in class_names] if all_classes else []
        self.columns = ["path", *itertools.chain.from_iterable(self._pairs), *every]

    def row(self, found: "FilePrediction") -> dict[str, Any]:
        """Return the row of a prediction; without values for an unreadable image."""
        if found.problem:
            return dict.fromkeys(self.columns) | {"path": found.file}
        row: dict[str, Any] = {"path": found.file}
        best = np.argsort(-found.probabilities, kind="stable")[: self._top]
        for (label, probability), number in zip(self._pairs, best, strict=True):
            row[label] = self._names[number]
            row[probability] = _number(found.probabilities[number])
        if self._all:
            names = self.columns[-len(self._names) :]
            row |= dict(zip(names, map(_number, found.probabilities), strict=True))
        return row


def _number(probability: np.floating) -> float:
    """Return a float32 as the shortest decimal number that stands for it."""
    return float(str(probability))


def _check_output(output: str, photos: Sequence[str]) -> None:
    """Raise ConfigError if the output is one of the inputs, which would be lost."""
    path = pathlib.Path(output).expanduser()
    for text in photos if output and path.exists() else ():
        given = pathlib.Path(text).expanduser()
        if given.exists() and path.samefile(given):
            raise ConfigError(
                "is also an input", key="--output", value=output, cure="name another file"
            )


if __name__ == "__main__":
    sys.exit(main())
