"""A folder of records: stages/*.json are the originals, and record.json combines them in one file."""

import dataclasses
import json
import pathlib
import sys

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import (
    NOT_A_RECORD,
    RUNNING,
    STOPPED,
    StageRecord,
    read_stage,
    write_json,
)
from flax_resnet.errors import ConfigError, WorkdirError, one_line

RECORD, LOG, STAGES = "record.json", "log.txt", "stages"
KNOWN = ("cpu", "cores", "commit", "versions")  # keys of `Machine.environment` that reports need


def stage_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the file of a stage's record."""
    return folder / STAGES / f"{name}.json"


def claim(folder: pathlib.Path, machine: Machine) -> None:
    """Make the folder, or check that its records are of this machine; set aside unreadable stage files.

    Raises:
      WorkdirError: the records are of another machine, or the folder cannot be written.
    """
    try:
        (folder / STAGES).mkdir(parents=True, exist_ok=True)
        if (folder / RECORD).exists():
            _compare(folder, read_json(folder / RECORD)[0], machine)
        for file in (folder / STAGES).glob("*.json"):
            _set_aside_broken(file)
        write_record(folder, machine)
    except OSError as error:
        raise WorkdirError(
            f"cannot be written: {one_line(error)}", key="--folder", value=folder
        ) from error


def _compare(folder: pathlib.Path, former: Machine, machine: Machine) -> None:
    if (str(former), former.tiny) != (str(machine), machine.tiny):
        raise WorkdirError(
            f"holds records of {former}{', tiny' if former.tiny else ''}; this is "
            f"{machine}{', tiny' if machine.tiny else ''}",
            key="--folder",
            value=folder,
            cure="name another folder",
        )


def _set_aside_broken(file: pathlib.Path) -> None:
    try:
        read_stage(file)
    except ConfigError as error:
        broken = file.with_suffix(".broken")
        file.rename(broken)
        print(
            f"warning: {one_line(error)}; renamed to {broken.name}; the stage runs again",
            file=sys.stderr,
        )


def write_record(folder: pathlib.Path, machine: Machine) -> None:
    """Write the record of all stages, including those of earlier starts and of other modes (--quick, --full)."""
    rows = [dataclasses.asdict(record) for record in _read_stages(folder)]
    write_json(folder / RECORD, {"machine": machine._asdict(), "stages": rows})


def read(path: pathlib.Path) -> tuple[Machine, list[StageRecord]]:
    """Read the record of all stages, from a folder or from a record.json file.

    Raises:
      ConfigError: it is not such a record.
    """
    if not path.is_dir():
        return read_json(path)
    machine, stages = read_json(path / RECORD)
    return machine, _read_stages(path) or stages


def _read_stages(folder: pathlib.Path) -> list[StageRecord]:
    """Read the stages of a folder, in the order of their creation; a running stage counts as stopped."""
    found = filter(None, map(read_stage, (folder / STAGES).glob("*.json")))
    return [_stopped(one) for one in sorted(found, key=lambda one: one.created)]


def _stopped(record: StageRecord) -> StageRecord:
    state = STOPPED if record.state == RUNNING else record.state
    return dataclasses.replace(record, state=state)


def read_json(file: pathlib.Path) -> tuple[Machine, list[StageRecord]]:
    """Read a record of all stages.

    Raises:
      ConfigError: the file is not such a record.
    """
    try:
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"a JSON object is needed, not {type(values).__name__}")
        machine = Machine(**values["machine"])
        if lacking := [name for name in KNOWN if name not in machine.environment]:
            raise ValueError(f"its machine has no {', '.join(lacking)}")
        machine.environment["versions"].keys()
        return machine, [_stopped(StageRecord.from_json(one)) for one in values["stages"]]
    except NOT_A_RECORD as error:
        raise ConfigError(
            f"holds no record of these benchmarks: {type(error).__name__}: {one_line(error)}",
            key=file,
            cure="name a folder that was written with --folder, or its record.json",
        ) from error
