"""Learning rates against their formulas."""

import math

import numpy as np
import pytest
from conftest import refused

from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_learning_rate
from flax_resnet.errors import ConfigError
from flax_resnet.training.plan_text import schedule_terms


def rates(schedule, steps=101, **sections):
    """The learning rate at each step of a run of 10 epochs of 10 steps, peak 0.4."""
    config = freeze(
        {
            "train": {"batch_size": 10, "epochs": 10},
            "optimizer": {"learning_rate": 0.4},
            "schedule": schedule,
            **sections,
        }
    )
    rate = planned_learning_rate(config, plan(config, num_train=100, num_eval=1, num_classes=2))
    return np.array([float(rate(step)) for step in range(steps)])


FALLS = {
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda t: 1 - t,
    "polynomial": lambda t: (1 - t) ** 3,
}


@pytest.mark.parametrize("name", FALLS)
@pytest.mark.parametrize(("warmup", "cooldown", "final"), [(0, 0, 0.0), (2, 1, 0.1), (2, 0, 0.0)])
def test_falls_after_a_rise(name, warmup, cooldown, final):
    section = {"name": name, "warmup": warmup, "cooldown": cooldown, "final": final}
    power = {"power": 3.0} if name == "polynomial" else {}
    start = {"warmup_from": 0.25} if warmup else {}
    found = rates({**section, **power, **start})
    rise, fall = 10 * warmup, 100 - 10 * warmup - 10 * cooldown

    def expected(step):
        if step < rise:
            return 0.4 * (0.25 + 0.75 * step / rise)
        return 0.4 * (final + (1 - final) * FALLS[name](min(1, (step - rise) / fall)))

    np.testing.assert_allclose(found, [expected(step) for step in range(101)], rtol=1e-5, atol=1e-7)


def test_multi_step_drops_at_its_milestones():
    found = rates({"name": "multi_step", "milestones": (3, 6), "gamma": 0.1, "warmup": 1})
    expected = [
        0.4 * (step / 10 if step < 10 else 0.1 ** ((step >= 30) + (step >= 60)))
        for step in range(101)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("milestones", "unit", "warmup"),
    [
        ((1.0, 6.0), "epochs", 2),  # within the warm-up
        ((2.0, 6.0), "epochs", 2),  # at its end, where the peak would not be reached
        ((0.501, 0.503, 0.9), "fraction", 0),  # two on one step
    ],
)
def test_milestones_that_would_not_be_seen_are_refused(milestones, unit, warmup):
    section = {"name": "multi_step", "milestones": milestones, "unit": unit, "warmup": warmup}
    with refused("schedule.milestones", milestones, ConfigError):
        rates(section)


@pytest.mark.parametrize("name", ["constant", "multi_step"])
def test_a_cooldown_needs_a_final_rate(name):
    with refused("schedule.cooldown", 3.0, ConfigError):
        rates({"name": name, "cooldown": 3.0})


def test_constant():
    np.testing.assert_allclose(rates({"name": "constant"}), 0.4)


@pytest.mark.parametrize(("unit", "length"), [("epochs", 2.5), ("steps", 25), ("fraction", 0.25)])
def test_lengths_in_every_unit(unit, length):
    found = rates({"name": "linear", "unit": unit, "warmup": length})
    assert found.argmax() == 25


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_the_peak_follows_the_batch(scaling, factor):
    train = {"batch_size": 40, "epochs": 100}
    base = {} if scaling == "none" else {"base_batch_size": 10}
    found = rates({"name": "constant", "batch_scaling": scaling, **base}, train=train)
    np.testing.assert_allclose(found, 0.4 * factor, rtol=1e-6)


@pytest.mark.parametrize(
    "section",
    [
        {"warmup": 10},
        {"warmup": 6, "cooldown": 4},
        {"warmup": 0.5, "cooldown": 0.5, "unit": "fraction"},
        {"name": "constant", "warmup": 10},
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(section):
    with refused("schedule.warmup", section["warmup"], ConfigError) as error:
        rates(section)
    assert "100 steps of train.epochs=10" in error.value.allowed


def test_the_plan_tells_milestones_after_the_end():
    config = freeze(
        {
            "train": {"batch_size": 10, "epochs": 10},
            "schedule": {"name": "multi_step", "milestones": (5.0, 30.0)},
        }
    )
    made = plan(config, num_train=100, num_eval=1, num_classes=2)
    assert "multi-step to 0.01 at step 50, 0.001 at step 300 (after the end)" in schedule_terms(
        config, made
    )


def draw_schedule(draw):
    """A random schedule of 10 epochs of 10 steps, valid or not."""
    name = str(draw.choice(["cosine", "linear", "polynomial", "multi_step", "constant"]))
    optional = {
        "warmup": round(float(draw.uniform(0, 6)), 1),
        "warmup_from": round(float(draw.uniform(0, 1)), 2),
        "cooldown": round(float(draw.uniform(0, 6)), 1),
        "final": round(float(draw.uniform(0, 0.5)), 2),
        "power": round(float(draw.uniform(0.5, 3)), 1),
        "gamma": round(float(draw.uniform(0.1, 1)), 1),
        "milestones": tuple(sorted({round(float(x), 1) for x in draw.uniform(0.1, 12, 3)})),
        "batch_scaling": str(draw.choice(["none", "linear", "sqrt"])),
        "base_batch_size": int(draw.integers(1, 40)),
    }
    used = [key for key in optional if draw.random() < 0.3]
    return {"name": name, **{key: optional[key] for key in used}}


def test_the_plan_of_any_schedule_is_what_runs_and_a_refusal_names_what_was_set():
    """2,000 random schedules: every number of the plan is a value of the schedule at that step."""
    draw, refusals, accepted = np.random.default_rng(0), [], 0
    for _ in range(2000):
        section = draw_schedule(draw)
        sections = {"train": {"batch_size": 10, "epochs": 10}, "schedule": section}
        try:
            config = freeze(sections)
            made = plan(config, num_train=100, num_eval=1, num_classes=2)
        except ConfigError as error:
            refusals.append((error.key.removeprefix("schedule."), section))
            continue
        accepted += 1
        rate = planned_learning_rate(config, made)
        text = ", ".join(schedule_terms(config, made))
        shown = {
            step: f"{float(rate(step)):.3g}" for step in (0, made.warmup_steps, *made.milestones)
        }
        assert f"peak {shown[made.warmup_steps]}" in text
        assert float(rate(made.warmup_steps)) == pytest.approx(made.peak_learning_rate)
        if made.warmup_steps:
            assert f"warm-up of {made.warmup_steps} steps from {shown[0]}" in text
        for step in made.milestones:
            assert f"{shown[step]} at step {step}" in text
            assert float(rate(step)) < float(rate(step - 1)) or config.schedule.gamma == 1
        if config.schedule.final is not None:
            end = made.total_steps - made.cooldown_steps
            values = [float(rate(step)) for step in (end, made.total_steps)]
            assert values == pytest.approx(
                [config.schedule.final * made.peak_learning_rate] * 2, abs=1e-6
            )
            assert f" to {values[0]:.3g}" in text
    assert 300 < accepted < 1800
    assert all(key in section for key, section in refusals)
