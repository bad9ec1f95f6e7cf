"""The observer that writes the report of a run at its end, and keeps the command of each start."""

import datetime
import logging
import os
import pathlib

from flax_resnet.cli.page.run_report import COMMAND
from flax_resnet.errors import ConfigError, one_line
from flax_resnet.training.observer import Observer

log = logging.getLogger("flax_resnet")


class ReportObserver(Observer):
    """Writes the report at the end of a run. A report that fails costs a line of warning, not the run.

    Args:
      workdir: the run folder.
      command: the command that trains; it is appended to command.txt at the first record.
    """

    def __init__(self, workdir: str | os.PathLike, command: str) -> None:
        self._workdir = pathlib.Path(workdir).expanduser()
        self._line = f"{datetime.datetime.now():%Y-%m-%d %H:%M}  {command}\n"

    def on_record(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Keep the command of this start."""
        import jax

        if self._line and not jax.process_index():
            try:
                with (self._workdir / COMMAND).open(
                    "a", encoding="utf-8", errors="replace"
                ) as file:
                    file.write(self._line)
            except OSError as error:
                log.warning("%s cannot be written: %s", self._workdir / COMMAND, one_line(error))
        self._line = ""

    def on_end(self, workdir: pathlib.Path) -> None:
        """Write report.html, classes.csv and report.png into the run folder."""
        import jax

        from flax_resnet.cli.report import PAGE, check_packages, write_report

        if jax.process_count() > 1:
            log.info("for %s, run flax-resnet report --workdir=%s", PAGE, workdir)
            return
        try:
            check_packages()
            write_report(workdir, workdir)
            log.info("report      %s", workdir / PAGE)
        except ConfigError as error:
            log.info("no %s: %s", PAGE, error)
        except Exception as error:  # the run is finished and saved, whatever the report meets
            log.warning("no %s: %s", PAGE, one_line(error))
