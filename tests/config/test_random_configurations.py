"""2,000 random configurations: a plan that is true, or a refusal that names a setting that was set."""

import dataclasses
import math
import re
import types
from typing import get_type_hints

import numpy as np

from flax_resnet.config import freeze, owners, settings
from flax_resnet.config.config import sections
from flax_resnet.config.plan import plan, planned_learning_rate
from flax_resnet.errors import ConfigError
from flax_resnet.models import list_models
from flax_resnet.training.plan_text import (
    augmentations,
    ema_terms,
    loss_terms,
    optimizer_terms,
    schedule_terms,
)
from flax_resnet.training.state import build_model

NUMBER = 2000
FIELDS, OWNERS = settings(), owners()
KINDS = {name: get_type_hints(section) for name, section in sections().items()}
DEFAULTS = {
    name: {field.name: field.default for field in dataclasses.fields(section)}
    for name, section in sections().items()
}
CLASSES = 10
# Values of settings whose rule does not list them.
VALUES = {
    "model.name": [*list_models("resnet*"), "airbench94", "vgg11_bn"],
    "model.depths": [(1, 1, 1, 1), (1, 1)],
    "model.widths": [(8, 8, 8, 8), (4, 4)],
    "model.output_stride": [8, 16, 32],
    "model.remat": ["none", "block"],
    "model.dropout": [0.0, 0.5],
    "model.drop_path": [0.0, 0.2],
    "data.path": ["somewhere"],
    "data.progressive": [((0, 4), (2, 8)), ((0, 16),)],
    "data.crop_area": [(0.1, 1.0)],
    "data.crop_aspect": [(0.5, 2.0)],
    "augment.mean": [(0.5,) * 3, (0.5,)],
    "augment.std": [(0.5,) * 3, (0.5,)],
    "augment.random_erasing_area": [(0.1, 0.2)],
    "augment.random_erasing_aspect": [(0.5, 2.0)],
    "loss.weight_per_class": [(1.0,) * CLASSES, (1.0, 2.0)],
    "optimizer.betas": [(0.9, 0.99)],
    "optimizer.unfreeze_at": [(("fc", 1.0),), (("fc", 500.0),)],
    "optimizer.weight_decay_rules": [(("kernel", 1.0),)],
    "optimizer.learning_rate_rules": [(("fc", 0.5),)],
    "schedule.milestones": [(2.0, 5.0), (0.1, 0.2), (0.3, 0.6), (3.0, 40.0)],
    "train.microbatch_size": ["whole", "auto", "8"],
    "log.trackers": [("mlflow",), ("wandb", "mlflow")],
}
LARGEST = {
    "train.epochs": 12,
    "train.steps": 200,
    "train.batch_size": 64,
    "train.steps_per_call": 4,
}


def value_of(key, field, kind, draw):
    """Draw a value that the rule of a setting allows; None if the setting is left out here."""
    if registry := field.metadata.get("registry"):
        return str(draw.choice(list(registry)))
    schema = field.metadata["rule"].schema
    if key in VALUES or "enum" in schema:
        known = VALUES.get(key) or schema["enum"]
        return known[int(draw.integers(len(known)))]
    if kind is bool:
        return bool(draw.random() < 0.5)
    if kind in (int, float):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 0.01)
        high = min(schema.get("maximum", 8), LARGEST.get(key, 8))
        drawn = low + draw.random() * (high - low)
        return math.ceil(drawn) if kind is int else round(drawn, 2)
    return None


def is_used(key, field, drawn):
    """Return whether the drawn values use a setting that belongs to others; True if it belongs to none."""
    section = key.partition(".")[0]
    values = DEFAULTS[section] | drawn.get(section, {})
    if needs := field.metadata.get("needs"):
        return needs.hold(types.SimpleNamespace(**values))
    registries = {
        owner: FIELDS[owner].metadata["registry"]
        for owner in OWNERS.get(key, ())
        if values[owner.partition(".")[2]] is not None
    }
    chosen = [rows[values[owner.partition(".")[2]]] for owner, rows in registries.items()]
    return all(key.partition(".")[2] in row.uses for row in chosen)


def configuration(draw):
    """Draw {section: {name: value}}: some settings, more of those that others use, and few that nothing uses."""
    drawn = {}
    for key in sorted(FIELDS, key=lambda key: key in OWNERS):
        section, name = key.split(".")
        field, kind = FIELDS[key], KINDS[section][name]
        often = 0.3 if section == "schedule" or key in OWNERS else 0.03
        if draw.random() < (often if is_used(key, field, drawn) else 0.002):
            value = value_of(key, field, kind, draw)
            if value is not None:
                drawn.setdefault(section, {})[name] = value
    return drawn


def printed_rate(text, total):
    """Return the learning rate by step that the printed terms describe."""
    peak = float(re.search(r"peak (\S+?)(?:,| |$)", text)[1])
    rise = re.search(r"warm-up of ([\d,]+) steps from ([^,]+)", text)
    flat = re.search(r"constant in the last ([\d,]+) steps", text)
    shape = re.search(r"(cosine|linear|polynomial)(?: of power (\S+))? to ([^,]+)", text)
    drops = re.findall(r"([\d.e+-]+) at step ([\d,]+)", text)
    warmup = int(rise[1].replace(",", "")) if rise else 0
    end = total - (int(flat[1].replace(",", "")) if flat else 0)

    def rate(step):
        if step < warmup:
            return float(rise[2]) + (peak - float(rise[2])) * step / warmup
        passed = [float(value) for value, at in drops if step >= int(at.replace(",", ""))]
        if not shape:
            return passed[-1] if passed else peak
        share, last = min(1, (step - warmup) / (end - warmup)), float(shape[3])
        fall = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
        left = fall.get(shape[1], (1 - share) ** float(shape[2] or 1))
        return last + (peak - last) * left

    return rate


def test_the_plan_of_any_configuration_is_what_runs_and_a_refusal_names_what_was_set():
    draw, accepted, refusals = np.random.default_rng(0), 0, []
    for _ in range(NUMBER):
        drawn = configuration(draw)
        try:
            config = freeze(drawn)
            counts = range(1, CLASSES + 1)
            made = plan(
                config, num_train=1000, num_eval=100, num_classes=CLASSES, class_counts=counts
            )
            build_model(config, made.num_classes)
        except ConfigError as error:
            refusals.append((drawn, error))
            continue
        accepted += 1
        rate, text = planned_learning_rate(config, made), ", ".join(schedule_terms(config, made))
        printed = printed_rate(text, made.total_steps)
        for step in draw.integers(0, made.total_steps, 10):
            # Three digits are printed.
            tolerance = 0.006 * made.peak_learning_rate
            assert abs(printed(step) - float(rate(step))) <= tolerance, (drawn, text, step)
        words = [
            augmentations(config.augment),
            ema_terms(config.ema),
            optimizer_terms(config.optimizer),
        ]
        words.append(loss_terms(config.loss, config.distill))
        assert "None" not in str(words)
    for drawn, error in refusals:
        own = {f"{section}.{name}" for section, values in drawn.items() for name in values}
        assert own & {*re.findall(r"\w+\.\w+", str(error))}, f"{drawn}: {error}"
    assert accepted > NUMBER / 4
    assert len({error.key for _, error in refusals}) > 30
