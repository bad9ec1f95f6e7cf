"""Tools to declare the settings of a configuration section. This package defines no setting itself."""

from flax_resnet.settings.rows import REQUIRED, Registry, Row
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
from flax_resnet.settings.section import UNSET, Section, choice, setting, terms

__all__ = [
    "ANY",
    "ASCENDING",
    "BETAS",
    "CLASS_WEIGHTS",
    "LARGEST_IMAGE",
    "MICROBATCH",
    "PARAMETER_RULES",
    "REQUIRED",
    "SIZES",
    "UNSET",
    "Registry",
    "Row",
    "Rule",
    "Section",
    "above",
    "ascending_pair",
    "at_least",
    "choice",
    "one_of",
    "per_channel",
    "setting",
    "terms",
    "within",
]
