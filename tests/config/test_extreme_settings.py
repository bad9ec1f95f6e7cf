"""Each numeric setting at extreme values: a plan, or a refusal in one line. Never another exception."""

import math

import pytest
from test_random_configurations import CLASSES, FIELDS, KINDS, VALUES

from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_learning_rate
from flax_resnet.errors import ConfigError
from flax_resnet.settings import REQUIRED
from flax_resnet.training.plan_text import loss_terms, optimizer_terms, schedule_terms
from flax_resnet.training.state import build_model

EXTREMES = (
    1e308, -1e308, 2**63, 10**30, -(10**30), 10**400, 10**5000, 5e-324, 1e-40, 1e38, 2**31 - 1, 0, -1,
    math.nan, math.inf, -math.inf,
)  # fmt: skip
# A value of each setting without a usable default.
USUAL = {
    "data.path": "somewhere",
    "data.name": "cifar10",
    "distill.teacher": "somewhere",
    "schedule.drop_until": 1.0,
    "model.norm_groups": 2,
    **{key: values[0] for key, values in VALUES.items()},
}


def usual(key):
    """A value that is allowed, and that turns on what depends on it."""
    if key in USUAL:
        return USUAL[key]
    return {bool: True, int: 2, float: 0.5}[kind(key)]


def kind(key):
    section, name = key.split(".")
    return KINDS[section][name]


def companions(key):
    """The other settings of the section with which a setting is used."""
    section, name = key.split(".")
    if needs := FIELDS[key].metadata.get("needs"):
        values = needs.values.items()
        return {n: usual(f"{section}.{n}") if value is ... else value for n, value in values}
    for owner, field in FIELDS.items():
        for row in field.metadata.get("registry", {}).values():
            if owner.startswith(f"{section}.") and name in row.uses:
                missing = (one for one, value in row.uses.items() if value is REQUIRED)
                others = {one: usual(f"{section}.{one}") for one in missing}
                return {owner.partition(".")[2]: row.name} | others
    return {}


def with_extremes(key):
    """Values of a setting: an extreme number, or a usual tuple with one."""
    if kind(key) is not tuple:
        return EXTREMES
    default = FIELDS[key].metadata.get("default", FIELDS[key].default)
    return [put for extreme in EXTREMES for put in replaced(USUAL.get(key) or default, extreme)]


def replaced(value, extreme):
    """The nested tuples in which one number is replaced."""
    for position, part in enumerate(value):
        inner = replaced(part, extreme) if isinstance(part, tuple) else [extreme]
        if not isinstance(part, str):
            for one in inner:
                yield (*value[:position], one, *value[position + 1 :])


NAMES = ("log.trackers",)  # tuples of names
NUMERIC = [key for key in FIELDS if kind(key) in (int, float, tuple) and key not in NAMES]


@pytest.mark.parametrize("key", NUMERIC)
def test_an_extreme_number_is_planned_or_refused(key):
    section, name = key.split(".")
    accepted, refusals = 0, []
    for value in with_extremes(key):
        values = {section: {**companions(key), name: value}}
        try:
            config = freeze(values)
            made = plan(
                config,
                num_train=1000,
                num_eval=100,
                num_classes=CLASSES,
                class_counts=[1] * CLASSES,
            )
            build_model(config, made.num_classes)
        except ConfigError as error:
            refusals.append(error)
            continue
        accepted += 1
        rate = planned_learning_rate(config, made)
        assert all(math.isfinite(rate(step)) for step in (0, made.total_steps - 1)), values
        words = [optimizer_terms(config.optimizer), schedule_terms(config, made)]
        assert "nan" not in str([*words, loss_terms(config.loss, config.distill)])
    assert len(refusals) > 5
    assert not [e for e in refusals if "\n" in str(e) or len(str(e)) > 1000 or "." not in e.key]


@pytest.mark.parametrize("key", [key for key in NUMERIC if kind(key) is not tuple])
def test_the_companions_make_a_setting_used(key):
    """Otherwise the test above would see refusals of unused settings only."""
    section, name = key.split(".")
    if usual(key) is not None:
        problem = ""
        try:
            freeze({section: {**companions(key), name: usual(key)}})
        except ConfigError as error:
            problem = error.problem
        assert "is not used" not in problem
