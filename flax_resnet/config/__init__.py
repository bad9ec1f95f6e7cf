"""The configuration of a run: the rooms' sections put together, checked and frozen; and the plan it means."""

from flax_resnet.config.config import Config, default_config, differences, flatten, settings
from flax_resnet.config.freeze import freeze

__all__ = ["Config", "default_config", "differences", "flatten", "freeze", "settings"]
