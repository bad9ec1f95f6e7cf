"""The run folder: its config.json, its records, and the check before a run claims it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import Any, Self

import jax

from flax_resnet.config import Config, differences, freeze
from flax_resnet.errors import ConfigError, WorkdirError, one_line
from flax_resnet.training.processes.exchange import first
from flax_resnet.training.runs.lock import locked, owner_of, sees_owner
from flax_resnet.training.runs.metadata import SCHEMA, check_schema

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.txt"
TIMES = "times.jsonl"
ANOTHER_WORKDIR = "name another workdir, or resume with --resume=force"
# Seconds within which a network file system shows a new file to other machines.
SEEN_WITHIN = 60.0
RESTORE = "restore the file, or name another workdir"
# What config.json holds besides the sections of the configuration.
FACTS = ("schema", "scores_from")
EVALUATIONS, PROBES = "evaluations.jsonl", "probes.jsonl"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run folder; see `RunFolder.at`.

    It holds config.json, metrics.jsonl, summary.txt, TensorBoard event files and checkpoints/.

    Attributes:
      path: the absolute path.
    """

    path: pathlib.Path

    @classmethod
    def at(cls, path: str | pathlib.Path) -> Self:
        """Return the folder at a path, which may begin with ~. Nothing is read or created.

        Raises:
          WorkdirError: the path is a URL.
        """
        if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise WorkdirError(
                "is a URL, and runs are written to folders",
                key=path,
                cure="name a folder, such as one where the bucket is mounted",
            )
        return cls(pathlib.Path(path).expanduser().resolve())

    def __str__(self) -> str:
        return str(self.path)

    def read_config(self) -> Config | None:
        """Return the stored configuration, or None if the folder is missing or empty.

        Raises:
          WorkdirError: the path is not a folder, holds no run, cannot be read, holds an invalid configuration, or
            was written by another version of flax_resnet.
        """
        file = self.path / CONFIG
        if any("\ud800" <= character <= "\udfff" for character in str(self.path)):
            raise WorkdirError(
                "is not UTF-8, as checkpoints need",
                key=self.path,
                cure="name another folder, or set a locale of UTF-8",
            )
        try:
            if not self.path.exists():
                return None
            if not self.path.is_dir():
                raise WorkdirError("is a file", key=self.path, cure="name a folder")
            if not file.exists():
                if (self.path / "checkpoints").is_dir():
                    raise WorkdirError(f"has lost its {CONFIG}", key=self.path, cure=RESTORE)
                if not all(_is_hidden_file(entry) for entry in self.path.iterdir()):
                    raise WorkdirError(
                        f"holds something else (no {CONFIG} in it)",
                        key=self.path,
                        cure="name a new folder",
                    )
                return None
            if not file.is_file():  # a device or a pipe may never end
                raise WorkdirError("cannot be read: it is no file", key=file, cure=RESTORE)
            values = json.loads(file.read_text(encoding="utf-8"))
        except WorkdirError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(file, error) from error
        if not isinstance(values, dict):
            raise WorkdirError("is not a configuration", key=file, cure=RESTORE)
        check_schema(values, file)
        try:
            return freeze({name: part for name, part in values.items() if name not in FACTS})
        except ConfigError as error:
            # A ConfigError would read as an error of the command's own configuration.
            raise WorkdirError(f"holds {one_line(error)}", key=file, cure=RESTORE) from error

    def claim(self, config: Config, *, resume: str) -> None:
        """Claim the folder for a run: create it, or check that its configuration matches.

        Args:
          config: the configuration to train.
          resume: "auto" raises if the configurations differ in a setting that changes the result, other than the
            run's length. "force" skips this check; training resumes from the last checkpoint under the new
            configuration.

        Raises:
          WorkdirError: the folder cannot be written, holds other files, or belongs to a different configuration.
        """
        stored = self.read_config()
        if stored is not None and resume != "force" and (changed := differences(stored, config)):
            raise WorkdirError(
                f"was trained with another configuration ({'; '.join(changed)})",
                key=self.path,
                cure=f"{ANOTHER_WORKDIR}, which resumes from the last checkpoint",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        if stored is None:
            self.store_config(config)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that keeps other runs from training in the folder; see lock.py.

        Of a run with several processes, process 0 holds the lock, and the others check that they see it.

        Raises:
          WorkdirError: another run trains in the folder, the lock cannot be written, or a process sees another one.
        """
        return self._locked_by_first() if jax.process_count() > 1 else locked(self.path)

    @contextlib.contextmanager
    def _locked_by_first(self) -> Iterator[None]:
        with locked(self.path) if jax.process_index() == 0 else contextlib.nullcontext():
            owner = first(lambda: owner_of(self.path))
            if not sees_owner(self.path, owner, SEEN_WITHIN):
                raise WorkdirError(
                    f"is not shared: process {jax.process_index()} on {socket.gethostname()} does not see the lock "
                    f"that process 0 wrote into {self.path.name} on {owner.get('host')}",
                    key=self.path,
                    cure="name a folder that all processes see, such as one on a network file system",
                )
            yield

    def store_config(self, config: Config, *, scores_from: int = 0) -> None:
        """Write config.json atomically.

        Args:
          config: the configuration.
          scores_from: evaluations before this step do not count: --resume=force changed the data or the
            configuration there.

        Raises:
          WorkdirError: the file cannot be written.
        """
        values = {"schema": SCHEMA, "scores_from": scores_from, **dataclasses.asdict(config)}
        self._replace(CONFIG, json.dumps(values, indent=2) + "\n")

    def scores_from(self) -> int:
        """Return the step from which evaluations count; 0 without a config.json. Raises WorkdirError."""
        file = self.path / CONFIG
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["scores_from"]
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _unreadable(file, error) from error
        if type(found) is not int:
            raise WorkdirError(f"has scores_from {found!r}", key=file, allowed="a whole number")
        return found

    def read_records(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl, without an incomplete last line.

        Raises:
          WorkdirError: the file cannot be read, or another line holds no record.
        """
        file = self.path / METRICS
        if file.exists() and not file.is_file():
            raise WorkdirError("cannot be read: it is no file", key=file, cure=RESTORE)
        try:
            lines = file.read_bytes().splitlines() if file.exists() else []
        except OSError as error:
            raise _unreadable(file, error) from error
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                if number == len(lines):  # the process ended while it wrote this line
                    break
                record = None
            if not _is_record(record):
                raise WorkdirError(
                    f"line {number} is no record of training or evaluation",
                    key=file,
                    cure="restore the file, or delete the line",
                )
            records.append(record)
        return records

    def cut_records(self, after_step: int, *, judged_anew: bool = False) -> list[dict[str, Any]]:
        """Remove the records after a step from metrics.jsonl, and return the others.

        Args:
          after_step: the last step whose records stay.
          judged_anew: also remove the evaluation at that step.

        Raises:
          WorkdirError: the file cannot be read or written.
        """
        records = [record for record in self.read_records() if record["step"] <= after_step]
        if judged_anew:
            records = [r for r in records if r["step"] < after_step or r["split"] == "train"]
        self._replace(METRICS, "".join(json.dumps(record) + "\n" for record in records))
        return records

    def append_record(self, name: str, record: dict[str, Any]) -> None:
        """Append a record to a file such as evaluations.jsonl. Raises WorkdirError."""
        try:
            with (self.path / name).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def write_summary(self, text: str) -> None:
        """Write summary.txt, which marks a finished run. Raises WorkdirError."""
        self._replace(SUMMARY, text)

    def read_times(self) -> str:
        """Return the text of times.jsonl; "" if it is missing or cannot be read."""
        try:
            return (self.path / TIMES).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def write_times(self, text: str) -> None:
        """Write times.jsonl. Raises WorkdirError."""
        self._replace(TIMES, text)

    def _replace(self, name: str, text: str) -> None:
        unfinished = self.path / f".{name}.part"
        try:
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> WorkdirError:
        return WorkdirError(f"cannot be written: {one_line(error)}", key=self.path)


def _is_hidden_file(entry: pathlib.Path) -> bool:
    """Return whether an entry is a hidden file, such as the unfinished file of a process that was killed."""
    return entry.name.startswith(".") and entry.is_file()


def _unreadable(file: pathlib.Path, error: Exception) -> WorkdirError:
    return WorkdirError(f"cannot be read: {one_line(error)}", key=file, cure=RESTORE)


def _is_record(value: Any) -> bool:
    """Return whether the value of a line of metrics.jsonl has the form that `RecordWriter` writes."""
    if not isinstance(value, dict) or not {"step", "epoch", "split"} <= value.keys():
        return False
    # Only skipped steps have no loss.
    if not {"loss", "top1"} <= value.keys() and "skipped" not in value:
        return False
    numbers = [number for key, number in value.items() if key != "split"]
    return (
        isinstance(value["split"], str)
        and isinstance(value["step"], int)
        and all(isinstance(number, int | float) for number in numbers)
    )
