"""Several real processes that train together: they join, agree, stop, fail and are lost together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, records_of, refused, saved
from PIL import Image

from flax_resnet.errors import INTERRUPTED, LOST
from flax_resnet.training.runs import folder as run_folder
from flax_resnet.training.runs.folder import RunFolder

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Job:
    """Processes of one command; `flags` and `variables` return those of a process from its number."""

    def __init__(self, count, arguments, *, module="flax_resnet.main", flags=None, variables=None):
        port = free_port()

        def usual(number):
            return [
                f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}",
                f"--process_id={number}",
            ]  # fmt: skip

        flags = flags or (usual if variables is None else lambda number: [])
        clean = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments, *flags(number)],
                cwd=ROOT,
                env=clean | (variables(number, port) if variables else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(count)
        ]

    def wait_for_step(self, workdir, step, seconds=240):
        """Wait until a checkpoint of this step or a later one is complete."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and all(p.poll() is None for p in self.processes):
            names = [f.name for f in (workdir / "checkpoints").glob("*") if f.name.isdigit()]
            if any(int(name) >= step for name in names):
                return
            time.sleep(0.05)
        raise AssertionError(self.end(0))

    def end(self, seconds=300):
        """Return the exit codes and the outputs of all processes."""
        deadline = time.monotonic() + seconds
        outputs = []
        for process in self.processes:
            try:
                left = max(1, deadline - time.monotonic())
                outputs.append(process.communicate(timeout=left)[0])
            except subprocess.TimeoutExpired:
                process.kill()
                outputs.append("still ran: " + process.communicate()[0])
        return [process.returncode for process in self.processes], outputs


def check(job, code=0):
    codes, outputs = job.end()
    assert codes == [code] * len(codes), outputs
    return outputs


def losses(workdir):
    return [record["loss"] for record in records_of(workdir, "train")]


@pytest.fixture(scope="module")
def arguments(tiny):
    return [*tiny, "--config.train.log_every=1", "--config.data.fraction=0.5"]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    """A run of four steps by one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    check(Job(1, [*arguments, f"--workdir={workdir}"], flags=lambda number: []))
    return workdir


def slurm(count):
    def variables(number, port):
        return {
            "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(count),
            "SLURM_STEP_NUM_TASKS": str(count), "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number), "JAX_COORDINATOR_PORT": str(port),
        }  # fmt: skip

    return variables


def open_mpi(number, port):
    return {
        "OMPI_MCA_orte_hnp_uri": f"1531576320.0;tcp://127.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number), "JAX_COORDINATOR_PORT": str(port),
    }  # fmt: skip


def variables_of_jax(number, port):
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(number),
    }  # fmt: skip


@pytest.mark.parametrize(("count", "variables"), [
    (2, None), (4, slurm(4)), (2, open_mpi), (2, variables_of_jax), (1, slurm(1)),
])  # fmt: skip
def test_the_main_command_by_each_launcher(arguments, alone, tmp_path, count, variables):
    workdir = tmp_path / "run"
    outputs = check(Job(count, [*arguments, f"--workdir={workdir}"], variables=variables))
    assert f"{count} x cpu" in outputs[0]
    # One writes, and all compute the run of one process.
    assert all("final top-1" not in output for output in outputs[1:])
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-4)
    assert [r["count"] for r in records_of(workdir, "test")] == [360, 360]
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1


def test_the_commands_of_the_page_on_clusters(arguments, tmp_path):
    """Kubernetes: the container's command with its variables replaced as Kubernetes does."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    command = re.search(r"command: (\[.*?\])", page, re.DOTALL)
    assert command, "docs/clusters.md lost its Kubernetes job"
    words = json.loads(command[1])
    start = words.index("flax_resnet.main") + 1
    port = free_port()

    def flags(number):
        text = [word.replace("$(JOB_COMPLETION_INDEX)", str(number)) for word in words[start:]]
        text = [word for word in text if not word.startswith(("--config", "--workdir"))]
        return [re.sub(r"^(--coordinator)=.*", rf"\1=127.0.0.1:{port}", word) for word in text]

    count = int(next(w for w in words if w.startswith("--num_processes")).partition("=")[2])
    job = Job(count, [*arguments, f"--workdir={tmp_path / 'run'}", "--dry_run"], flags=flags)
    assert f"{count} x cpu" in check(job)[0]


def test_a_signal_to_any_process_stops_all_and_others_go_on(arguments, alone, tmp_path):
    """Signals to either of two processes; then four processes, and one, finish the run."""
    workdir = tmp_path / "run"
    options = [*arguments, f"--workdir={workdir}", "--config.train.checkpoint_every=0.01"]
    endless = "--config.train.epochs=2000"
    for number, target in ((signal.SIGTERM, 0), (signal.SIGUSR1, 1), (signal.SIGINT, 1)):
        before = max(saved_steps(workdir), default=0)
        job = Job(2, [*options, endless])
        job.wait_for_step(workdir, before + 1)
        sent = time.monotonic()
        job.processes[target].send_signal(number)
        check(job, INTERRUPTED)
        assert time.monotonic() - sent < 30
        assert max(saved_steps(workdir)) > before
    last = max(saved_steps(workdir))
    for count, more in ((4, 3), (1, 6)):
        check(Job(count, [*options, f"--config.train.steps={last + more}"]))
        assert max(saved_steps(workdir)) == last + more
    steps = [record["step"] for record in records_of(workdir, "train")]
    assert steps == list(range(1, last + 7))  # no step is missing, none is there twice


def saved_steps(workdir):
    return [int(f.name) for f in (workdir / "checkpoints").glob("*") if f.name.isdigit()]


def flags_of(count):
    """Return the function that makes the flags of a process from its number."""
    port = free_port()
    return lambda number: [
        f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={number}"
    ]  # fmt: skip


def test_another_configuration_of_one_process_is_refused(arguments, tmp_path):
    flags = flags_of(2)
    options = [*arguments, f"--workdir={tmp_path / 'run'}"]
    job = Job(2, options, flags=lambda n: [*flags(n), f"--config.train.seed={n}"])
    assert "train.seed" in check(job, LOST)[0]
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_ends_all(arguments, tmp_path):
    """Process 1 alone cannot read the data, while process 0 waits for it."""
    flags = flags_of(2)
    (tmp_path / "file").touch()
    job = Job(2, [*arguments, f"--workdir={tmp_path / 'run'}"], flags=lambda n: [
        *flags(n), *([f"--data_dir={tmp_path / 'file'}"] if n else []),
    ])  # fmt: skip
    codes, outputs = job.end()
    assert codes[0] == codes[1] > 0, outputs
    assert sum(output.count("error:") for output in outputs) >= 1
    assert not any("Traceback" in output for output in outputs)


def test_nobody_to_join(arguments, tmp_path):
    for number in (0, 1):
        flags = flags_of(2)(number)
        job = Job(1, [*arguments, f"--workdir={tmp_path / 'run'}", "--join_timeout=2"],
                  flags=lambda _, flags=flags: flags)  # fmt: skip
        output = check(job, LOST)[0]
        assert flags[0].removeprefix("--coordinator=") in output
        assert output.strip().count("\n") == 0, output


def test_a_port_in_use(arguments, tmp_path):
    with socket.socket(socket.AF_INET6) as server:
        server.bind(("::", 0))
        server.listen()
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        flags = [f"--coordinator={taken}", "--num_processes=2", "--process_id=0"]
        options = [*arguments, f"--workdir={tmp_path / 'run'}"]
        assert taken in check(Job(1, options, flags=lambda _: flags), LOST)[0]


@pytest.mark.parametrize(("number", "target", "code"), [
    (signal.SIGKILL, 1, LOST), (signal.SIGSTOP, 1, LOST), (signal.SIGSTOP, 0, LOST),
    (signal.SIGKILL, 0, -signal.SIGABRT),
])  # fmt: skip
def test_a_lost_process_ends_the_others(arguments, tmp_path, number, target, code):
    workdir = tmp_path / "run"
    job = Job(2, [
        *arguments, f"--workdir={workdir}", "--config.train.epochs=100000", "--lost_after=8",
        "--config.train.checkpoint_every=20",
    ])  # fmt: skip
    job.wait_for_step(workdir, 1)
    job.processes[target].send_signal(number)
    other = job.processes[1 - target]
    output = other.communicate(timeout=120)[0]
    job.processes[target].kill()
    job.processes[target].communicate()
    assert other.returncode == code, output
    if code == LOST:
        errors = [line for line in output.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, output
        assert f"process {target}" in errors[0]
        assert "Traceback" not in output


def test_all_fall_back_from_a_damaged_checkpoint(arguments, alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    assert sorted(saved_steps(workdir)) == [2, 4]
    array = max(
        (workdir / "checkpoints" / "4" / "state").rglob("*"), key=lambda f: f.stat().st_size
    )
    array.write_bytes(array.read_bytes()[:-10])
    outputs = check(Job(2, [*arguments, f"--workdir={workdir}"]))
    assert "moved to" in outputs[0]
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-4)
    assert len(list((workdir / "checkpoints.bad").iterdir())) == 1


def test_unreadable_images_are_known_to_all(tmp_path, cache_dir):
    """Each process reads half of each batch, and finds other broken images than the other one."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(24):
            file = tmp_path / "images" / name / f"{number}.png"
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
            if number in (3, 7, 20):
                file.write_bytes(file.read_bytes()[:60])
    found = {}
    for count in (1, 2):
        workdir = tmp_path / f"by_{count}"
        arguments = [
            "--config=resnet18", "--noreport", "--config.model.widths=(4,8,16,32)",
            "--config.model.depths=(1,1,1,1)", "--config.data.source=folder",
            f"--config.data.path={tmp_path / 'images'}", "--config.data.image_size=8",
            "--config.train.batch_size=8", "--config.train.epochs=2", "--config.train.feed=streaming",
            "--config.schedule.warmup=0", f"--compilation_cache={cache_dir}", f"--workdir={workdir}",
        ]  # fmt: skip
        check(Job(count, arguments, flags=None if count > 1 else lambda number: []))
        found[count] = saved(workdir, max(saved_steps(workdir)))["bad_images"]
    assert len(found[1]) >= 4
    assert found[1] == found[2]


def test_evaluate_together(alone, cache_dir):
    for count in (1, 3):
        options = [f"--workdir={alone}", f"--compilation_cache={cache_dir}", "--batch_size=90"]
        job = Job(count, ["evaluate", *options], module="flax_resnet",
                  flags=None if count > 1 else lambda number: [])  # fmt: skip
        outputs = check(job)
        assert sum("top-1" in output for output in outputs) == 1
    one, three = (
        json.loads(line) for line in (alone / "evaluations.jsonl").read_text().splitlines()
    )
    assert one["count"] == three["count"] == 360
    assert one["top1"] == three["top1"]
    np.testing.assert_allclose(one["loss"], three["loss"], rtol=1e-6)


def test_two_starts_at_once(arguments, tmp_path):
    """Neither of the processes may be ahead or behind at the claim of the folder; a second job is refused."""
    workdir = tmp_path / "run"
    options = [*arguments, f"--workdir={workdir}"]
    jobs = [Job(2, options), Job(2, options)]
    codes = sorted(tuple(job.end()[0]) for job in jobs)
    assert codes in ([(0, 0), (5, 5)], [(0, 0), (0, 0)]), codes
    assert saved(workdir, 4)


def test_an_unshared_folder_and_a_url_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "SEEN_WITHIN", 0.1)
    monkeypatch.setattr(run_folder, "first", lambda action: {"host": "node1", "pid": 1})
    monkeypatch.setattr(run_folder.jax, "process_count", lambda: 2)
    monkeypatch.setattr(run_folder.jax, "process_index", lambda: 1)
    with refused(tmp_path), RunFolder.at(tmp_path).locked():
        pass
    with refused("gs://bucket/run"):
        RunFolder.at("gs://bucket/run")


def test_weights_of_a_run_are_read_together(arguments, alone, tmp_path):
    """A checkpoint is read by all processes at once; what a hub holds, in turns."""
    options = [*arguments, f"--workdir={tmp_path / 'run'}", f"--config.model.pretrained={alone}"]
    check(Job(2, [*options, "--config.train.steps=1"]))
