"""The records and reports of machines with GPUs: what is read, refused and compared, and the exit code."""

import dataclasses
import itertools
import json
import pathlib
import signal
import sys

import pytest
from conftest import ROOT, refused

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import full, quick
from benchmarks.gpu import record as records
from benchmarks.gpu.compare import compare
from benchmarks.gpu.folder import read
from benchmarks.gpu.machine import Machine, first_gpus
from benchmarks.gpu.record import Check, Measurement, Recorder, StageRecord, read_stage
from benchmarks.gpu.report import Report, as_html, as_text

MACHINE = Machine(
    "cpu", "a processor", 1, True, {"cpu": "x", "cores": 2, "commit": "abc", "versions": {}}
)


def call(monkeypatch, *arguments):
    """Calls the command in this process, and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return command.main()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"state": "done"}, 0),
        ({"state": "skipped"}, 0),
        ({"state": "done", "checks": [Check("a", 2.0, 1.0)]}, 1),
        ({"state": "done", "failures": [records.Failure("a", "b")]}, 1),
        ({"state": "timed out"}, 1),
        ({"state": "running"}, 1),
        ({"state": "not run"}, 1),
        ({"state": "failed"}, 1),
        (None, 1),
    ],
)
def test_the_exit_code_is_0_where_every_stage_is_good(fields, code, tmp_path, monkeypatch, capsys):
    stages = (
        [] if fields is None else [StageRecord("good", state="done"), StageRecord("x", **fields)]
    )
    rows = [dataclasses.asdict(stage) for stage in stages]
    file = tmp_path / "record.json"
    records.write_json(file, {"machine": MACHINE._asdict(), "stages": rows})
    assert call(monkeypatch, f"--read={file}") == code
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]  # a page is of a folder


def test_gpus_are_the_first_of_those_that_are_given(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5, 6")
    assert (first_gpus(1), first_gpus(2)) == ("4", "4,GPU-5")
    stages = full.stages(tmp_path, 3, False, tmp_path, "")
    visible = {stage.name: stage.environment["CUDA_VISIBLE_DEVICES"] for stage in stages}
    assert (visible["train_speed_3"], visible["gpu_profile"]) == ("4,GPU-5,6", "4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert first_gpus(2) == "0,1"


SOUND = {
    "machine": MACHINE._asdict(),
    "stages": [dataclasses.asdict(StageRecord("a", measurements=[Measurement("x", (1.0,), "ms")]))],
}


def without(*path, **values):
    """The sound record as JSON, where what is at the path is missing, or is one of the values."""
    record = json.loads(json.dumps(SOUND))
    *outer, last = path
    place = record
    for key in outer:
        place = place[key]
    place.update(values) if values else place.pop(last)
    return json.dumps(record)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"machine": {}, "stages": [1]}',
        "[]",
        without("stages"),
        without("machine", "device"),
        without("machine", "environment", "versions"),
        without("machine", "environment", "commit"),
        without("stages", 0, "stage"),
        without("stages", 0, "checks"),
        without("stages", 0, "measurements", 0, "unit"),
        without("stages", 0, "measurements", 0, "", values=[]),
        without("stages", 0, "measurements", 0, "", values=["x"]),
        without("stages", 0, "", seconds="x"),
        without("stages", 0, "", seconds=10**400),
        without("stages", 0, "", checks=[{"name": "a", "value": 1, "limit": 1, "note": 3}]),
        "3",
        "[" * 100_000,
        without("stages", 0, "", checks=[{"name": "a", "value": None, "limit": 1}]),
    ],
    ids=map(str, itertools.count()),  # a record holds the time of its creation
)
def test_what_is_no_record_is_refused(tmp_path, text):
    file = tmp_path / "record.json"
    file.write_text(json.dumps(SOUND))
    assert read(file)[1][0].stage == "a"
    file.write_text(text)
    with refused(file):
        read(file)


@pytest.mark.parametrize(
    ("now", "former", "larger_is_better", "verdict"),
    [
        ((110, 111, 112), (100, 101, 102), True, "better"),
        ((110, 111, 112), (100, 101, 102), False, "worse"),
        ((100, 105, 110), (95, 100, 106), True, "noise"),  # rounds overlap
        ((100.5, 100.6), (100.1, 100.2), True, "noise"),  # 0.4 %
        ((103,), (100,), True, "noise"),  # of one round
        ((120,), (100,), True, "better"),
        ((0,), (100,), True, "noise"),
    ],
)
def test_a_change_is_told_from_noise(now, former, larger_is_better, verdict):
    pair = [Measurement("x", values, "u", larger_is_better) for values in (now, former)]
    assert compare(*pair).verdict == verdict


def test_the_report_shows_checks_changes_and_failures(tmp_path):
    recorder = Recorder(tmp_path / "one.json", "one")
    recorder.measure("speed <fast>", [99.0, 101.0, 100.0], "images/s")
    recorder.check("gradient", float("nan"), 1.0, "NaN does not pass")
    recorder.fail("torch", "not installed")
    recorder.finish()
    former = StageRecord("one", measurements=[Measurement("speed <fast>", (49, 51), "images/s")])
    report = Report(MACHINE, [read_stage(tmp_path / "one.json")], (MACHINE, [former]))
    text, page = as_text(report), as_html(report)
    assert "2.000 better" in text
    assert "FAILED gradient" in text
    assert "FAILED torch: not installed" in text
    assert "speed &lt;fast&gt;" in page
    assert "<fast>" not in page
    assert page.count("FAILED") == 1


def test_the_report_says_what_is_not_comparable():
    stages = [StageRecord("one", commit="abc"), StageRecord("two", commit="def"), StageRecord("no")]
    text = as_text(Report(MACHINE, stages))
    assert "stages differ in commit: one: abc; two: def" in text
    assert "stages differ" not in as_text(Report(MACHINE, stages[1:]))
    other = MACHINE._replace(device="another", tiny=False)
    text = as_text(Report(MACHINE, stages, (other, [])))
    assert "of another machine" in text
    assert "of other sizes" in text


@pytest.mark.parametrize("gpus", [0, 1, 2, 6, 8])
def test_full_measures_one_two_four_and_all_gpus(gpus, tmp_path):
    stages = list(full.stages(tmp_path, gpus, False, tmp_path / "photographs", "cifar"))
    counts = [int(stage.name.rpartition("_")[2]) for stage in stages if "_speed_" in stage.name]
    expected = {0: [1], 1: [1], 2: [1, 2], 6: [1, 2, 4, 6], 8: [1, 2, 4, 8]}[gpus]
    assert counts == [count for count in expected for _ in range(2)]
    assert len({stage.name for stage in stages}) == len(stages)
    last = next(stage for stage in stages if stage.name == f"train_speed_{max(1, gpus)}")
    assert f"--config.train.batch_size={256 * max(1, gpus)}" in last.command
    assert ("gpu_profile" in [stage.name for stage in stages]) == bool(gpus)


def test_the_quick_stages_fit_into_their_time():
    *fitting, last = quick.STAGES
    assert last.packages  # runs where there is time left, or alone
    assert sum(stage.seconds for stage in fitting) <= quick.SECONDS
    for stage in quick.STAGES:
        assert (ROOT / f"{stage.command[0].replace('.', '/')}.py").is_file()


@pytest.mark.parametrize(
    ("read", "file", "expected"),
    [
        (full.read_model_speed, "h100_model_speed_xla_stem", ("ms", 42.4)),
        (full.read_train_speed, "h100_train_speed", ("images/s", 6202.5)),
        (full.read_vs_torch, "h100_vs_torch", ("images/s", 6380.0)),
        (full.read_profile, "h100_profile", ("ms", 40.2)),
        (full.read_accuracy, "accuracy_airbench94", ("%", 90.56)),
    ],
)
def test_records_of_other_benchmarks_become_measurements(read, file, expected):
    stored = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
    found = read(stored)
    unit, value = expected
    assert any(one.unit == unit and one.median == pytest.approx(value, rel=2e-3) for one in found)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--quick"], ["--platform=gpu: "]),  # the tests' JAX is told to use the CPU
        (["--full", "--cifar=nowhere"], ["--cifar=nowhere: "]),
        (["--quick", "--platform=cpu", "--stages", "gradient"], ["--stages=gradient: ", "'gradients'"]),
        (["--full", "--seconds=9"], ["--seconds=9: ", "--full"]),
        (["--read", str(ROOT), "--stages", "step"], ["--stages: ", "--read"]),
        (["--read", str(ROOT), "--seconds=9"], ["--seconds=9: ", "--read"]),
        (["--quick", "--cifar", str(ROOT)], [f"--cifar={ROOT}: ", "--full"]),
        (["--quick", "--images=9"], ["--images=9: ", "--full"]),
        (["--read", "nowhere"], ["--read=nowhere: "]),
        (["--quick", "--seconds=0"], ["--seconds=0: "]),
        ([], ["--quick --full --read"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments, names, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert call(monkeypatch, f"--folder={tmp_path / 'runs'}", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for name in names:
        assert name in line
    assert not list(pathlib.Path(tmp_path).iterdir())
