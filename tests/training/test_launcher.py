"""Which processes belong together, by flags and by the variables of launchers."""

import pytest
from conftest import refused

from flax_resnet import main
from flax_resnet.training.processes.launcher import Launch, find_launch, first_host

# As `srun --nodes=2 --ntasks-per-node=2` sets them in the last task.
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
# As Open MPI 4 sets them.
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
}


def test_flags_come_before_the_environment():
    assert find_launch("a:1", 2, 1, environ=SLURM | JAX) == Launch("a:1", 2, 1)
    assert find_launch("[::1]:1", 2, 0, environ={}) == Launch("[::1]:1", 2, 0)


def test_variables_of_jax():
    launch = find_launch(environ=JAX | SLURM)
    assert (launch.coordinator, launch.num_processes, launch.process_id) == ("10.0.0.1:1234", 3, 2)


def test_slurm():
    launch = find_launch(environ=SLURM)
    assert (launch.coordinator, launch.num_processes, launch.process_id) == ("gpu007:61586", 4, 3)
    assert launch.local_device_ids == (1,)
    assert launch.launcher == "Slurm"
    assert find_launch(environ=SLURM | {"JAX_COORDINATOR_PORT": "99"}).coordinator == "gpu007:99"


@pytest.mark.parametrize("more", [
    {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"},
    {"CUDA_VISIBLE_DEVICES": "5"},  # --gpus-per-task=1
])  # fmt: skip
def test_a_process_takes_all_gpus_that_are_its_own(more):
    assert find_launch(environ=SLURM | more).local_device_ids is None


def test_open_mpi():
    launch = find_launch(environ=OPEN_MPI)
    assert launch == Launch("10.96.0.1:62624", 2, 1, (1,), "Open MPI")
    assert find_launch(
        environ=OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    ).local_device_ids is None  # fmt: skip
    six = {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b,2620::2]:43370"}
    assert find_launch(environ=OPEN_MPI | six).coordinator == "[fe80::b9b]:62880"
    without = {name: value for name, value in OPEN_MPI.items() if "hnp" not in name}
    with refused("JAX_COORDINATOR_ADDRESS"):
        find_launch(environ=without)
    address = {"JAX_COORDINATOR_ADDRESS": "node1:5"}
    assert find_launch(environ=without | address).coordinator == "node1:5"


@pytest.mark.parametrize("environ", [
    {},
    SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    {name: value for name, value in SLURM.items() if name != "SLURM_PROCID"},  # the batch script
    OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
    {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    {"JAX_COORDINATOR_ADDRESS": "a:1"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
])  # fmt: skip
def test_one_process_runs_alone(environ):
    assert find_launch(environ=environ) is None
    assert find_launch("", 1, 0, environ=environ) is None


@pytest.mark.parametrize(("flags", "key", "value"), [
    (("a:1", 2, None), "--process_id", ...),
    (("a:1", None, 0), "--num_processes", ...),
    (("", 2, 0), "--coordinator", ...),
    (("a", 2, 0), "--coordinator", "a"),
    (("a:99999", 2, 0), "--coordinator", "a:99999"),
    (("a:b:1", 2, 0), "--coordinator", "a:b:1"),
    (("a:1", 2, 2), "--process_id", 2),
    (("a:1", 0, 0), "--num_processes", 0),
])  # fmt: skip
def test_wrong_flags(flags, key, value):
    with refused(key, value):
        find_launch(*flags, environ={})


def test_wrong_variables():
    with refused("SLURM_PROCID", "x"):
        find_launch(environ=SLURM | {"SLURM_PROCID": "x"})
    with refused("JAX_PROCESS_ID", "-1"):
        find_launch(environ=JAX | {"JAX_PROCESS_ID": "-1"})
    with refused("JAX_PROCESS_ID", 3):
        find_launch(environ=JAX | {"JAX_PROCESS_ID": "3"})


@pytest.mark.parametrize(("nodes", "first"), [
    ("node001", "node001"),
    ("node001,host2", "node001"),
    ("node[001-0015],host2", "node001"),
    ("node[001,007-015],host2", "node001"),
    ("rack[1-2]-node", "rack1-node"),
])  # fmt: skip
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("flag", ["--lost_after=nan", "--lost_after=1", "--join_timeout=inf"])
def test_wrong_time_limits_are_one_line(flag, capsys):
    assert main.main(["--config=resnet18", "--dry_run", flag]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flag}")
