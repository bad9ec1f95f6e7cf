"""The pretrained weights and their preprocessing, from tables beside this file."""

import csv
import functools
import importlib.resources
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax_resnet.errors import WeightsError, one_line, suggestion


class Pretrained(NamedTuple):
    """A set of weights and the preprocessing it was trained with.

    Attributes:
      model: the network's name, such as "resnet50".
      tag: name of the weights among those of the network, such as "a1_in1k".
      num_classes: number of classes; 0 if the weights have no classifier.
      image_size: side of the image, in pixels.
      crop_fraction: side of the centre crop / the image's shorter side, in (0, 1].
      interpolation: "bilinear" or "bicubic".
      mean: per channel, of pixels in [0, 1].
      std: per channel, of pixels in [0, 1].
      test_image_size: the side with the best accuracy; `image_size` if none is stated.
      test_crop_fraction: the crop fraction for `test_image_size`; `crop_fraction` if none is stated.
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
    tags = _pretrained().get(model)
    if tags is None:
        near = suggestion(model, _pretrained())
        cure = near if near.startswith("did") else "give a file of weights"
        raise WeightsError(f"no pretrained weights for {model!r} on the hub: {cure}")
    if not tag:
        return next(iter(tags.values()))
    if tag not in tags:
        near = suggestion(tag, tags)
        near = "" if near.startswith("allowed") else f"{near} "
        raise WeightsError(
            f"no weights {tag!r} for {model!r}: {near}allowed: {', '.join(sorted(tags))}"
        )
    return tags[tag]


def from_config(config: Mapping[str, Any]) -> Pretrained:
    """Read a ``config.json`` of timm's weights on the hub.

    Args:
      config: {"architecture": ..., "num_classes": ..., "pretrained_cfg": {...}}, optionally with "label_names". In
        older files, the keys of "pretrained_cfg" are at the top level.

    Raises:
      WeightsError: something is missing or of the wrong kind.

    Source: _parse_model_cfg of timm, models/_hub.py.
    """
    try:
        inner = {**config.get("pretrained_cfg", {}), **config}
        size, crop = _side(inner["input_size"]), _fraction(inner["crop_pct"])
        test_size, test_crop = inner.get("test_input_size"), inner.get("test_crop_pct")
        return Pretrained(
            model=str(inner["architecture"]),
            tag=str(inner.get("tag") or ""),
            num_classes=int(inner["num_classes"]),
            image_size=size,
            crop_fraction=crop,
            interpolation=_one_of("interpolation", inner["interpolation"], "bilinear", "bicubic"),
            mean=_channels("mean", (float(x) for x in inner["mean"])),
            std=_channels("std", (_positive(x) for x in inner["std"])),
            test_image_size=_side(test_size) if test_size else size,
            test_crop_fraction=_fraction(test_crop) if test_crop else crop,
            crop_mode=_one_of("crop_mode", inner.get("crop_mode", "center"), "center", "squash"),
            options=tuple(
                (str(key), tuple(value) if isinstance(value, list) else value)
                for key, value in inner.get("options", {}).items()
                if key not in ("name", "num_classes", "in_channels")  # have fields of their own
            ),
            class_names=tuple(
                str(x) for x in inner.get("label_names") or inner.get("labels") or ()
            ),
        )
    except KeyError as error:
        raise WeightsError(f"config.json of the weights has no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"config.json of the weights: {one_line(error)}") from error


def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the WordNet ids and the names of the ImageNet-1k classes, 1000 each, in the order of the logits.

    Source: the ids in ascending order; names as in torchvision, models/_meta.py.
    """
    rows = _rows("imagenet1k.csv")
    return tuple(row["wnid"] for row in rows), tuple(row["name"] for row in rows)


@functools.cache
def _pretrained() -> dict[str, dict[str, Pretrained]]:
    """Return model -> tag -> weights, with the default tag first."""
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


def _side(input_size: Any) -> int:
    _, height, width = (int(x) for x in input_size)
    if height != width or height < 1:
        raise ValueError(f"input_size {list(input_size)}: must be square")
    return height


def _one_of(key: str, value: Any, *choices: str) -> str:
    if value not in choices:
        raise ValueError(f"{key} {value!r}: allowed: {', '.join(choices)}")
    return value


def _channels(key: str, values: Any) -> tuple[float, ...]:
    values = tuple(values)
    if len(values) not in (1, 3):
        raise ValueError(f"{key} {list(values)}: must be 3 numbers, or 1 for grey")
    return values


def _fraction(number: Any) -> float:
    if (number := _positive(number)) > 1:
        raise ValueError(f"crop_pct {number}: must be at most 1")
    return number


def _positive(number: Any) -> float:
    number = float(number)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{number} must be above zero")
    return number
