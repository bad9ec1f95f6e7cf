"""The run folder: whether a command may use it, its config.json, and its records."""

import dataclasses
import json
import os
import pathlib

from flax_resnet.config import Config, differences, freeze
from flax_resnet.errors import WorkdirError, one_line

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.txt"
EVALUATIONS, PROBES = "evaluations.jsonl", "probes.jsonl"


def read_config(workdir: pathlib.Path) -> Config | None:
    """Returns the stored configuration, or None where the folder is new or empty.

    Raises:
      WorkdirError: the folder is none, holds something other than a run, or cannot be read.
      ConfigError: the stored configuration does not fit this version.
    """
    try:
        if not workdir.exists():
            return None
        if not workdir.is_dir():
            raise WorkdirError(f"workdir {workdir} is a file: name a folder")
        if not (workdir / CONFIG).exists():
            if any(workdir.iterdir()):
                raise WorkdirError(
                    f"workdir {workdir} holds something else (no {CONFIG} in it): name a new folder"
                )
            return None
        values = json.loads((workdir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WorkdirError(f"workdir {workdir} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise WorkdirError(f"workdir {workdir}: {CONFIG} is not a configuration")
    return freeze(values)


def claim(workdir: pathlib.Path, config: Config, *, resume: str) -> Config | None:
    """Makes the folder this run's own, or checks that it is.

    Args:
      workdir: the folder; made where absent.
      config: what is to be trained.
      resume: "auto" refuses a folder whose configuration would give another result; "force" takes it
        over: training goes on from the last checkpoint under it.

    Returns:
      The configuration stored before, or None in a new folder.

    Raises:
      WorkdirError: it cannot be written, holds something else, or another configuration.
    """
    stored = read_config(workdir)
    if stored is not None and resume != "force" and (changed := differences(stored, config)):
        raise WorkdirError(
            f"workdir {workdir} was trained with another configuration ({'; '.join(changed)}): "
            "name another workdir, or go on from its last checkpoint with --resume=force"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(f"workdir {workdir} cannot be written: {one_line(error)}") from error
    if stored is None:
        store_config(workdir, config)
    return stored


def store_config(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json whole or not at all. Raises WorkdirError."""
    part = workdir / f".{CONFIG}.part"
    try:
        part.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        os.replace(part, workdir / CONFIG)
    except OSError as error:
        raise WorkdirError(f"workdir {workdir} cannot be written: {one_line(error)}") from error


def read_records(workdir: pathlib.Path) -> list[dict]:
    """Returns the records of metrics.jsonl; a last line torn by a kill is left out."""
    file = workdir / METRICS
    if not file.exists():
        return []
    records = []
    for line in file.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def cut_records(workdir: pathlib.Path, after_step: int) -> list[dict]:
    """Drops the records after a step from metrics.jsonl, and returns what is left."""
    kept = [r for r in read_records(workdir) if r["step"] <= after_step]
    part = workdir / f".{METRICS}.part"
    part.write_text("".join(json.dumps(r) + "\n" for r in kept))
    os.replace(part, workdir / METRICS)
    return kept


def append_record(workdir: pathlib.Path, name: str, record: dict) -> None:
    """Appends a line to a file of records, such as evaluations.jsonl. Raises WorkdirError."""
    try:
        with (workdir / name).open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise WorkdirError(f"workdir {workdir} cannot be written: {one_line(error)}") from error
