"""Open pretrained weights by timm's name, from a repository of the hub, a folder or a file."""

import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flax_resnet.errors import WeightsError, one_line
from flax_resnet.weights import (
    Pretrained,
    fetch,
    find,
    from_config,
    imagenet_classes,
    read_tensors,
)
from flax_resnet.weights.hub import (
    FILES,
    PREPROCESSOR,
    REPOSITORY,
    fetch_repository,
    read_description,
)
from flax_resnet.weights.network_configs import USUAL, about_of

log = logging.getLogger("flax_resnet")


# Usual suffixes of weights files. They tell a file that does not exist from a name on the hub. The content of a
# file, not its suffix, decides how it is read.
SUFFIXES = (
    *(".safetensors", ".pth", ".pth.tar", ".pt", ".th", ".ckpt", ".bin", ".pkl", ".npz"),
    ".msgpack",
)


class Weights(NamedTuple):
    """Tensors by their name in the file, and the description of the weights."""

    tensors: dict[str, np.ndarray]
    about: Pretrained


def is_repository(name: str) -> bool:
    """Return whether a name is a folder of the hub's layout, or can be a repository of the hub (USER/NAME)."""
    return is_hub_folder(name) or REPOSITORY.fullmatch(name) is not None


def is_hub_folder(path: str | pathlib.Path) -> bool:
    """Return whether a folder holds a config.json and weights, as a repository of the hub does."""
    folder = pathlib.Path(path).expanduser()
    return (folder / "config.json").is_file() and any((folder / file).is_file() for file in FILES)


def open_repository(name: str) -> Weights:
    """Read the weights of a repository of the hub, or of a folder of the same layout.

    Args:
      name: USER/NAME, USER/NAME@REVISION, or a folder. A folder goes before a repository of the same name.

    Raises:
      WeightsError: there are no such weights, or they belong to no network of this package.
    """
    if is_hub_folder(name):
        folder = pathlib.Path(name).expanduser()
        file = next(folder / file for file in FILES if (folder / file).is_file())
        config = read_description(folder / "config.json", name)
        other = folder / PREPROCESSOR
        preprocessor = read_description(other, name) if other.is_file() else None
    elif pathlib.Path(name).expanduser().exists():
        raise WeightsError(
            f"holds no config.json with {' or '.join(FILES)}",
            key="name",
            value=name,
            allowed="a network's name, a repository of the hub, or a folder like one",
            cure="a run folder is opened by flax_resnet.load, or --workdir",
        )
    else:
        file, config, preprocessor = fetch_repository(name)
    about = about_of(config, preprocessor)
    return Weights(read_tensors(file), about)


def open_weights(name: str, path: str | pathlib.Path = "") -> Weights:
    """Read weights and their preprocessing.

    Args:
      name: name of the network, or of timm's weights for it ("resnet50.a1_in1k").
      path: a weights file, or a folder like a repository of the hub; empty to take the weights from the Hugging
        Face hub or its local cache. A JSON file next to the weights file can describe the preprocessing in timm's
        format. Its name is config.json, or the name of the weights file with the suffix .json in place of its own
        (.pth.tar is one suffix). It is ignored if its "architecture" is another network.

    Raises:
      WeightsError: there are no weights of that name, or the file is invalid.
    """
    if not path:
        known = find(name)
        file, config = fetch(known.name)
        about = from_config(config)
        if known.num_classes == 1000 and not about.class_names:  # all of these are of ImageNet-1k
            about = about._replace(class_names=imagenet_classes()[1])
        return Weights(read_tensors(file), about)
    path = pathlib.Path(path).expanduser()
    if is_hub_folder(path):
        opened, wanted = open_repository(str(path)), name.partition(".")[0]
        if opened.about.model != wanted:
            raise WeightsError(
                f"holds {opened.about.model}, not {wanted}",
                key=path,
                cure=f"name the folder itself instead of {wanted}",
            )
        return opened
    tensors = read_tensors(path)
    model = name.partition(".")[0]
    for config in _configs_beside(path):
        if config["architecture"] == model:
            return Weights(tensors, about_of(config))
    try:
        about = find(name)
        log.info(
            "%s: images are preprocessed as for %s (%d px, crop %g, %s); add .TAG to the name to choose another",
            path.name, about.name, about.image_size, about.crop_fraction, about.interpolation,
        )  # fmt: skip
        return Weights(tensors, about)
    except WeightsError:
        if "." in name:
            raise
        return Weights(tensors, USUAL._replace(model=model))


def network_of(path: str | pathlib.Path) -> str:
    """Return the network that a JSON file next to a weights file names; empty if no file names one."""
    configs = _configs_beside(pathlib.Path(path).expanduser())
    return next((config["architecture"] for config in configs), "")


def _configs_beside(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield the content of each JSON file next to a weights file, if it names a network ("architecture")."""
    whole = path.with_suffix("") if path.name.lower().endswith(".pth.tar") else path
    names = (whole.with_suffix(".json"), path.with_suffix(".json"), path.with_name("config.json"))
    for file in dict.fromkeys(names):
        if not file.is_file() or file == path:
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(
                f"should describe the weights next to it, but cannot be read: {one_line(error)}",
                key=file,
            ) from error
        if isinstance(config, dict) and isinstance(config.get("architecture"), str):
            yield config
