"""The launcher of a process: which processes belong together, from flags or from the environment."""

import dataclasses
import os
import re
from collections.abc import Mapping

from flax_resnet.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Launch:
    """The place of this process among those that were launched together.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes, above 1.
      process_id: number of this process, from 0.
      local_device_ids: the GPUs of this process; None for all that it sees.
      launcher: name of the launcher, for messages.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None
    launcher: str = "flags"


def find_launch(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Launch | None:
    """Return the launch of this process, or None if it runs alone.

    The first of these that is set decides: the arguments, which are the flags of a command; JAX's own variables
    (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); Slurm; Open MPI. A job of one process runs alone.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: number of this process.
      environ: the environment variables.

    Raises:
      ConfigError: one of the three values is missing, or out of range.
    """
    flags = {
        "--coordinator": coordinator or None,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    if any(value is not None for value in flags.values()):
        return _complete(flags, "flags")
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} & environ.keys():
        address, *numbers = (environ.get(name) for name in names)
        whole = [
            _whole(name, text) if text else None
            for name, text in zip(names[1:], numbers, strict=True)
        ]
        return _complete(
            dict(zip(names, (address or None, *whole), strict=True)), "JAX's variables"
        )
    return _slurm(environ) or _open_mpi(environ)


def _complete(values: Mapping[str, str | int | None], launcher: str) -> Launch | None:
    """Return the launch that {name: coordinator, number of processes, number of this process} describe."""
    coordinator_key, count_key, id_key = values
    coordinator, count, number = values.values()
    if count == 1 and not number:
        return None
    if missing := [name for name, value in values.items() if value is None]:
        raise ConfigError(
            f"is needed beside {' and '.join(name for name in values if name not in missing)}",
            key=missing[0],
            cure="set all three, or none to train in one process",
        )
    if not isinstance(count, int) or count < 1:
        raise ConfigError(key=count_key, value=count, allowed="a whole number, at least 1")
    if not isinstance(number, int) or not 0 <= number < count:
        raise ConfigError(key=id_key, value=number, allowed=f"a whole number from 0 to {count - 1}")
    address = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s/]+):(\d{1,5})", str(coordinator))
    if not address or not 0 < int(address[2]) < 65536:
        raise ConfigError(
            key=coordinator_key,
            value=coordinator,
            allowed="HOST:PORT of process 0, such as node1:12345",
        )
    return Launch(str(coordinator), count, number, launcher=launcher)


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    """Return the launch by srun: one process for each task of the step."""
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environ.keys():
        return None  # a process of the batch script itself, or no Slurm
    count = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if count < 2:
        return None
    port = environ.get("JAX_COORDINATOR_PORT") or str(_port(_number(environ, "SLURM_JOB_ID")))
    coordinator = (
        environ.get("JAX_COORDINATOR_ADDRESS")
        or f"{first_host(environ['SLURM_STEP_NODELIST'])}:{port}"
    )
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return Launch(
        coordinator,
        count,
        _number(environ, "SLURM_PROCID"),
        _own_gpu(environ, "SLURM_LOCALID", alone=_one_task_a_node(tasks)),
        "Slurm",
    )


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    """Return the launch by Open MPI's mpirun: one process for each rank."""
    if not {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"} <= environ.keys():
        return None
    count = _number(environ, "OMPI_COMM_WORLD_SIZE")
    if count < 2:
        return None
    coordinator = environ.get("JAX_COORDINATOR_ADDRESS")
    if not coordinator:
        # Job number and addresses of the host of mpirun, such as "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911".
        # Open MPI 5 has no such variable.
        uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
        found = re.match(r"(\d+)\.\d+;tcp6?://\[?([^,\]]+?)(?:[,\]]|:\d+$)", uri)
        if not found:
            raise ConfigError(
                "Open MPI does not tell the address of process 0",
                key="JAX_COORDINATOR_ADDRESS",
                cure="set it to HOST:PORT of process 0 (mpirun -x JAX_COORDINATOR_ADDRESS=node1:12345)",
            )
        host = f"[{found[2]}]" if ":" in found[2] else found[2]
        # The job number is a multiple of 4096.
        port = environ.get("JAX_COORDINATOR_PORT") or _port(int(found[1]) // 4096)
        coordinator = f"{host}:{port}"
    alone = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    return Launch(
        coordinator,
        count,
        _number(environ, "OMPI_COMM_WORLD_RANK"),
        _own_gpu(environ, "OMPI_COMM_WORLD_LOCAL_RANK", alone=alone),
        "Open MPI",
    )


def first_host(nodes: str) -> str:
    """Return the first host of a node list of Slurm.

    >>> first_host("node[007-015,020],login")
    'node007'
    >>> first_host("gpu-a,gpu-b")
    'gpu-a'
    """
    found = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _one_task_a_node(tasks: str) -> bool:
    """Return whether Slurm's SLURM_STEP_TASKS_PER_NODE, such as "1(x4)" or "2(x3),1", has one task on each node."""
    return bool(tasks) and all(part.partition("(")[0] == "1" for part in tasks.split(","))


def _own_gpu(environ: Mapping[str, str], name: str, *, alone: bool) -> tuple[int, ...] | None:
    """Return the GPU of the process with this number on its node; None for all GPUs that it sees.

    A process alone on its node takes all of them, unlike JAX's own detection, which takes the first. A process that
    the launcher shows one GPU only (--gpus-per-task=1) takes that one.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    if alone or name not in environ or (visible and "," not in visible):
        return None
    return (_number(environ, name),)


def _port(job: int) -> int:
    """Return a port for a job, in the range of ephemeral ports, as JAX's own detection does."""
    return job % 4096 + 65535 - 4096 + 1


def _number(environ: Mapping[str, str], *names: str) -> int:
    """Return the whole number in the first of these variables that is set."""
    name = next((name for name in names if environ.get(name)), names[-1])
    return _whole(name, environ.get(name, ""))


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(key=name, value=text, allowed="a whole number, at least 0")
    return int(text)
