"""The flag --config, and the configuration that results from it and its overrides."""

import dataclasses

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from flax_resnet.cli import app
from flax_resnet.config import Config, freeze, override


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
    # The flag has applied its overrides; the recipe's own values are the defaults of the flags of its keys.
    overrides = config_flags.get_override_values(values["config"])
    recipe = app.flag(values, "config").copy_and_resolve_references()
    recipe.update_from_flattened_dict({key: values[f"config.{key}"].default for key in overrides})
    config = freeze(override(recipe.to_dict(), overrides))
    if data_dir := app.flag(values, "data_dir"):
        config = dataclasses.replace(config, data=config.data.but(data_dir=data_dir))
    return config
