"""Changes to the settings of a recipe."""

import logging
import types
from collections.abc import Mapping
from typing import Any

from flax_resnet.config.config import owners, settings
from flax_resnet.models.registry import takes
from flax_resnet.settings import UNSET

log = logging.getLogger("flax_resnet")


def override(values: Mapping[str, Mapping], overrides: Mapping[str, Any]) -> dict[str, dict]:
    """Return the settings of a recipe with changes.

    The recipe's settings that belong to a changed setting become unset, with a log line, if they are not changed
    themselves. For example, the momentum of a recipe is meant for the recipe's optimizer. With another optimizer,
    the default momentum of that optimizer applies. And if a change turns mixup off, the recipe's parameters of
    mixup do not apply. Options that another network does not have become unset as well.

    Args:
      values: all settings, {section: {name: value}}.
      overrides: {dotted key: value}.
    """
    result = {section: dict(own) for section, own in values.items()}
    changed, known = set(), settings()
    for key, value in overrides.items():
        section, name = key.split(".")
        if value != result[section][name]:
            changed.add(key)
        result[section][name] = value
    network = result["model"]["name"] if "model.name" in changed else ""
    for name, value in result.get("model", {}).items():
        unknown = known[f"model.{name}"].default is UNSET and not takes(network, name)
        if unknown and value is not UNSET and f"model.{name}" not in overrides:
            log.info("model.name=%s: the recipe's model.%s does not apply", network, name)
            result["model"][name] = UNSET
    for key, owned_by in owners().items():
        section, name = key.split(".")
        own = result.get(section, {})
        if key in overrides or own.get(name) is UNSET or not changed & {*owned_by}:
            continue
        needs = known[key].metadata.get("needs")
        if needs is None or not needs.hold(types.SimpleNamespace(**own)):
            owner = next(one for one in owned_by if one in changed)
            log.info("%s=%s: the recipe's %s does not apply", owner, overrides[owner], key)
            own[name] = UNSET
    return result
