"""The best checkpoint: by the records of the run, and only by those that count."""

import numpy as np
import pytest
from conftest import records_of, saved_run

import flax_resnet
from flax_resnet.config import freeze
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.training import train as train_module
from flax_resnet.training import trainer
from flax_resnet.training.runs import writers
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.train import train


def sources(*, flipped, count=64):
    """Two splits of images whose brightness tells their class; `flipped` exchanges the labels."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 64)
    images = (draw.integers(0, 100, (64, 8, 8, 3)) + 150 * labels[:, None, None, None]).astype(
        np.uint8
    )
    labels = 1 - labels if flipped else labels
    made = ArraySource(images[:count], labels[:count], ("dark", "light"))
    return {"train_source": made, "eval_source": made}


def configured(steps, **options):
    return freeze(
        {
            "data": {"source": "python", "image_size": 8},
            "model": {"name": "resnet20", "depths": (1, 1, 1)},
            "optimizer": {"learning_rate": 0.05},
            "schedule": {"warmup": 0, "name": "constant"},
            "train": {
                "steps": steps, "batch_size": 16, "eval_every": 0.25, "log_every": 1, **options,
            },
        }
    )  # fmt: skip


@pytest.fixture
def scores(monkeypatch):
    """Top-1 accuracies that replace those of the evaluations, in their order; the last one repeats."""
    values = []
    write = writers.RecordWriter.write

    def changed(self, step, epoch, split, record):
        if split == "test" and values:
            record["top1"] = values.pop(0) if len(values) > 1 else values[0]
        write(self, step, epoch, split, record)

    monkeypatch.setattr(writers.RecordWriter, "write", changed)
    return values


def test_an_evaluation_between_two_checkpoints_can_be_the_best(tmp_path, scores):
    """Checkpoints are planned at steps 8 and 12; the best evaluation is at step 3."""
    scores += [0.5, 0.6, 0.9, 0.7]
    result = train(configured(12, checkpoint_every=2.0), tmp_path / "run", **sources(flipped=False))
    assert (result.best_step, result.best_top1) == (3, 0.9)
    best = flax_resnet.load(tmp_path / "run", "best")
    assert best.step == 3
    saved = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert saved == {3, 8, 12}
    assert "best 90.00% at step 3" in (tmp_path / "run" / "summary.txt").read_text()


@pytest.mark.slow
def test_a_forced_resume_on_other_data_starts_the_scores_anew(tmp_path):
    """The first data's scores count neither for the best checkpoint nor for early stopping."""
    workdir = tmp_path / "run"
    first = train(configured(12), workdir, **sources(flipped=False))
    assert first.best_top1 == 1
    stops = {"early_stopping": 30}
    forced = train(configured(20, **stops), workdir, resume="force", **sources(flipped=True))
    records = [r for r in records_of(workdir, "test") if r["step"] >= 12]
    # The restored state is evaluated on the new data first: there, it is wrong about every image.
    assert (records[0]["step"], records[0]["top1"]) == (12, 0)
    assert [r["step"] for r in records] == list(range(12, 21))
    best = max(records, key=lambda r: r["top1"])
    assert (forced.best_step, forced.best_top1) == (best["step"], best["top1"])
    assert flax_resnet.load(workdir, "best").step == best["step"]
    assert RunFolder.at(workdir).scores_from() == 12
    # A later, ordinary resume keeps what the forced one has decided.
    resumed = train(configured(22, **stops), workdir, **sources(flipped=True))
    records = [r for r in records_of(workdir, "test") if r["step"] >= 12]
    assert resumed.best_top1 == max(r["top1"] for r in records)
    assert flax_resnet.load(workdir, "best").step == resumed.best_step


def test_a_finished_run_is_judged_anew_by_force(tmp_path):
    workdir = tmp_path / "run"
    assert train(configured(12), workdir, **sources(flipped=False)).final_top1 == 1
    forced = train(configured(12), workdir, resume="force", **sources(flipped=True))
    assert (forced.final_top1, forced.best_step) == (0, 12)
    again = train(configured(12), workdir, **sources(flipped=True))
    assert (again.final_top1, again.best_step) == (0, 12)
    # The checkpoint has been replaced by one with the new configuration.
    train(configured(12, seed=3), workdir, resume="force", **sources(flipped=True))
    assert flax_resnet.load(workdir).config.train.seed == 3


@pytest.mark.slow
def test_the_loss_of_a_checkpoint_brings_earlier_data_back_no_scores(tmp_path):
    """Training continues before the change, on the new data; only its new evaluations count."""
    workdir = tmp_path / "run"
    train(configured(12), workdir, **sources(flipped=False))
    train(configured(16), workdir, resume="force", **sources(flipped=True))
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    for step in steps[1:]:
        (workdir / "checkpoints" / str(step) / "files.json").write_text("{")
        (workdir / "checkpoints" / str(step) / "state" / "_METADATA").write_text("")
    resumed = train(configured(16), workdir, **sources(flipped=True))
    assert RunFolder.at(workdir).scores_from() == min(12, steps[0])
    new = [r for r in records_of(workdir, "test") if r["step"] >= steps[0]]
    assert [r["step"] for r in new] == list(range(steps[0], 17))
    assert resumed.best_top1 == max(r["top1"] for r in new)


def test_a_forced_resume_that_ends_before_its_first_checkpoint_stays_forced(tmp_path, monkeypatch):
    """The next, ordinary command neither believes the old score nor compares the data with the old ones."""
    workdir = tmp_path / "run"
    assert train(configured(12), workdir, **sources(flipped=False)).final_top1 == 1
    other = sources(flipped=True, count=48)
    config = configured(12)

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "build_trainer", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, workdir, resume="force", **other)
    result = train(config, workdir, **other)
    assert (result.step, result.final_top1, result.best_top1) == (12, 0, 0)
    # Killed again, after that evaluation: the step keeps one record.
    (workdir / "summary.txt").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "finished_result", lambda *given: None)
        train(config, workdir, **other)
    assert [r["step"] for r in records_of(workdir, "test")].count(12) == 1


def test_the_best_of_a_run_without_evaluations_is_its_last(tmp_path):
    network = {"model": {"name": "resnet20", "depths": (1, 1, 1)}}
    saved_run(tmp_path / "run", network, ["a", "b"], step=12)
    assert flax_resnet.load(tmp_path / "run", "best").step == 12
