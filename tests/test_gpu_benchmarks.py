"""The command that measures machines with GPUs: limits, resumption, what is kept, what is reported."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import ROOT

from benchmarks.gpu import full, quick, runner
from benchmarks.gpu import record as records
from benchmarks.gpu.compare import compare
from benchmarks.gpu.record import Check, Measurement, Recorder, StageRecord, read_stage
from benchmarks.gpu.report import Report, as_html, as_text
from benchmarks.gpu.runner import Machine
from benchmarks.gpu.stage import Stage
from flax_resnet.errors import ConfigError, WorkdirError

MACHINE = Machine(
    "cpu", "a processor", 1, True, {"cpu": "x", "cores": 2, "commit": "abc", "versions": {}}
)
FOREVER = float("inf")
PID = "import os\nrecorder.record.details['pid'] = os.getpid()\n"


def is_running(pid):
    """Whether a process is there, and not only waits for its parent to notice its end."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def make_stage(tmp_path, monkeypatch):
    """Writes a stage's module, and returns its row."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")

    def make(name, body, **fields):
        head = "import time\nfrom benchmarks.gpu.process import run_stage\n"
        source = f"def measure(recorder, tiny):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        (tmp_path / f"{name}.py").write_text(f"{head}{source}\nrun_stage({name!r}, measure)\n")
        return Stage(name, "What?", fields.pop("seconds", 60.0), (name,), **fields)

    return make


def run(folder, *stages, deadline=FOREVER):
    runner.claim(folder, MACHINE)
    runner.run_all(stages, stages, folder, MACHINE, deadline)
    return {stage.stage: stage for stage in runner.read(folder)[1]}


def test_what_failed_keeps_what_was_measured_and_the_next_stage_runs(
    tmp_path, make_stage, monkeypatch
):
    folder = tmp_path / "records"
    failing = make_stage(
        "failing", "recorder.measure('speed', [1.0, 3.0], 'images/s')\nraise SystemExit(3)"
    )
    slow = make_stage(
        "slow",
        f"{PID}recorder.measure('first', [2.0], 'ms')\ntime.sleep(600)",
        seconds=12.0,
    )
    lacking = make_stage("lacking", "pass", packages=("no_such_package",))
    memory = make_stage(
        "memory",
        """
        with recorder.attempt('large'):
            raise RuntimeError('RESOURCE_EXHAUSTED: 80 GiB')
        recorder.check('small', 1e-7, 1e-6)
        """,
    )
    found = run(folder, failing, slow, lacking, memory)
    assert found["failing"].state == records.FAILED
    assert found["failing"].measurements == [Measurement("speed", (1.0, 3.0), "images/s")]
    assert found["slow"].state == records.TIMED_OUT
    assert [one.name for one in found["slow"].measurements] == ["first"]
    assert (found["lacking"].state, found["lacking"].seconds) == (records.SKIPPED, 0.0)
    assert "no_such_package" in found["lacking"].reason
    assert found["memory"].state == records.DONE
    assert [(one.name, one.reason) for one in found["memory"].failures] == [
        ("large", "out of memory")
    ]
    assert found["memory"].checks == [Check("small", 1e-7, 1e-6)]
    assert not is_running(found["slow"].details["pid"])


def test_the_same_command_goes_on_behind_what_is_measured(tmp_path, make_stage, capfd):
    folder = tmp_path / "records"
    body = """
    for name in ("one", "two"):
        if not recorder.has(name):
            print("measuring", name, flush=True)
            recorder.measure(name, [1.0], "ms")
            if name == "one" and not recorder.record.details:
                recorder.record.details = {"started": True}
                recorder.save()
                raise SystemExit(1)
    """
    stage = make_stage("halves", body)
    assert run(folder, stage)["halves"].state == records.FAILED
    first = capfd.readouterr().out
    found = run(folder, stage)["halves"]
    second = capfd.readouterr().out
    run(folder, stage)
    third = capfd.readouterr().out
    assert [text.count("measuring") for text in (first, second, third)] == [1, 1, 0]
    assert found.state == records.DONE
    assert [one.name for one in found.measurements] == ["one", "two"]


def test_without_time_left_a_stage_is_skipped_and_runs_the_next_time(tmp_path, make_stage):
    folder, stage = tmp_path / "records", make_stage("short", "pass")
    assert run(folder, stage, deadline=time.monotonic() + 1)["short"].state == records.SKIPPED
    assert run(folder, stage)["short"].state == records.DONE


def test_a_killed_command_leaves_no_process_and_keeps_its_items(tmp_path, make_stage):
    """SIGKILL, as a scheduler sends it; then the next start goes on."""
    folder = tmp_path / "records"
    body = "if not recorder.has('first'):\n    recorder.measure('first', [1.0], 'ms')\n    time.sleep(600)"
    stage = make_stage("sleeping", f"{PID}{body}")
    runner.claim(folder, MACHINE)
    code = (
        "import pathlib; from benchmarks.gpu import runner; from benchmarks.gpu.stage import Stage; "
        f"stage = Stage('sleeping', '', 600.0, ('sleeping',)); folder = pathlib.Path({str(folder)!r}); "
        "machine, _ = runner.read(folder); "
        "runner.run_all([stage], [stage], folder, machine, float('inf'))"
    )
    run(folder)  # writes the machine
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    file = folder / "stages" / "sleeping.json"
    while not ((one := read_stage(file)) and one.measurements):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while is_running(one.details["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run(folder, stage)["sleeping"].state == records.DONE


def test_records_of_another_machine_are_not_mixed_in(tmp_path):
    run(tmp_path)
    other = MACHINE._replace(device="another processor")
    with pytest.raises(WorkdirError, match="another processor"):
        runner.claim(tmp_path, other)


@pytest.mark.parametrize("text", ["", "{}", '{"machine": {}, "stages": [1]}', "[]"])
def test_what_is_no_record_is_refused(tmp_path, text):
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"record\.json"):
        runner.read(file)


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
        (full.read_model_speed, "h100_model_speed_before", ("ms", 42.4)),
        (full.read_train_speed, "h100_train_speed", ("images/s", 6202.5)),
        (full.read_peers, "h100_peers", ("images/s", 6380.0)),
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
    ("arguments", "message"),
    [
        (["--quick"], "no GPU: JAX sees none"),  # the tests' JAX is told to use the CPU
        (["--full", "--cifar=nowhere"], "--cifar=nowhere: must be a folder with train/ and test/"),
        (["--quick", "--platform=cpu", "--stages", "steps"], "did you mean 'step'?"),
        (["--read", "nowhere"], "nowhere: holds no record"),
        (["--quick", "--seconds=0"], "0: must be seconds"),
        ([], "--quick --full --read"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", f"--folder={tmp_path / 'runs'}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(pathlib.Path(tmp_path).iterdir())


@pytest.mark.slow
def test_the_rehearsal_runs_from_end_to_end_and_resumes_what_was_killed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--platform=cpu", "--tiny"]
    command += [f"--folder={tmp_path}", "--stages", "gradients", "resume", "variants", "networks"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # one device
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    file = tmp_path / "stages" / "gradients.json"
    while not ((one := read_stage(file)) and one.checks):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
    _, stages = runner.read(tmp_path)
    assert [stage.state for stage in stages] == [records.DONE] * 4
    assert all(check.passed for stage in stages for check in stage.checks)
    assert (tmp_path / "report.html").read_text().count("<h2") == 4
