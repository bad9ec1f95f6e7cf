"""The configuration of a run, checked and frozen, and the plan that follows from it."""

from flax_resnet.config.config import Config, default_config, differences, flatten, owners, settings
from flax_resnet.config.freeze import freeze
from flax_resnet.config.override import override

__all__ = [
    "Config",
    "default_config",
    "differences",
    "flatten",
    "freeze",
    "override",
    "owners",
    "settings",
]
