"""Changes to the settings of a recipe."""

import logging
from collections.abc import Mapping
from typing import Any

from flax_resnet.config.config import sections
from flax_resnet.models.registry import takes
from flax_resnet.settings import UNSET, outdated

log = logging.getLogger("flax_resnet")


def override(values: Mapping[str, Mapping], overrides: Mapping[str, Any]) -> dict[str, dict]:
    """Return the settings of a recipe with changes.

    The recipe's settings that are `outdated` become unset, each with a log line. For example, the momentum of a
    recipe is meant for the recipe's optimizer. With another optimizer, the default momentum of that optimizer
    applies. Options that another network does not have become unset as well.

    Args:
      values: all settings, {section: {name: value}}.
      overrides: {dotted key: value}.
    """
    given: dict[str, dict[str, Any]] = {}
    for key, value in overrides.items():
        section, name = key.split(".")
        given.setdefault(section, {})[name] = value
    result = {section: {**own, **given.get(section, {})} for section, own in values.items()}
    for section, own in given.items():
        after = result[section]
        why = outdated(sections()[section], values[section], after, own)
        if section == "model" and after.get("name") != values[section].get("name"):
            why |= {
                name: "name"
                for name, value in after.items()
                if name not in own and value is not UNSET and not takes(after["name"], name)
            }
        for name, owner in why.items():
            text = "%s.%s=%s: the recipe's %s.%s does not apply"
            log.info(text, section, owner, after[owner], section, name)
            after[name] = UNSET
    return result
