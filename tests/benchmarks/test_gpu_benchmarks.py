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
from conftest import ROOT, refused

from benchmarks.gpu import record as records
from benchmarks.gpu import runner
from benchmarks.gpu.folder import claim, read
from benchmarks.gpu.machine import Machine, find_machine
from benchmarks.gpu.pool import each
from benchmarks.gpu.record import Check, Measurement, StageRecord, read_stage
from benchmarks.gpu.stage import Stage
from flax_resnet.errors import WorkdirError

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
    claim(folder, MACHINE)
    runner.run_all(stages, folder, MACHINE, deadline)
    return {stage.stage: stage for stage in read(folder)[1]}


@pytest.mark.slow
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
    assert run(folder, stage, deadline=time.monotonic() + 1)["short"].state == records.NOT_RUN
    assert run(folder, stage)["short"].state == records.DONE


WAITING = f"{PID}if not recorder.has('first'):\n    recorder.measure('first', [1.0], 'ms')\n    time.sleep(600)"
# The command, with one stage that tests have made.
ALONE = """
import sys
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.stage import Stage
command.find_machine = lambda *_: Machine(*{machine})
command.quick.STAGES = [Stage("{name}", "", 600.0, ("{name}",))]
sys.argv = ["gpu", "--quick", "--platform=cpu", "--tiny", "--folder={folder}"]
sys.exit(command.main())
"""


@pytest.fixture
def start(tmp_path):
    """Starts the command with one stage, and waits until the stage has measured something."""

    def started(name):
        folder = tmp_path / "records"
        code = ALONE.format(machine=tuple(MACHINE), name=name, folder=folder)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,  # not the repository: the command works from anywhere
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        file = folder / "stages" / f"{name}.json"
        while not (file.exists() and (one := read_stage(file)).measurements):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        return folder, process, one

    return started


def ended(pid):
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_a_killed_command_leaves_no_process_and_a_reader_finds_its_items(make_stage, start, capsys):
    """SIGKILL, as a scheduler sends it; then the next start goes on."""
    stage = make_stage("sleeping", WAITING)
    folder, process, one = start("sleeping")
    process.kill()
    process.communicate()
    assert ended(one.details["pid"])
    _, (found,) = read(folder)
    assert (found.state, [item.name for item in found.measurements]) == ("stopped", ["first"])
    assert found.seconds > 0
    assert run(folder, stage)["sleeping"].state == records.DONE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_reports_what_it_measured(make_stage, start, number):
    make_stage("sleeping", WAITING)
    folder, process, one = start("sleeping")
    process.send_signal(number)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "sleeping: stopped" in said
    assert errors.splitlines()[-1] == "stopped; run the same command to continue"
    assert ended(one.details["pid"])
    (stage,) = json.loads((folder / "record.json").read_text())["stages"]
    assert (stage["state"], stage["measurements"][0]["name"]) == ("stopped", "first")
    assert "first" in (folder / "report.html").read_text()


def test_a_reader_that_leaves_does_not_stop_a_stage(make_stage, start):
    body = """
    recorder.measure('first', [1.0], 'ms')
    for number in range(20_000):  # more than a pipe holds
        print('a line that nobody reads', flush=True)
    """
    make_stage("talking", body)
    folder, process, _ = start("talking")
    process.stdout.close()
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    assert read(folder)[1][0].state == records.DONE


def test_a_folder_keeps_the_stages_of_both_modes(tmp_path, make_stage):
    one, two = make_stage("one", "recorder.measure('a', [1.0], 'ms')"), make_stage("two", "pass")
    run(tmp_path, one)
    assert list(run(tmp_path, two)) == ["one", "two"]
    assert [stage.stage for stage in read(tmp_path / "record.json")[1]] == ["one", "two"]


def test_what_failed_runs_again_and_what_was_measured_does_not(tmp_path, make_stage):
    body = """
    if not recorder.has('sound'):
        recorder.measure('sound', [time.time()], 's')
    with recorder.attempt('weak'):
        import os
        assert os.path.exists(recorder.file.with_suffix('.mended')), 'not mended'
        recorder.measure('weak', [1.0], 's')
    """
    folder, stage = tmp_path / "records", make_stage("weak", body)
    first = run(folder, stage)["weak"]
    assert ([one.reason for one in first.failures], first.is_good) == (["not mended"], False)
    (folder / "stages" / "weak.mended").touch()
    second = run(folder, stage)["weak"]
    assert second.measurements[0] == first.measurements[0]
    assert ([one.name for one in second.measurements], second.is_good) == (["sound", "weak"], True)


def test_a_case_that_aborts_does_not_take_others_with_it():
    aborts = "__import__('os').abort()"  # as a fault in a library does
    cases = {
        "one": "1",
        "aborts": aborts,
        "two": "2",
        "refused": "1 / 0",
        "aborts too": aborts,
        "four": "4",
    }
    found = dict(each(eval, cases, 2))
    assert found.keys() == cases.keys()
    assert {name: type(future.exception()).__name__ for name, future in found.items()} == {
        **dict.fromkeys(("one", "two", "four"), "NoneType"),
        **dict.fromkeys(("aborts", "aborts too"), "BrokenProcessPool"),
        "refused": "ZeroDivisionError",
    }
    assert found["four"].result() == 4


def test_a_stage_takes_the_time_that_earlier_ones_leave(tmp_path, make_stage, monkeypatch):
    given = []
    monkeypatch.setattr(
        runner, "run_or_skip", lambda *args: given.append(args[-1]) or StageRecord("x")
    )
    stages = [
        make_stage(name, "pass", seconds=limit)
        for name, limit in {"a": 20, "b": 30, "c": 9}.items()
    ]
    run(tmp_path, *stages)
    assert given == pytest.approx([20, 50, 18], abs=0.5)  # of c, twice its own
    given.clear()
    run(tmp_path, *stages, deadline=time.monotonic() + 40)
    assert given == pytest.approx([20, 40, 18], abs=0.5)


def test_a_broken_record_of_a_stage_is_set_aside(tmp_path, make_stage, capfd):
    stage = make_stage("short", "pass")
    run(tmp_path, stage)
    file = tmp_path / "stages" / "short.json"
    file.write_text("{")
    assert run(tmp_path, stage)["short"].state == records.DONE
    assert file.with_suffix(".broken").read_text() == "{"
    assert "short.broken" in capfd.readouterr().err


def test_a_file_that_is_not_as_expected_fails_its_stage_only(tmp_path, make_stage, monkeypatch):
    stage = make_stage("short", "pass")
    (tmp_path / "plain.py").write_text(
        "import sys; open(sys.argv[sys.argv.index('--output') + 1], 'w').write('{}')"
    )
    plain = Stage("plain", "", 60.0, ("plain",), read=lambda found: found["results"])
    found = run(tmp_path, plain, stage)
    assert (found["plain"].state, found["short"].state) == (records.FAILED, records.DONE)
    assert "KeyError: 'results'" in found["plain"].reason


def test_what_looks_for_devices_has_a_limit(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.machine.SECONDS", 0.01)
    with refused("--platform", "cpu") as caught:
        find_machine("cpu", True)
    assert "0.01 s" in caught.value.problem


def test_records_of_another_machine_are_not_mixed_in(tmp_path):
    run(tmp_path)
    other = MACHINE._replace(device="another processor")
    with refused("--folder", tmp_path, WorkdirError) as caught:
        claim(tmp_path, other)
    assert str(MACHINE) in caught.value.problem
    assert str(other) in caught.value.problem


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
    _, stages = read(tmp_path)
    assert [stage.state for stage in stages] == [records.DONE] * 4
    assert all(check.passed for stage in stages for check in stage.checks)
    assert (tmp_path / "report.html").read_text().count("<h2") == 4


def test_several_processes_of_a_launcher_are_refused(monkeypatch, capsys):
    for name, value in {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0",
                        "JAX_COORDINATOR_ADDRESS": "node1:1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    from benchmarks.gpu import __main__ as command

    monkeypatch.setattr("sys.argv", ["benchmarks.gpu", "--quick"])
    assert command.main() == 2
    assert "one machine" in capsys.readouterr().err
