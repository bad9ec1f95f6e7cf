"""The observer that writes the report of a run at its end, and what TensorBoard shows besides the records."""

import contextlib
import datetime
import io
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_resnet.errors import ConfigError, one_line
from flax_resnet.training.observer import Observer

if TYPE_CHECKING:
    from flax_resnet.cli.page.run_report import RunReport
    from flax_resnet.training.runs.tensorboard_details import TensorBoardDetails

log = logging.getLogger("flax_resnet")

MATRIX = 200  # largest number of classes of the confusion matrix in TensorBoard


class ReportObserver(Observer):
    """Writes the report of a run at its end; and for TensorBoard, histograms, images and settings.

    It only looks on: what fails costs a line of warning, not the run. With several processes, process 0 writes the
    histograms, and there is no report.

    Args:
      workdir: the run folder.
      command: the command that trains; it is appended to command.txt at the first record.
    """

    def __init__(self, workdir: str | os.PathLike, command: str) -> None:
        self._workdir = pathlib.Path(workdir).expanduser()
        self._line = f"{datetime.datetime.now():%Y-%m-%d %H:%M}  {command}\n"
        self._details: TensorBoardDetails | None = None

    def on_record(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """Keep the command of this start."""
        import jax

        from flax_resnet.cli.page.run_report import COMMAND

        if self._line and not jax.process_index():
            file = self._workdir / COMMAND
            with (
                _warned(f"{COMMAND} lacks a command"),
                file.open("a", encoding="utf-8", errors="replace") as text,
            ):
                text.write(self._line)
        self._line = ""

    def on_evaluation(self, step: int, variables: dict[str, dict[str, Any]]) -> None:
        """Write histograms of the weights."""
        import jax

        if jax.process_index():
            return
        with _warned("no histograms"):
            leaves, _ = jax.tree_util.tree_flatten_with_path(variables[""]["params"])
            arrays = {
                "/".join(("weights", *(key.key for key in path))): leaf.addressable_data(0)
                for path, leaf in leaves
            }
            self._tensorboard().histograms(
                step, {k: np.asarray(x, np.float32) for k, x in arrays.items()}
            )

    def on_end(self, workdir: pathlib.Path) -> None:
        """Write report.html, classes.csv and report.png into the run folder, and their pictures for TensorBoard."""
        import jax

        from flax_resnet.cli.page.run_report import gather
        from flax_resnet.cli.report import PAGE, check_packages, write_report

        if jax.process_count() > 1:
            log.info("for %s, run flax-resnet report --workdir=%s", PAGE, workdir)
            return
        with _warned(f"no {PAGE}"):
            try:
                check_packages()
            except ConfigError as error:
                log.info("no %s: %s", PAGE, error)
                return
            report = gather(workdir)
            write_report(report, workdir)
            self._show(report)
            log.info("report      %s", workdir / PAGE)

    def _show(self, report: "RunReport") -> None:
        """Write the confusion matrix, examples, and the settings with the results for TensorBoard."""
        from flax_resnet.cli.plots.run_picture import examples_picture
        from flax_resnet.config import flatten
        from flax_resnet.optim.evaluation_metrics import METRICS

        details, step = self._tensorboard(), report.classifier.step
        images = {"examples": _pixels(examples_picture(report))}
        if len(report.split.class_names) <= MATRIX:
            images["confusion"] = _pixels(_matrix(report))
        details.images(step, images)
        evaluations = [record for record in report.records if record["split"] != "train"]
        last = evaluations[-1] if evaluations else {}
        results = {
            f"result/{key}": value
            for key, value in last.items()
            if key.removeprefix("ema_") in METRICS
        }
        details.settings(step, flatten(report.classifier.config), results)

    def _tensorboard(self) -> "TensorBoardDetails":
        from flax_resnet.training.runs.tensorboard_details import TensorBoardDetails

        self._details = self._details or TensorBoardDetails(self._workdir)
        return self._details


@contextlib.contextmanager
def _warned(lost: str) -> Iterator[None]:
    """Log an exception inside this block as one line that says what is lost."""
    try:
        yield
    except Exception as error:  # the run itself is fine, whatever this meets
        log.warning("%s: %s", lost, one_line(error))


def _matrix(report: "RunReport") -> bytes:
    from flax_resnet.cli.plots import confusion
    from flax_resnet.inference.split_statistics import confusion_matrix

    split = report.split
    title = (
        f"{split.is_right.mean():.2%} top-1 on {report.where}"
        if len(split.labels)
        else report.where
    )
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "confusion.png"
        confusion.write(file, confusion_matrix(split), split.class_names, title)
        return file.read_bytes()


def _pixels(picture: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))
