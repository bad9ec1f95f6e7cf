"""The flag --config, and the configuration that results from it and its overrides."""

import dataclasses
import logging
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from flax_resnet.cli import app
from flax_resnet.config import Config, freeze, owners
from flax_resnet.settings import UNSET

log = logging.getLogger("flax_resnet")


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """Define --config; each of its keys can be overridden as --config.section.key=value."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "configuration: a file, or the name of a packaged one (resnet18), with an optional :argument; "
        "--config.SECTION.KEY=VALUE overrides one value",
        flag_values=values,
        sys_argv=["", *argv],
    )


def frozen_config(values: flags.FlagValues) -> Config:
    """Return the checked configuration of --config, with --data_dir if it is set. Raises ConfigError."""
    if not isinstance(app.flag(values, "config"), ConfigDict):
        raise app.needed("--config", "a file such as configs/resnet18.py, or a packaged name")
    config = freeze(_with_rows_defaults(values))
    if data_dir := app.flag(values, "data_dir"):
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    return config


def _with_rows_defaults(values: flags.FlagValues) -> dict[str, Any]:
    """Return the settings of --config; unset those that belong to a choice that the command line changes.

    For example, the momentum of a recipe is meant for the recipe's optimizer. If the command line selects another
    optimizer, the default momentum of that optimizer applies, unless the command line also sets the momentum.
    """
    config = app.flag(values, "config").to_dict()
    overrides = config_flags.get_override_values(values["config"])
    for key, choice in owners().items():
        if choice not in overrides or overrides[choice] == values[f"config.{choice}"].default:
            continue
        section, name = key.split(".")
        if key not in overrides and config[section].get(name) is not UNSET:
            log.info("%s=%s: the recipe's %s does not apply", choice, overrides[choice], key)
            config[section][name] = UNSET
    return config
