"""The interface of experiment trackers, and the rows of ``log.trackers``."""

import dataclasses
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from flax_resnet.errors import ConfigError, one_line
from flax_resnet.settings import Registry, Row

FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"


class Tracker(Protocol):
    """A run of a tracking service. Each method may raise any exception of the service's library.

    Attributes:
      run_id: the service's name of the run, by which a resumed run goes on in it.
      address: where people find the run, in words or as a URL.
    """

    run_id: str
    address: str

    def describe(self, facts: Mapping[str, str]) -> None:
        """Store texts about the run, such as paths. A later text of the same name replaces it."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store metrics; `step` is the number of updates made."""

    def log_file(self, path: pathlib.Path) -> None:
        """Store a copy of a file."""

    def finish(self, status: str) -> None:
        """End the run: FINISHED, INTERRUPTED or FAILED. An interrupted run may be opened again."""


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker stores.

    Attributes:
      project: name of the group of runs: an experiment in MLflow, a project in W&B.
      name: name of the run.
      folder: the run folder.
      settings: {dotted key: value} of the settings that are used.
      run_id: the id of the tracker's run to go on in; "" for a new one.
    """

    project: str
    name: str
    folder: pathlib.Path
    settings: Mapping[str, Any]
    run_id: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackerRow(Row):
    """One tracking service.

    Attributes:
      package: the Python package that it needs; the extra of setup.cfg has the same name.
      secrets: environment variables that no message may show.
      open: opens a new run, or an earlier one. It raises any exception of the package.
    """

    package: str
    secrets: tuple[str, ...] = ()
    open: Callable[[TrackedRun], Tracker]


TRACKERS: Registry[TrackerRow] = Registry("flax_resnet.trackers.services")


def check_installed(names: Iterable[str]) -> None:
    """Raise ConfigError if the package of a tracker is not installed. Imports no package."""
    for name in names:
        package = TRACKERS[name].package
        found = importlib.util.find_spec(package)
        # A folder of that name, such as W&B's own ./wandb, is found too; it has no origin.
        if found is None or found.origin is None:
            raise ConfigError(
                f"needs {package}, which is not installed",
                key="log.trackers",
                value=name,
                cure=f"pip install 'flax_resnet[{package}]'",
            )


def without_secrets(error: Exception, row: TrackerRow) -> str:
    """Return the message of an exception in one line, without passwords in URLs and values of `row.secrets`."""
    text = re.sub(r"//[^/@\s]*@", "//", one_line(error))
    for secret in filter(None, map(os.environ.get, row.secrets)):
        text = text.replace(secret, "...")
    return text
