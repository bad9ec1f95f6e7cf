"""Whole runs on the command line: train, resume, finish, extend, evaluate and load."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import records_of, refused, saved
from PIL import Image

import flax_resnet
from flax_resnet import main
from flax_resnet.cli import app, evaluate
from flax_resnet.config import default_config, freeze
from flax_resnet.errors import ConfigError
from flax_resnet.training import programs
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.stages import LEDGER_STAGES
from flax_resnet.training.step_metrics import StepMetrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A finished tiny run of 2 epochs x 5 steps, and the arguments of its command."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert main.main([*tiny, f"--workdir={workdir}"]) == 0
    return workdir, tiny


@pytest.fixture
def copy(finished, tmp_path):
    workdir, arguments = finished
    shutil.copytree(workdir, tmp_path / "copy")
    return tmp_path / "copy", [*arguments, f"--workdir={tmp_path / 'copy'}"]


def test_the_contents_of_a_run_folder(finished):
    workdir, _ = finished
    names = {p.name for p in workdir.iterdir()}
    assert names >= {"checkpoints", "config.json", "metrics.jsonl", "results.csv", "summary.txt"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [r["step"] for r in records_of(workdir, "test")] == [5, 10]
    assert records_of(workdir, "train")[-1].keys() == {
        "step", "epoch", "split", "loss", "top1", "learning_rate", "images_per_second",
    }  # fmt: skip
    assert records_of(workdir, "test")[-1]["count"] == 360
    summary = (workdir / "summary.txt").read_text()
    assert f"final top-1 {records_of(workdir, 'test')[-1]['top1']:.2%}" in summary
    assert RunFolder.at(workdir).read_config().model.widths == (4, 8, 16, 32)
    assert saved(workdir, 10)["versions"]["jax"]
    (times,) = map(json.loads, (workdir / "times.jsonl").read_text().splitlines())
    assert (times["first_step"], times["last_step"]) == (0, 10)
    assert times["seconds"].keys() == set(LEDGER_STAGES)
    assert min(times["seconds"].values()) > 0


def test_repeating_the_command_of_a_finished_run_changes_nothing(copy, capsys):
    workdir, arguments = copy
    before = (workdir / "metrics.jsonl").read_text()
    assert main.main(arguments) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "is finished" in line
    assert f"{100 * records_of(workdir, 'test')[-1]['top1']:.2f} %" in line
    assert (workdir / "metrics.jsonl").read_text() == before


def test_more_epochs_extend_a_run_and_fewer_are_refused(copy, capsys):
    workdir, arguments = copy
    assert main.main([*arguments, "--config.train.epochs=3"]) == 0
    assert [r["step"] for r in records_of(workdir, "test")] == [5, 10, 15]
    capsys.readouterr()
    assert main.main([*arguments, "--config.train.epochs=1"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: train.epochs=1: ")
    assert "3 epochs" in line


def test_another_configuration_needs_a_forced_resume(copy, capsys):
    workdir, arguments = copy
    other = [*arguments, "--config.train.seed=5", "--config.optimizer.momentum=0.8"]
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    assert main.main(other) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "optimizer.momentum: 0.9 -> 0.8; train.seed: 0 -> 5" in line
    assert "--resume=force" in line
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    assert main.main([*other, "--resume=force", "--config.train.epochs=3"]) == 0
    assert "going on from checkpoint 10" in capsys.readouterr().err
    assert RunFolder.at(workdir).read_config().train.seed == 5


@pytest.mark.slow
def test_another_seed_changes_the_run_but_compiles_nothing(tiny, own_cache, tmp_path, monkeypatch):
    set_up = app.set_up_jax

    def keep_all(*settings, **more):
        set_up(*settings, **more)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    monkeypatch.setattr(app, "set_up_jax", keep_all)
    losses, compiled = [], []
    for seed in (5, 6):
        workdir = tmp_path / str(seed)
        options = [f"--config.train.seed={seed}", f"--compilation_cache={own_cache}"]
        options += ["--config.augment.flip=horizontal", f"--workdir={workdir}"]
        assert main.main([*tiny, *options]) == 0
        losses.append([r["loss"] for r in records_of(workdir, "train")])
        compiled.append({file.name for file in own_cache.glob("*-cache")})
    assert {name.split("-")[0] for name in compiled[0]} >= {"jit_train_step", "jit_placed_state"}
    assert compiled[1] == compiled[0]
    assert all(a != b for a, b in zip(*losses, strict=True))


def test_on_cpu_metrics_are_read_before_the_next_step_starts(tiny, tmp_path, monkeypatch):
    make, read, done = programs.make_train_step, StepMetrics.read, []

    def watched(*args, **options):
        step = make(*args, **options)
        return lambda *given: done.append("step") or step(*given)

    def noted(metrics, note, **options):
        read(metrics, lambda step: done.append("read") or note(step), **options)

    monkeypatch.setattr(programs, "make_train_step", watched)
    monkeypatch.setattr(StepMetrics, "read", noted)
    assert main.main([*tiny, f"--workdir={tmp_path / 'run'}"]) == 0
    assert done == ["step", "read"] * 10


def test_settings_that_do_not_change_the_result_may_change(copy):
    _, arguments = copy
    assert main.main([*arguments, "--config.train.log_every=1", "--config.data.threads=1"]) == 0


def test_resuming_removes_records_after_the_restored_step(copy, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir, arguments = copy
    shutil.rmtree(workdir / "checkpoints" / "10" / "state")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 11, "epoch": 2.2, "split": "test", "loss": 9, "top1": 9}\n{"step": 12, "spl'
        )
    assert main.main(arguments) == 0
    err = capsys.readouterr().err
    assert f"warning: {workdir / 'checkpoints' / '10' / 'state'}: " in err
    assert "going on from checkpoint 5" in err
    assert [r["step"] for r in records_of(workdir, "test")] == [5, 10]
    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    events.Reload()
    assert [e.step for e in events.Tensors("test/top1")] == [5, 10]


def test_a_run_repeated_after_damage_gives_the_same_bits(finished, copy):
    workdir, arguments = copy
    shutil.rmtree(workdir / "checkpoints" / "10" / "state")
    assert main.main(arguments) == 0
    assert saved(workdir, 10)["checksums"] == saved(finished[0], 10)["checksums"]


def test_evaluate_and_predict_agree_on_every_digit(copy, data_dir, cache_dir, capsys, tmp_path):
    import io

    from flax_resnet.data.data_section import Data
    from flax_resnet.data.open import open_source

    workdir, _ = copy
    options = [f"--workdir={workdir}", f"--compilation_cache={cache_dir}"]
    assert evaluate.main(options) == 0
    assert "(360 images), checkpoint 10" in capsys.readouterr().out
    record = json.loads((workdir / "evaluations.jsonl").read_text())
    assert record["top1"] == records_of(workdir, "test")[-1]["top1"]

    classifier = flax_resnet.load(workdir)
    assert classifier.class_names == tuple("0123456789")
    images, labels, _ = open_source(Data(data_dir=data_dir), train=False).read(range(360))
    pixels = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    prediction = classifier.predict(np.stack([np.asarray(p) for p in pixels]), batch_size=50)
    assert prediction.probabilities.shape == (360, 10)
    np.testing.assert_allclose(prediction.probabilities.sum(1), 1, rtol=1e-5)
    assert (prediction.labels == labels).mean() == pytest.approx(record["top1"], abs=1e-9)
    pixels[3].save(tmp_path / "3.png")
    single = classifier.predict(tmp_path / "3.png")
    np.testing.assert_allclose(single.probabilities[0], prediction.probabilities[3], atol=1e-6)
    assert classifier.predict([]).labels.shape == (0,)

    assert (
        evaluate.main([*options, "--split=train[1200:]", "--checkpoint=5", "--batch_size=64"]) == 0
    )
    assert "(237 images), checkpoint 5" in capsys.readouterr().out
    for flag, choices, code in (
        ("--split=valid", ("train", "test"), 4),
        ("--checkpoint=7", ("10", "5", "best", "last"), 5),
        ("--batch_size=-1", (), 2),
    ):
        assert evaluate.main([*options, flag]) == code
        line = capsys.readouterr().err.splitlines()[-1]
        name, value = flag.removeprefix("--").split("=")
        for part in (name, value, *choices):
            assert part in line


def test_load_refuses_a_missing_run_and_a_damaged_checkpoint(tmp_path, copy):
    from flax_resnet.errors import CheckpointError

    with refused(tmp_path / "nothing", kind=CheckpointError):
        flax_resnet.load(tmp_path / "nothing")
    workdir, _ = copy
    shutil.rmtree(workdir / "checkpoints" / "10" / "state")
    with refused(workdir / "checkpoints" / "10" / "state", kind=CheckpointError):
        flax_resnet.load(workdir)
    assert flax_resnet.load(workdir, checkpoint=5).step == 5


@pytest.mark.parametrize("workdir", [None, ""])
def test_a_run_needs_a_folder(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("workdir", workdir, ConfigError):
        flax_resnet.train(freeze(default_config()), workdir)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_the_plan_and_writes_nothing(tiny, tmp_path, capsys):
    assert main.main([*tiny, f"--workdir={tmp_path / 'run'}", "--dry_run"]) == 0
    plan = capsys.readouterr().err
    for words in (
        "decoded once, kept on the device",
        "augment   nothing",
        "digits: 1,437 images",
        "10 of 240 images",
        "parameters",
        "float32",
        "peak 0.05, cosine to 0",
        "cpu",
    ):
        assert words in plan
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_feeds_and_steps_per_call_give_the_same_losses(tiny, tmp_path):
    options = [*tiny, "--config.train.log_every=1", "--config.optimizer.learning_rate=0.01"]
    losses = {}
    for feed, per_call in (("streaming", 1), ("resident", 1), ("resident", 2)):
        workdir = tmp_path / f"{feed}{per_call}"
        extra = [f"--config.train.feed={feed}", f"--config.train.steps_per_call={per_call}"]
        assert main.main([*options, *extra, f"--workdir={workdir}"]) == 0
        losses[feed, per_call] = [r["loss"] for r in records_of(workdir, "train")]
        # An epoch has 5 steps. With two steps per call, evaluations move to the end of a call.
        steps = [r["step"] for r in records_of(workdir, "test")]
        assert steps == ([5, 10] if per_call == 1 else [6, 10])
        rates = [r["images_per_second"] for r in records_of(workdir, "train")]
        assert len(set(rates)) == 10 // per_call  # the steps of a call have the same rate
    expected = losses["streaming", 1]
    assert len(expected) == 10
    for found in losses.values():
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_shorter_last_call_is_compiled_before_the_first(tiny, tmp_path, monkeypatch, capsys):
    def compiled(train_step, state, data, calls):
        raise ConfigError(f"steps of {[call.shape for call in calls]}")

    monkeypatch.setattr(programs, "compiled_ahead", compiled)
    command = [*tiny, f"--workdir={tmp_path / 'run'}", "--config.train.steps_per_call=4"]
    assert main.main(command) == 2
    assert "steps of [(4,), (2,)]" in capsys.readouterr().err
