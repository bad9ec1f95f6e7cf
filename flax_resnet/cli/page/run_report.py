"""What a report shows of a run: its records, and the predictions for a split."""

import pathlib
from typing import Any, NamedTuple

from flax_resnet.data.records import Source
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.judged_split import JudgedSplit
from flax_resnet.training.runs.folder import SUMMARY, RunFolder
from flax_resnet.training.runs.metadata import RunMetadata
from flax_resnet.training.runs.time_account import TimeAccount, read_account

COMMAND = "command.txt"  # in the run folder: the command of each start


class RunReport(NamedTuple):
    """A run and its predictions for a split.

    Attributes:
      workdir: the run folder.
      classifier: the network.
      metadata: the metadata of its checkpoint.
      records: the records of the run.
      source: the split.
      split: the predictions for the split.
      where: the name of the split, with its dataset if that is not the run's.
    """

    workdir: pathlib.Path
    classifier: Classifier
    metadata: RunMetadata
    records: list[dict[str, Any]]
    source: Source
    split: JudgedSplit
    where: str

    @property
    def texts(self) -> dict[str, str]:
        """The texts of summary.txt and command.txt; "" for a missing file."""
        return {name: _text(self.workdir / name) for name in (SUMMARY, COMMAND)}

    @property
    def account(self) -> TimeAccount:
        """The wall time of the run, by times.jsonl."""
        return read_account(RunFolder.at(self.workdir))


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def gather(workdir: pathlib.Path, *, dataset: str = "", data_dir: str = "") -> RunReport:
    """Load the last checkpoint of a run, and predict its evaluation split, or `dataset` (see `run_data`).

    Raises:
      UserError: there is no such run, its data are missing, or it lacks a class of `dataset`.
    """
    from flax_resnet.data.open import open_source
    from flax_resnet.inference.classifier import classifier_of
    from flax_resnet.inference.judged_split import judge_split
    from flax_resnet.inference.run_data import run_data
    from flax_resnet.training.runs.load import load_run

    run = load_run(workdir)
    data = run_data(run, dataset, data_dir=data_dir)
    source, train = open_source(data, train=False), run.config.train
    classifier = classifier_of(run)
    split = judge_split(
        classifier,
        source,
        batch_size=train.eval_batch_size or train.batch_size,
        where=dataset or data.eval_split,
    )
    where = f"{data.eval_split} of {dataset}" if dataset else data.eval_split
    records = RunFolder.at(workdir).read_records()
    return RunReport(workdir, classifier, run.metadata, records, source, split, where)
