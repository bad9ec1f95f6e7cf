"""Pretrained weights as the variables of a network: from timm's hub, a weights file, or a run folder."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flax_resnet.config import Config, freeze
from flax_resnet.errors import ConfigError, WeightsError
from flax_resnet.models.model_section import CHANNELS, Model
from flax_resnet.models.network import Network
from flax_resnet.models.stacking import unstack_blocks
from flax_resnet.settings import UNSET
from flax_resnet.training import sharding
from flax_resnet.training.runs.load import is_run, load_run
from flax_resnet.training.state import TrainState
from flax_resnet.weights import (
    Pretrained,
    classes_of,
    find,
    from_config,
    match_logits,
    to_torch,
)
from flax_resnet.weights.fill import abstract, fill, unrolled_model
from flax_resnet.weights.opening import SUFFIXES, Weights, network_of, open_weights

log = logging.getLogger("flax_resnet")

# Model options that the description leaves out: they do not affect inference, or other keys hold them.
SEPARATE = (
    "drop_path",
    "dropout",
    "zero_init_last",
    "in_channels",
    "scan_blocks",
    "remat",
    "norm_scope",
    "norm_groups",
    "norm_momentum",
    "collapse",
)


def described(config: Config, model: Network, class_names: Sequence[str]) -> dict[str, Any]:
    """Describe the network, classes and preprocessing of a run with timm's keys, for `from_config`."""
    data, size = config.data, config.data.image_size
    crops = data.eval_crop != "resize"
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
            "crop_pct": data.eval_crop_fraction if crops else 1.0,
            "crop_mode": "center" if crops else "squash",
            "interpolation": data.interpolation,
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
        },
    }


def open_run(path: str | pathlib.Path) -> Weights:
    """Read the moving average, or else the weights, of a run's last checkpoint, as if from a weights file."""
    run = load_run(path)
    variables = unstack_blocks(jax.device_get(run.best_variables()))
    about = from_config(described(run.config, run.model, run.class_names))
    return Weights(to_torch(variables), about)


def open_pretrained(
    config: Config, keys: tuple[str, str] = ("model.pretrained", "model.name")
) -> Weights:
    """Read the weights that `model.pretrained` names: a run folder, a weights file, or timm's weights.

    Args:
      config: the configuration. `model.name` is the network of the weights, or "" to take it from the run or from
        the JSON file beside the weights file.
      keys: the names of the two settings in error messages.

    Raises:
      ConfigError: the weights belong to another network than `model.name`, their network is unknown, or the path
        does not exist.
      UserError: there are no such weights, or they cannot be read.
    """
    (key, name_key), name, text = keys, config.model.name, config.model.pretrained

    def check(network: str) -> None:
        if name not in ("", network):
            raise ConfigError(
                f"is of {network}, not of {name_key}={name!r}",
                key=key,
                value=text,
                allowed=f"weights of {name}: a name of the hub, a run folder, or a file",
                cure=f"or set {name_key}='' for the network of the weights",
            )

    if is_run(text):
        weights = open_run(text)
        check(weights.about.model)
        return weights
    if is_file(text):
        network = name or network_of(text)
        if not network:
            raise ConfigError(
                f"no JSON file beside {key}={text!r} names its network",
                key=name_key,
                value="",
                allowed="the name of the network that the file holds",
            )
        return open_weights(network, text)
    if is_path(text):
        raise ConfigError(key=key, value=text, allowed="a run folder or a file of weights")
    check(text.partition(".")[0])  # raises before any download
    try:
        find(text)
    except WeightsError as error:
        problem = "; ".join(filter(None, ("is no run folder and no file", error.problem)))
        raise WeightsError(
            problem, key=key, value=text, allowed=error.allowed, cure=error.cure
        ) from error
    return open_weights(text)


def adopted(config: Config, source: Pretrained | Config) -> Config:
    """Return the configuration with its open settings filled in.

    Open settings are the network and its options if `model.name` is empty, `data.image_size` if it is 0, and
    `augment.mean` and `augment.std` if they are empty.

    Args:
      config: the configuration.
      source: the description of pretrained weights; or, to resume a run, its stored configuration.
    """
    model, data, augment = config.model, config.data, config.augment
    if isinstance(source, Config):
        options = dataclasses.asdict(source.model)
        size, mean, std = source.data.image_size, source.augment.mean, source.augment.std
    else:
        known = {field.name for field in dataclasses.fields(Model)}
        options = {key: value for key, value in source.options if key in known}
        channels = len(source.mean)
        options |= {
            "name": source.model,
            "in_channels": UNSET if channels == CHANNELS else channels,
        }
        size, mean, std = source.image_size, source.mean, source.std
    if not model.name:
        unset = dataclasses.asdict(Model(name=""))
        own = {k: v for k, v in dataclasses.asdict(model).items() if v != unset[k]}
        model = Model(**{**options, **own})
    filled = dataclasses.replace(
        config,
        model=model,
        data=data.but(image_size=data.image_size or size),
        augment=augment.but(mean=augment.mean or mean, std=augment.std or std),
    )
    return freeze(dataclasses.asdict(filled))


def is_file(text: str) -> bool:
    """Return whether a text names a weights file, not weights of the hub."""
    path = pathlib.Path(text).expanduser()
    return path.is_file() or (text.lower().endswith(SUFFIXES) and not path.exists())


def is_path(text: str) -> bool:
    """Return whether a text is a path of a run folder or weights file, which need not exist, and not a hub name."""
    return is_run(text) or is_file(text) or "/" in text or text.startswith("~")


def read_pretrained(
    config: Config, model: Network, weights: Weights, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the weights as variables of the network.

    If the classes of the weights are those of the data (`match_classes`), the head is kept, with its classes in the
    order of the data. Otherwise the head is returned as shapes. Logs a line about the head, and a warning if the
    weights were trained with another normalisation than the configured one.

    Raises:
      WeightsError: the weights do not fit the network.
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
    classes, params = classes_of(tensors), variables["params"]
    match = match_logits(class_names, about.class_names, classes)
    if classes == model.num_classes and not match.problem:
        log.info("starting from %s, with its head%s", text, match.note and f" ({match.note})")
        if match.changes_order:
            order = np.array(match.order)
            head = jax.tree.map(lambda leaf: leaf[..., order], params[model.head])
            return {**variables, "params": {**params, model.head: head}}
        return variables
    why = f" (the dataset {match.problem})" if match.problem else ""
    log.info(
        "starting from %s, with a fresh head of %d classes in place of its %d%s",
        text, model.num_classes, classes, why,
    )  # fmt: skip
    if classes != model.num_classes:
        return variables  # the head is returned as shapes already
    head = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params[model.head]
    )
    return {**variables, "params": {**params, model.head: head}}


def warm_started(
    state: TrainState,
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Copy weights into a fresh state; leaves given only as shapes keep their fresh initialization.

    The optimizer starts from these weights, too: Schedule-Free SGD keeps a copy of them.
    """

    def chosen(new: Any, fresh: jax.Array) -> jax.Array:
        return fresh if isinstance(new, jax.ShapeDtypeStruct) else sharding.replicate(new, mesh)

    own = {"params": state.params, "batch_stats": state.batch_stats}
    filled = {name: jax.tree.map(chosen, variables[name], own[name]) for name in own}
    mean = jax.tree.map(jnp.copy, filled) if state.ema else {}
    where = jax.tree.map(
        lambda leaf: leaf.sharding, {"ema": state.ema, "opt_state": state.opt_state}
    )
    opt_state = jax.jit(optimizer.init, out_shardings=where["opt_state"])(filled["params"])
    average = jax.device_put(mean, where["ema"])
    return dataclasses.replace(state, ema=average, opt_state=opt_state, **filled)
