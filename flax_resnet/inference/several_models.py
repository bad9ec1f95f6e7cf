"""The evaluation of several pretrained networks on one dataset: their names, and a row for each."""

import dataclasses
import fnmatch
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from flax_resnet.data.named import DatasetChoice
from flax_resnet.errors import ConfigError, DataError, WeightsError, one_line, suggestion
from flax_resnet.inference.classifier import load_pretrained
from flax_resnet.inference.evaluation import evaluate_classifier
from flax_resnet.inference.intervals import proportion_interval
from flax_resnet.inference.throughput import images_per_second
from flax_resnet.models.summary import summarize_model
from flax_resnet.weights.catalog import all_pretrained
from flax_resnet.weights.fill import unrolled_model
from flax_resnet.weights.opening import SUFFIXES

COLUMNS = (
    *("model", "weights", "dataset", "split", "count", "top1", "top1_low", "top1_high", "top5"),
    *("loss", "parameters", "multiply_adds", "image_size", "images_per_second"),
)
REAL_COLUMNS = ("real_top1", "real_count")  # besides, with ImageNet-ReaL's labels


class ModelSet(NamedTuple):
    """The models that a user selects.

    Attributes:
      names: their names, each once.
      folder: the folder with their weights files, or the file of the only one; empty for timm's weights on the
        Hugging Face hub.
    """

    names: tuple[str, ...]
    folder: str = ""

    def file_of(self, name: str) -> str:
        """Return the weights file of a model; empty for the hub. Raises WeightsError if the folder has none."""
        if not self.folder or pathlib.Path(self.folder).expanduser().is_file():
            return self.folder
        files = _files_by_name(self.folder)
        if name not in files:
            problem = f"has no file {name}.safetensors"
            raise WeightsError(problem, key="--weights", value=self.folder)
        return str(files[name])


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern of names: whether it has one of ``*?[``."""
    return any(letter in text for letter in "*?[")


def read_names(file: str, key: str) -> list[str]:
    """Return the names and patterns in a file, one a line; blank lines and those that begin with # are left out.

    Args:
      file: the file.
      key: the flag that names it, for errors.

    Raises:
      DataError: the file cannot be read, or holds no name.
    """
    try:
        lines = pathlib.Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {one_line(error)}", key=key, value=file) from error
    names = [text for line in lines if (text := line.strip()) and not text.startswith("#")]
    if not names:
        raise DataError("holds no names", key=key, value=file)
    return names


def select_models(texts: Sequence[str], folder: str, key: str) -> ModelSet:
    """Return the models of names and patterns, in the order of the texts and then of the alphabet.

    Args:
      texts: names such as "resnet50.a1_in1k", and patterns such as "resnet50*". A pattern is compared with all
        names of timm's weights, or with the names of the files in the folder.
      folder: a folder with a weights file NAME.safetensors for each name, or the file of a single name; empty for
        the hub.
      key: the flag that names them, for errors.

    Raises:
      ConfigError: a pattern matches no name.
      WeightsError: `folder` is not a folder, and there is not one name only.
    """
    if len(texts) == 1 and not is_pattern(texts[0]) and pathlib.Path(folder).expanduser().is_file():
        return ModelSet((texts[0],), folder)
    if folder and not pathlib.Path(folder).expanduser().is_dir():
        allowed = "a folder with a file NAME.safetensors for each model"
        raise WeightsError("is not a folder", key="--weights", value=folder, allowed=allowed)
    if folder:
        known = sorted(_files_by_name(folder))
    else:
        known = sorted(one.name for tags in all_pretrained().values() for one in tags.values())
    names: list[str] = []
    for text in texts:
        found = fnmatch.filter(known, text) if is_pattern(text) else [text]
        if not found:
            where = f"file of {folder}" if folder else "weights of timm"
            near = suggestion(text.strip("*"), known)
            raise ConfigError(
                f"matches no {where}",
                key=key,
                value=text,
                cure=near if near.startswith("did") else "",
            )
        names += found
    return ModelSet(tuple(dict.fromkeys(names)), folder)


def _files_by_name(folder: str) -> dict[str, pathlib.Path]:
    """Return the weights files of a folder by their names without the suffix; .safetensors goes before others."""
    files: dict[str, pathlib.Path] = {}
    for path in sorted(pathlib.Path(folder).expanduser().iterdir()):
        # The longest suffix: .pth.tar is one.
        ends = [end for end in SUFFIXES if path.name.lower().endswith(end)]
        if ends and path.is_file():
            name = path.name[: -max(map(len, ends))]
            if name not in files or path.suffix == ".safetensors":
                files[name] = path
    return files


def model_row(
    name: str,
    choice: DatasetChoice,
    *,
    weights: str = "",
    batch_size: int = 0,
    real_labels: str = "",
) -> dict[str, Any]:
    """Evaluate a model and return its row: COLUMNS, and REAL_COLUMNS if `real_labels` is set.

    Args:
      name: a network, or timm's weights for one.
      choice: the images.
      weights: a weights file; empty for timm's weights on the Hugging Face hub.
      batch_size: images per step; 0 for 64.
      real_labels: as for `evaluate_model`.

    Raises:
      UserError: as for `evaluate_model`.
    """
    classifier = load_pretrained(name, weights=weights)
    record = evaluate_classifier(
        classifier, name, choice, batch_size=batch_size, real_labels=real_labels
    ).record
    data = classifier.config.data
    data = data.but(eval_size=choice.image_size or data.eval_size)
    classifier = dataclasses.replace(
        classifier, config=dataclasses.replace(classifier.config, data=data)
    )
    size = classifier.config.evaluating().data.image_size
    summary = summarize_model(unrolled_model(classifier.model), name, size)
    low, high = proportion_interval(round(record["top1"] * record["count"]), record["count"])
    speed = images_per_second(classifier, batch_size or 64)
    values = record | {
        "weights": weights,
        "dataset": choice.dataset,
        "top1_low": low,
        "top1_high": high,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(classifier.variables["params"])),
        "multiply_adds": summary.macs,
        "image_size": size,
        "images_per_second": float(f"{speed:.4g}"),
    }
    return {key: values[key] for key in (*COLUMNS, *(REAL_COLUMNS if real_labels else ()))}
