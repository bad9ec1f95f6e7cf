"""The pretrained weights and their preprocessing, from the CSV files next to this file."""

import csv
import functools
import importlib.resources
import io
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax_resnet.errors import WeightsError, suggestion


class Pretrained(NamedTuple):
    """A set of weights and the preprocessing it was trained with.

    Attributes:
      model: the network's name, such as "resnet50".
      tag: name that distinguishes the weights of one network, such as "a1_in1k".
      num_classes: number of classes; 0 if the weights have no classifier.
      image_size: side of the image, in pixels.
      crop_fraction: side of the centre crop / the image's shorter side, in (0, 1].
      interpolation: "bilinear" or "bicubic".
      mean: mean of each channel, for pixels in [0, 1].
      std: standard deviation of each channel, for pixels in [0, 1].
      test_image_size: side with the best accuracy; `image_size` if the source states none.
      test_crop_fraction: crop fraction for `test_image_size`; `crop_fraction` if the source states none.
      class_names: names of the classes, if the config of the weights lists them; else empty.
      crop_mode: "center", or "squash" to resize the whole image regardless of its aspect ratio.
      options: (name, value) pairs of `create_model` options that differ from the named network.
    """

    model: str
    tag: str
    num_classes: int
    image_size: int
    crop_fraction: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_image_size: int
    test_crop_fraction: float
    class_names: tuple[str, ...] = ()
    crop_mode: str = "center"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Model and tag, in the form that `fetch` accepts."""
        return f"{self.model}.{self.tag}" if self.tag else self.model


def find(name: str) -> Pretrained:
    """Look up weights by name.

    Args:
      name: "resnet50.a1_in1k", or "resnet50" for timm's default weights.

    Raises:
      WeightsError: there are no weights of that name.

    Source: default_cfgs of timm, models/resnet.py and models/resnetv2.py.
    """
    model, _, tag = name.partition(".")
    tags = all_pretrained().get(model)
    if tags is None:
        near = suggestion(model, all_pretrained())
        raise WeightsError(
            f"the hub has no pretrained weights for {model!r}",
            key="name",
            value=name,
            cure=near if near.startswith("did") else "give a file of weights",
        )
    if not tag:
        return next(iter(tags.values()))
    if tag not in tags:
        near = suggestion(tag, tags)
        raise WeightsError(
            f"the hub has no weights {tag!r} for {model!r}",
            key="name",
            value=name,
            allowed=f"{model} with one of the tags {', '.join(sorted(tags))}",
            cure=near if near.startswith("did") else "",
        )
    return tags[tag]


def from_config(config: Mapping[str, Any]) -> Pretrained:
    """Read the content of a ``config.json``, which describes timm's weights on the hub.

    Args:
      config: {"architecture": ..., "num_classes": ..., "pretrained_cfg": {...}}, optionally with the class names:
        "label_names", or "id2label" as in transformers. In older files, the keys of "pretrained_cfg" are at the top
        level.

    Raises:
      WeightsError: an entry is missing or invalid.

    Source: _parse_model_cfg of timm, models/_hub.py.
    """
    inner = _entry(config, "pretrained_cfg", {})
    entries = {**inner, **config}
    entry = functools.partial(
        _entry, {k: v for k, v in entries.items() if v or k not in MAY_BE_EMPTY}
    )
    size, crop = entry("input_size"), entry("crop_pct")
    return Pretrained(
        model=entry("architecture"),
        tag=entry("tag", ""),
        num_classes=entry("num_classes"),
        image_size=size,
        crop_fraction=crop,
        interpolation=entry("interpolation"),
        mean=entry("mean"),
        std=entry("std"),
        test_image_size=entry("test_input_size", size),
        test_crop_fraction=entry("test_crop_pct", crop),
        crop_mode=entry("crop_mode", "center"),
        options=entry("options", ()),
        class_names=entry("label_names", entry("labels", entry("id2label", ()))),
    )


@functools.cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the WordNet ids and the names of the ImageNet-1k classes, 1000 each, in the order of the logits.

    Source: the ids in ascending order; names as in torchvision, models/_meta.py.
    """
    rows = _rows("imagenet1k.csv")
    return tuple(row["wnid"] for row in rows), tuple(row["name"] for row in rows)


@functools.cache
def all_pretrained() -> dict[str, dict[str, Pretrained]]:
    """Return all weights on the hub: model -> tag -> weights, with the default tag first."""
    models: dict[str, dict[str, Pretrained]] = {}
    for row in sorted(_rows("pretrained.csv"), key=lambda row: row["default"] != "1"):
        size, crop = int(row["image_size"]), float(row["crop_fraction"])
        models.setdefault(row["name"], {})[row["tag"]] = Pretrained(
            model=row["name"],
            tag=row["tag"],
            num_classes=int(row["num_classes"]),
            image_size=size,
            crop_fraction=crop,
            interpolation=row["interpolation"],
            mean=tuple(float(x) for x in row["mean"].split()),
            std=tuple(float(x) for x in row["std"].split()),
            test_image_size=int(row["test_image_size"] or size),
            test_crop_fraction=float(row["test_crop_fraction"] or crop),
        )
    return models


def _rows(file: str) -> list[dict[str, str]]:
    text = importlib.resources.files("flax_resnet.weights").joinpath(file).read_bytes().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _entry(entries: Mapping[str, Any], key: str, default: Any = ...) -> Any:
    """Return an entry of a config, converted as in `ENTRIES`, or the default if the entry is missing."""
    if key not in entries:
        if default is ...:
            raise WeightsError("is missing in the config.json of the weights", key=key)
        return default
    convert, allowed = ENTRIES[key]
    try:
        return convert(entries[key])
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WeightsError(
            "is invalid in the config.json of the weights",
            key=key,
            value=entries[key],
            allowed=allowed,
        ) from error


def _side(input_size: Any) -> int:
    _, height, width = (int(x) for x in input_size)
    if height != width or height < 1:
        raise ValueError
    return height


def _one_of(*choices: str) -> Callable[[Any], str]:
    return lambda value: choices[choices.index(value)]


def _channels(values: Any, convert: Callable[[Any], float]) -> tuple[float, ...]:
    numbers = tuple(convert(x) for x in values)
    if len(numbers) not in (1, 3):
        raise ValueError
    return numbers


def _options(values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (str(key), tuple(value) if isinstance(value, list) else value)
        for key, value in values.items()
        if key not in ("name", "num_classes", "in_channels")  # `Pretrained` has fields for these
    )


def _names(values: Any) -> tuple[str, ...]:
    return tuple(str(x) for x in values)


def _fraction(number: Any) -> float:
    if (number := _positive(number)) > 1:
        raise ValueError
    return number


def _positive(number: Any) -> float:
    number = float(number)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError
    return number


def _names_by_index(names: Any) -> tuple[str, ...]:
    by_index = {int(index): name for index, name in names.items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError
    return _names([by_index[index] for index in sorted(by_index)])


SQUARE = "channels, height and width of a square image"
FRACTION = "above 0 and at most 1"
INTERPOLATIONS, CROP_MODES = ("bilinear", "bicubic"), ("center", "squash")

# The entries of a config.json: {key: (conversion, allowed values for error messages)}.
ENTRIES: dict[str, tuple[Callable[[Any], Any], str | tuple[str, ...]]] = {
    "pretrained_cfg": (lambda values: {**values}, "an object"),
    "architecture": (str, "the name of a network"),
    "tag": (str, "a text"),
    "num_classes": (int, "a whole number"),
    "input_size": (_side, SQUARE),
    "test_input_size": (_side, SQUARE),
    "crop_pct": (_fraction, FRACTION),
    "test_crop_pct": (_fraction, FRACTION),
    "interpolation": (_one_of(*INTERPOLATIONS), INTERPOLATIONS),
    "crop_mode": (_one_of(*CROP_MODES), CROP_MODES),
    "mean": (lambda mean: _channels(mean, float), "3 numbers, or 1 for grey"),
    "std": (lambda std: _channels(std, _positive), "3 numbers above 0, or 1 for grey"),
    "options": (_options, "an object"),
    "label_names": (_names, "a list of names"),
    "labels": (_names, "a list of names"),
    "id2label": (_names_by_index, "an object with the names of the classes 0, 1, ..."),
}
# Entries that are ignored, as if missing, if they are empty (null, "", 0, []).
MAY_BE_EMPTY = ("tag", "test_input_size", "test_crop_pct", "label_names", "labels", "id2label")
