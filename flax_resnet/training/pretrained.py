"""Weights made elsewhere, as the variables of a network: by timm's name, or from a file."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flax_resnet.config import Config, freeze
from flax_resnet.errors import ConfigError, WeightsError, one_line
from flax_resnet.models.scan import scanned, unrolled
from flax_resnet.sections import Model
from flax_resnet.training import sharding
from flax_resnet.training.saved import is_run, read_run
from flax_resnet.training.state import TrainState
from flax_resnet.weights import (
    Pretrained,
    classes_of,
    fetch,
    find,
    from_config,
    from_torch,
    read_tensors,
    to_torch,
)

log = logging.getLogger("flax_resnet")

# torchvision's, for weights that nothing is said about
USUAL = Pretrained(
    "", "", 1000, 224, 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 0.875
)
# Options that are no part of a network's shape, or that the description holds elsewhere.
SEPARATE = (
    "drop_path",
    "dropout",
    "zero_init_last",
    "in_channels",
    "scan",
    "remat",
    "norm_groups",
    "norm_momentum",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")


class Weights(NamedTuple):
    """Tensors by their name in the file, and what is known about them."""

    tensors: dict[str, np.ndarray]
    about: Pretrained


def open_weights(name: str, path: str | pathlib.Path = "") -> Weights:
    """Reads weights and the preprocessing that belongs to them.

    Args:
      name: of the network, or of timm's weights for it ("resnet50.a1_in1k").
      path: file of weights; empty for the Hugging Face hub, or its local cache. What a JSON file of the
        same stem, or a config.json beside it, says in timm's words about this network is taken over.

    Raises:
      WeightsError: there are none of that name, or the file is not what it should be.
    """
    if not path:
        file, config = fetch(find(name).name)
        return Weights(read_tensors(file), from_config(config))
    path = pathlib.Path(path).expanduser()
    tensors = read_tensors(path)
    model = name.partition(".")[0]
    for config in _configs_beside(path):
        if config["architecture"] == model:
            return Weights(tensors, from_config(config))
    try:
        about = find(name)
        log.info(
            "%s: prepared for as %s is (%d px, crop %g, %s); model.TAG says otherwise",
            path.name, about.name, about.image_size, about.crop_fraction, about.interpolation,
        )  # fmt: skip
        return Weights(tensors, about)
    except WeightsError:
        if "." in name:
            raise
        return Weights(tensors, USUAL._replace(model=model))


def network_of(path: str | pathlib.Path) -> str:
    """Returns the network of a file of weights as a JSON file beside it has it; empty where none says."""
    configs = _configs_beside(pathlib.Path(path).expanduser())
    return next((config["architecture"] for config in configs), "")


def _configs_beside(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields what JSON files say of the weights beside them, as far as they name a network."""
    for file in (path.with_suffix(".json"), path.with_name("config.json")):
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{file}, beside the weights, cannot be read: {one_line(error)}"
            ) from error
        if isinstance(config, dict) and isinstance(config.get("architecture"), str):
            yield config


def described(config: Config, model: nn.Module, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns network, classes and preprocessing of a run in timm's words: what `from_config` reads."""
    data, size = config.data, config.data.image_size
    whole = data.eval_crop == "resize"
    return {
        "architecture": config.model.name,
        "num_classes": model.num_classes,
        "label_names": list(class_names),
        "options": {k: v for k, v in config.model.options().items() if k not in SEPARATE},
        "pretrained_cfg": {
            "tag": "",
            "num_classes": model.num_classes,
            "input_size": [model.in_channels, size, size],
            "test_input_size": [model.in_channels, *2 * [data.eval_size or size]],
            "crop_pct": 1.0 if whole else data.eval_crop_fraction,
            "crop_mode": "squash" if whole else "center",
            "interpolation": data.interpolation,
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
        },
    }


def open_run(path: str | pathlib.Path) -> Weights:
    """Reads the weights of a run's last checkpoint, as a file of them would hold them."""
    run = read_run(path)
    variables = unrolled(jax.device_get(run.variables()))
    about = from_config(described(run.config, run.model, run.class_names))
    return Weights(to_torch(variables), about)


def open_pretrained(
    config: Config, keys: tuple[str, str] = ("model.pretrained", "model.name")
) -> Weights:
    """Reads the weights that `model.pretrained` names: a run's, a file's, or timm's.

    Args:
      config: whose section `model` names weights, and their network or "" for what a run or a JSON file beside
        them says.
      keys: what errors call the two.

    Raises:
      ConfigError: they are of another network than `model.name`.
      UserError: there are no such weights.
    """
    (key, name_key), name, text = keys, config.model.name, config.model.pretrained

    def check(network: str) -> None:
        if name not in ("", network):
            raise ConfigError(
                f"{key}={text!r}: is of {network}, not of {name_key}={name!r}; allowed: weights of {name}, a run "
                f"of it, a file of it, or {name_key}='' for the network of the weights"
            )

    if is_run(text):
        weights = open_run(text)
        check(weights.about.model)
        return weights
    if is_file(text):
        network = name or network_of(text)
        if not network:
            raise ConfigError(
                f"{name_key}='': must name the network that the file {key}={text!r} holds: no JSON file beside "
                "it says so"
            )
        return open_weights(network, text)
    if is_path(text):
        raise ConfigError(f"{key}={text!r}: is neither a run folder nor a file of weights")
    check(text.partition(".")[0])  # a wrong name costs no download
    try:
        find(text)
    except WeightsError as error:
        raise WeightsError(f"{key}={text!r}: is no run folder, no file, and {error}") from error
    return open_weights(text)


def adopted(config: Config, source: Pretrained | Config) -> Config:
    """Takes what the configuration leaves open from weights, or, to resume a run, from what it had taken.

    That is the network, with its options, where `model.name` is empty; `data.image_size` where it is 0; and
    `augment.mean` and `augment.std` where they are empty.
    """
    model, data, augment = config.model, config.data, config.augment
    if isinstance(source, Config):
        options = dataclasses.asdict(source.model)
        size, mean, std = source.data.image_size, source.augment.mean, source.augment.std
    else:
        known = {field.name for field in dataclasses.fields(Model)}
        options = {key: value for key, value in source.options if key in known}
        options |= {"name": source.model, "in_channels": len(source.mean)}
        size, mean, std = source.image_size, source.mean, source.std
    if not model.name:
        unset = dataclasses.asdict(Model(name=""))
        own = {k: v for k, v in dataclasses.asdict(model).items() if v != unset[k]}
        model = Model(**{**options, **own})
    whole = dataclasses.replace(
        config,
        model=model,
        data=dataclasses.replace(data, image_size=data.image_size or size),
        augment=dataclasses.replace(augment, mean=augment.mean or mean, std=augment.std or std),
    )
    return freeze(dataclasses.asdict(whole))


def is_file(text: str) -> bool:
    """Whether a text names a file of weights rather than weights of the hub."""
    return text.endswith(SUFFIXES) or pathlib.Path(text).expanduser().is_file()


def is_path(text: str) -> bool:
    """Whether a text names a place, where a run or a file is or should be, rather than weights of the hub."""
    return is_run(text) or is_file(text) or "/" in text or text.startswith("~")


def fill(
    model: nn.Module,
    tensors: dict[str, np.ndarray],
    *,
    initial: Any = None,
    adapt_stem: bool = False,
) -> dict[str, Any]:
    """Returns the variables of a network with these tensors in them, or raises WeightsError.

    Args:
      model: of `create_model`, scanned or not.
      tensors: as `open_weights` reads them.
      initial: variables (unrolled) whose head stays where the tensors have another number of classes;
        None: that is an error.
      adapt_stem: whether the first convolution is adapted to another number of input channels.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter empty without batch normalisation; NumPy arrays.
    """
    whole = unrolled_model(model)
    variables = from_torch(tensors, abstract(whole), initial=initial, adapt_stem=adapt_stem)
    if whole is not model:
        variables = scanned(variables)
    return {"batch_stats": {}, **variables}


def unrolled_model(model: nn.Module) -> nn.Module:
    """Returns the network with its blocks one by one."""
    return model.clone(scan=False) if getattr(model, "scan", False) else model


def abstract(model: nn.Module) -> dict[str, Any]:
    """Returns the shapes and dtypes of a network's variables, without allocating them."""
    # Large enough for every pool of AlexNet and VGG; no variable's shape depends on it.
    image = jax.ShapeDtypeStruct((1, 224, 224, model.in_channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def read_pretrained(config: Config, model: nn.Module, weights: Weights) -> dict[str, Any]:
    """Returns the weights as variables of the network; shapes alone for a head of other classes.

    Says where their preprocessing is not the configured one. Raises WeightsError.
    """
    (tensors, about), text, augment = weights, config.model.pretrained, config.augment
    variables = fill(
        model, tensors, initial=abstract(unrolled_model(model)), adapt_stem=model.in_channels != 3
    )
    if model.in_channels == 3 and (about.mean, about.std) != (augment.mean, augment.std):
        log.warning(
            "%s was trained with augment.mean=%s, augment.std=%s; this run has %s, %s",
            text, about.mean, about.std, augment.mean, augment.std,
        )  # fmt: skip
    classes = classes_of(tensors)
    same = classes == model.num_classes
    fresh = f"a fresh head of {model.num_classes} classes in place of its {classes}"
    log.info("starting from %s, with %s", text, "its head" if same else fresh)
    return variables


def warm_started(state: TrainState, variables: dict[str, Any], mesh: Mesh) -> TrainState:
    """Puts variables into a fresh state, which keeps what they are only shapes of."""

    def chosen(new: Any, fresh: jax.Array) -> jax.Array:
        whole = sharding.replicated(mesh)
        return fresh if isinstance(new, jax.ShapeDtypeStruct) else jax.device_put(new, whole)

    own = {"params": state.params, "batch_stats": state.batch_stats}
    filled = {name: jax.tree.map(chosen, variables[name], own[name]) for name in own}
    mean = jax.tree.map(jnp.copy, filled) if state.average else {}
    return dataclasses.replace(state, average=mean, **filled)
