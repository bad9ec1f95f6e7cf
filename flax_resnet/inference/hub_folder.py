"""The folder of a run for the Hugging Face hub: model.safetensors, config.json in timm's words, and README.md."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_resnet.errors import ConfigError, writing
from flax_resnet.inference.model_card import LICENSES, CardFacts, model_card
from flax_resnet.models import create_model
from flax_resnet.models.stacking import unstack_blocks
from flax_resnet.training.pretrained import described
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.load import LoadedRun, load_run
from flax_resnet.training.runs.metadata import versions
from flax_resnet.training.runs.scores import evaluations
from flax_resnet.weights import to_torch, write_safetensors
from flax_resnet.weights.network_configs import OWN_NETWORK, in_timm, timm_arguments, timm_ends


class HubFolder(NamedTuple):
    """A folder that was written.

    Attributes:
      path: the folder.
      network: the name of the network.
      lacking: what timm lacks to load it; empty if timm loads it.
    """

    path: pathlib.Path
    network: str
    lacking: tuple[str, ...]


def write_hub_folder(
    path: str | pathlib.Path,
    run: str | pathlib.Path,
    *,
    license: str,
    repository: str = "USER/NAME",
    checkpoint: str | int = "last",
) -> HubFolder:
    """Write the folder of a run as a repository of the hub holds it. The moving average is written if there is one.

    timm loads it by ``create_model("local-dir:PATH", pretrained=True)``. If timm lacks the network or one of its
    options, config.json names the network by a key of this package, and README.md says that timm does not load it.

    Args:
      path: the folder; created if it is missing. Files of the same names are replaced.
      run: the run folder.
      license: one of LICENSES.
      repository: USER/NAME, for the lines of README.md that load the weights.
      checkpoint: as for `load_run`.

    Raises:
      ConfigError: the licence is missing or unknown.
      UserError: there is no such run or checkpoint, no layout holds its network, or the folder cannot be written.
    """
    check_license(license)
    loaded = load_run(run, checkpoint)
    variables = unstack_blocks(jax.device_get(loaded.best_variables()))
    tensors = to_torch(variables)
    config, lacking = repository_config(loaded, tensors)
    facts = CardFacts(
        repository=repository,
        license=license,
        config=loaded.config,
        class_names=loaded.class_names,
        num_examples=loaded.metadata.num_examples,
        step=loaded.step,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        record=_evaluation(RunFolder.at(run), loaded),
        chosen=checkpoint == "best",
        versions=loaded.metadata.versions or versions(),
        lacking=lacking,
    )
    folder = pathlib.Path(path).expanduser()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, text in (
        ("config.json", json.dumps(config, indent=2) + "\n"),
        ("README.md", model_card(facts)),
    ):
        with writing(folder / name):
            (folder / name).write_text(text, encoding="utf-8")
    return HubFolder(folder, loaded.config.model.name, lacking)


def check_license(license: str) -> None:
    """Raise ConfigError if a licence is missing or none of LICENSES."""
    if not license:
        raise ConfigError(
            "is needed: others may use the weights only as it says",
            key="--license",
            cure="choose an identifier of the hub, such as apache-2.0, cc-by-nc-4.0 or other",
        )
    if license not in LICENSES:
        raise ConfigError(key="--license", value=license, allowed=LICENSES)


def repository_config(
    run: LoadedRun, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the content of config.json, and what timm lacks to load it."""
    config = described(run.config, run.model, run.class_names)
    network = config["architecture"]
    plain = create_model(network)
    options = {
        key: value
        for key, value in config["options"].items()
        if getattr(plain, key, dataclasses.MISSING) != value
    }
    arguments, lacking = timm_arguments(options)
    if not in_timm(network):
        lacking = (f"the network {network}", *lacking)
    config["options"] = options
    if lacking:
        config = {OWN_NETWORK: config.pop("architecture"), **config}
        return config, lacking
    inner = config["pretrained_cfg"]
    inner |= (ends := timm_ends(tensors))
    inner["test_crop_pct"] = inner["crop_pct"]
    if head := ends["classifier"]:
        config["num_features"] = tensors[f"{head}.weight"].shape[1]
    if run.model.in_channels != 3:
        arguments["in_chans"] = run.model.in_channels
    return {**config, "model_args": arguments}, ()


def _evaluation(folder: RunFolder, run: LoadedRun) -> dict[str, Any]:
    """Return the last evaluation of the checkpoint on the run's evaluation split; {} if there is none."""
    records = evaluations(folder.read_records(), run.config, folder.scores_from())
    return next((r for r in reversed(records) if r["step"] == run.step and "count" in r), {})
