"""The run folder: whether a command may use it, its config.json, its records."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Self

from flax_resnet.config import Config, differences, freeze
from flax_resnet.errors import WorkdirError, one_line
from flax_resnet.training.runs.metadata import SCHEMA, check_schema

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.txt"
EVALUATIONS, PROBES = "evaluations.jsonl", "probes.jsonl"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of a run; see `RunFolder.at`.

    Attributes:
      path: absolute. It holds config.json, metrics.jsonl, summary.txt, TensorBoard's files and checkpoints/.
    """

    path: pathlib.Path

    @classmethod
    def at(cls, path: str | pathlib.Path) -> Self:
        """Return the folder at a path, which may begin with ~; nothing is read or made."""
        return cls(pathlib.Path(path).expanduser().resolve())

    def __str__(self) -> str:
        return str(self.path)

    def read_config(self) -> Config | None:
        """Return the stored configuration, or None where the folder is new or empty.

        Raises:
          WorkdirError: it is no folder, holds something other than a run, cannot be read, or another version of
            flax_resnet wrote it.
          ConfigError: the stored configuration is wrong.
        """
        file = self.path / CONFIG
        try:
            if not self.path.exists():
                return None
            if not self.path.is_dir():
                raise WorkdirError(f"workdir {self} is a file: name a folder")
            if not file.exists():
                if any(self.path.iterdir()):
                    raise WorkdirError(
                        f"workdir {self} holds something else (no {CONFIG} in it): name a new folder"
                    )
                return None
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise WorkdirError(f"workdir {self} cannot be read: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise WorkdirError(f"workdir {self}: {CONFIG} is not a configuration")
        check_schema(values, f"workdir {self}")
        return freeze({name: section for name, section in values.items() if name != "schema"})

    def claim(self, config: Config, *, resume: str) -> Config | None:
        """Make the folder this run's own, or check that it is.

        Args:
          config: what is to be trained.
          resume: "auto" refuses a folder whose configuration would give another result; "force" takes it over:
            training resumes from the last checkpoint under the new configuration.

        Returns:
          The configuration stored before, or None in a new folder.

        Raises:
          WorkdirError: it cannot be written, holds something else, or another configuration.
        """
        stored = self.read_config()
        if stored is not None and resume != "force" and (changed := differences(stored, config)):
            raise WorkdirError(
                f"workdir {self} was trained with another configuration ({'; '.join(changed)}): "
                "name another workdir, or go on from its last checkpoint with --resume=force"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        if stored is None:
            self.store_config(config)
        return stored

    def store_config(self, config: Config) -> None:
        """Write config.json whole or not at all. Raises WorkdirError."""
        values = {"schema": SCHEMA, **dataclasses.asdict(config)}
        self._replace(CONFIG, json.dumps(values, indent=2) + "\n")

    def read_records(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl; a last line torn by a kill is left out."""
        file = self.path / METRICS
        if not file.exists():
            return []
        records = []
        for line in file.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def cut_records(self, after_step: int) -> list[dict[str, Any]]:
        """Drop the records after a step from metrics.jsonl, and return the others. Raises WorkdirError."""
        records = [record for record in self.read_records() if record["step"] <= after_step]
        self._replace(METRICS, "".join(json.dumps(record) + "\n" for record in records))
        return records

    def append_record(self, name: str, record: dict[str, Any]) -> None:
        """Append a line to a file of records, such as evaluations.jsonl. Raises WorkdirError."""
        try:
            with (self.path / name).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def write_summary(self, text: str) -> None:
        """Write summary.txt, the mark of a finished run. Raises WorkdirError."""
        self._replace(SUMMARY, text)

    def _replace(self, name: str, text: str) -> None:
        unfinished = self.path / f".{name}.part"
        try:
            unfinished.write_text(text)
            os.replace(unfinished, self.path / name)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> WorkdirError:
        return WorkdirError(f"workdir {self} cannot be written: {one_line(error)}")
