"""The benchmark of training end to end: its arithmetic on made-up spans, and a real run, profiled."""

import dataclasses
import json

import pytest
from conftest import refused

from benchmarks.speed import train_speed
from benchmarks.speed.train_speed import Span, measured
from flax_resnet.config import freeze
from flax_resnet.training.stages import STAGES


def spans(*rows):
    """Of (name, start, end), in seconds."""
    return [Span(name, 1e9 * start, 1e9 * end) for name, start, end in rows]


def test_time_from_the_first_results_to_the_last():
    config = freeze({"train": {"batch_size": 10, "steps": 5, "steps_per_call": 2}})
    found = measured(
        spans(
            ("input", 0, 1), ("dispatch", 1, 30), ("step", 31, 32),  # compiles
            ("input", 32, 32.5), ("dispatch", 32.5, 33), ("step", 33, 34), ("records", 34, 34.25),
            ("evaluation", 34.5, 36.5), ("dispatch", 36.5, 37), ("step", 37, 38),
            ("evaluation", 38, 40), ("checkpoint", 40, 43),
        ),
        config,
    )  # fmt: skip
    # Three images' steps of ten in the four seconds from 32 to 38 that were not evaluation.
    assert found["steps"] == 4
    assert found["images_per_second"] == pytest.approx(30 / 4)
    expected = {"input": 0.5, "dispatch": 1, "step": 2, "records": 0.25}
    assert {name: found[name] for name in expected} == expected
    assert (found["evaluation"], found["checkpoint"]) == (4, 3)


def test_a_warm_up_does_not_count():
    config = freeze({"train": {"batch_size": 10, "steps": 6, "steps_per_call": 2}})
    rows = [("step", 1, 30), ("dispatch", 30, 31), ("step", 31, 40), ("step", 40, 44)]
    found = measured(spans(*rows), config, 2)
    assert (found["steps"], found["step"], found["dispatch"]) == (4, 4, 0)
    assert found["images_per_second"] == 2 * 10 / 4
    assert [train_speed.warm_calls(config, number) for number in (1, 2, 3)] == [1, 1, 2]
    with refused("--steps", 6) as caught:
        train_speed.warm_calls(config, 5)
    assert "--warmup" in caught.value.allowed


def test_medians_and_their_table():
    config = freeze({"train": {"batch_size": 10, "steps": 5}})
    turns = [
        {**dict.fromkeys(STAGES, 0.5), "steps": 4.0, "images_per_second": rate, "step_only": 10.0}
        for rate in (9.0, 8.0, 9.5)
    ]
    found = train_speed.medians(turns, config)
    assert found["share"] == pytest.approx(0.9)
    assert found["stages"]["input"] == 0.125
    printed = train_speed.table(found)
    assert "share            0.900" in printed
    assert "rest             0.500  the rest of the loop" in printed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.microbatch_size", "auto"),
        ("model.pretrained", "resnet50.a1_in1k"),
        ("distill.teacher", "/teacher"),
        ("data.progressive", ((0.0, 4), (1.0, 8))),
    ],
)
def test_what_it_does_not_repeat_is_refused(key, value):
    section, name = key.split(".")
    config = freeze({section: {name: value}})
    with refused(key, value):
        train_speed.shortened(config, 8)


@pytest.mark.parametrize("flag", ["--profile", "--output"])
def test_results_that_cannot_be_written_are_refused_first(flag, tmp_path, capsys):
    wrong = tmp_path / "file"
    wrong.touch()
    if flag == "--output":
        wrong = tmp_path
    assert train_speed.main(["--config=resnet18", "--steps=6", f"{flag}={wrong}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flag}={wrong}: ")


def test_a_shortened_run_keeps_its_step():
    config = freeze({"schedule": {"warmup": 5.0}, "optimizer": {"unfreeze_at": (("^conv", 2.0),)}})
    short = train_speed.shortened(config, 8)
    assert (short.train.steps, short.schedule.warmup, short.optimizer.unfreeze_at) == (8, 0.0, ())
    assert dataclasses.replace(short.model) == config.model


@pytest.mark.slow
def test_a_real_run_has_every_stage_in_its_profile(tmp_path, data_dir, cache_dir):
    output = tmp_path / "found.json"
    command = [
        "--config=configs/resnet18.py",
        f"--data_dir={data_dir}",
        f"--compilation_cache={cache_dir}",
        "--config.model.depths=(1,1,1,1)",
        "--config.model.widths=(4,4,4,4)",
        "--config.train.log_every=2",
        "--steps=6",
        "--rounds=1",
        f"--profile={tmp_path / 'profile'}",
        f"--output={output}",
    ]
    assert train_speed.main(command) == 0
    found = json.loads(output.read_text())
    assert all(found["images_per_second"].values())
    assert all(share > 0 for share in (*found["stages"].values(), *found["seconds"].values()))
    assert 0.5 < sum(found["stages"].values()) < 1.01
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1  # and none of the others
