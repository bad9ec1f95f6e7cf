"""Tools to declare the settings of a configuration section. This package defines no setting itself."""

from flax_resnet.settings.rules import (
    ANY,
    ASCENDING,
    BETAS,
    CLASS_WEIGHTS,
    LARGEST_IMAGE,
    MICROBATCH,
    PARAMETER_RULES,
    SIZES,
    Rule,
    above,
    ascending_pair,
    at_least,
    one_of,
    per_channel,
    within,
)
from flax_resnet.settings.setting import setting

__all__ = [
    "ANY",
    "ASCENDING",
    "BETAS",
    "CLASS_WEIGHTS",
    "LARGEST_IMAGE",
    "MICROBATCH",
    "PARAMETER_RULES",
    "SIZES",
    "Rule",
    "above",
    "ascending_pair",
    "at_least",
    "one_of",
    "per_channel",
    "setting",
    "within",
]
