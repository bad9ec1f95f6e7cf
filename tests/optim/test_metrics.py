"""Metrics against scikit-learn, and what is done with them: the best checkpoint, and stopping early."""

import csv
import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from conftest import records_of

import flax_resnet
from flax_resnet import main
from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.augment.augment_section import Augment
from flax_resnet.cli import evaluate
from flax_resnet.cli.plots import confusion
from flax_resnet.config import Config
from flax_resnet.optim import evaluation_metrics as metrics
from flax_resnet.optim.evaluation_metrics import CONFUSION, METRICS, MetricRow
from flax_resnet.training import sharding
from flax_resnet.training.step.eval_step import make_eval_step, total

CLASSES, IMAGES = 8, 500


@pytest.fixture(scope="module")
def scores():
    """Logits somewhat right; the class 6 does not occur, and 7 is never predicted."""
    draw = np.random.default_rng(0)
    labels = draw.choice([0, 1, 2, 3, 4, 5, 7], IMAGES).astype(np.int32)
    logits = draw.normal(size=(IMAGES, CLASSES)).astype(np.float32) * 2
    logits[np.arange(IMAGES), labels] += 1
    logits[:, 7] -= 20
    return logits, labels


@pytest.fixture(scope="module")
def measured(scores):
    """The metrics, from batches of 64 whose last is padded with what must not count."""
    logits, labels = scores
    sums = None
    for start in range(0, IMAGES, 64):
        rows = np.arange(start, start + 64)
        inside = np.minimum(rows, IMAGES - 1)
        found = metrics.batch_sums(
            jnp.asarray(logits[inside]),
            jnp.asarray(labels[inside]),
            jnp.asarray(rows < IMAGES),
            extra=CONFUSION,
        )
        sums = found if sums is None else {k: sums[k] + found[k] for k in sums}
    return sums


def test_metrics_are_scikit_learns(scores, measured):
    logits, labels = scores
    guesses, every = logits.argmax(axis=1), np.arange(CLASSES)
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    recalls = sklearn.metrics.recall_score(
        labels, guesses, labels=np.unique(labels), average="macro", zero_division=0
    )
    expected = {
        "loss": sklearn.metrics.log_loss(labels, probabilities, labels=every),
        "top1": sklearn.metrics.accuracy_score(labels, guesses),
        "top5": sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=every),
        "class_accuracy": recalls,
        "macro_f1": sklearn.metrics.f1_score(labels, guesses, average="macro", zero_division=0),
        "ece": calibration_error(probabilities, labels),
    }
    values = metrics.means(measured)
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert list(values)[: len(expected)] == list(expected)  # also the order of printing
    pairs = sklearn.metrics.confusion_matrix(labels, guesses, labels=every)
    np.testing.assert_array_equal(measured["confusion"], pairs)


def calibration_error(probabilities, labels, bins=15):
    """As Guo et al. 2017 write it: sum over bins of |B| / n |acc(B) - conf(B)|, bins (a, b]."""
    confidence, guesses = probabilities.max(axis=1), probabilities.argmax(axis=1)
    error = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            gap = abs((guesses == labels)[inside].mean() - confidence[inside].mean())
            error += inside.mean() * gap
    return error


@pytest.mark.parametrize("name", METRICS)
def test_batches_and_padding_do_not_matter(name, scores, measured):
    logits, labels = map(jnp.asarray, scores)
    whole = metrics.batch_sums(logits, labels, jnp.ones(IMAGES, bool))
    value = metrics.means(measured)[name]
    assert value == pytest.approx(metrics.means(whole)[name], rel=1e-6)
    assert value > 0


def test_no_example_is_no_error():
    nothing = metrics.batch_sums(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), jnp.zeros(4, bool))
    assert metrics.record({"": nothing}) == {**dict.fromkeys(METRICS, 0.0), "count": 0}


def test_top5_of_fewer_classes_is_always_right():
    logits, labels = jnp.zeros((4, 3)), jnp.array([0, 1, 2, 2])
    assert metrics.batch_sums(logits, labels, labels >= 0)["top5"] == 4


def smallest_logit(outputs):
    return jnp.where(outputs.mask, outputs.logits.min(axis=-1), 0).sum()


SMALLEST = MetricRow(
    name="smallest",
    help="the mean smallest logit",
    label="smallest logit",
    format=".1f",
    larger_is_better=False,
    sums={"smallest": smallest_logit},
    value=lambda totals: metrics.per_example(totals["smallest"], totals),
)


def test_a_new_row_is_computed_printed_and_judged(monkeypatch, scores):
    monkeypatch.setattr(metrics, "METRICS", {**METRICS, "smallest": SMALLEST})
    logits, labels = map(jnp.asarray, scores)
    sums = metrics.batch_sums(logits, labels, jnp.ones(IMAGES, bool))
    record = metrics.record({"": sums, "ema_": sums})
    expected = float(logits.min(axis=1).mean())
    assert record["smallest"] == record["ema_smallest"] == pytest.approx(expected, rel=1e-5)
    assert metrics.shown(record, "ema_").endswith(f"smallest logit {expected:.1f}")
    assert metrics.score(record, "smallest") == pytest.approx(-expected, rel=1e-5)


def test_two_sums_of_one_name_are_noticed(monkeypatch, scores):
    twice = dataclasses.replace(SMALLEST, sums={"hits": smallest_logit})
    monkeypatch.setattr(metrics, "METRICS", {**METRICS, "smallest": twice})
    logits, labels = map(jnp.asarray, scores)
    with pytest.raises(ValueError, match="hits"):
        metrics.batch_sums(logits, labels, jnp.ones(IMAGES, bool))


def test_judged_by_the_averaged_weights_and_the_right_way_round():
    raw, averaged = {"top1": 0.5, "loss": 2.0}, {"ema_top1": 0.6, "ema_loss": 1.0}
    assert metrics.monitored(raw) == 0.5
    assert metrics.monitored(raw | averaged) == 0.6
    assert metrics.score(raw, "top1") == 0.5
    assert metrics.score(raw | averaged, "loss") == -1.0
    # A record from before the metric existed is the worst.
    assert metrics.score(raw, "ece") == -np.inf


@pytest.mark.parametrize(
    ("scores", "evaluations", "stalled"),
    [
        ([], 1, False),
        ([0.5, 0.4, 0.4], 0, False),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.5], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
    ],
)
def test_a_run_stalls_after_evaluations_without_a_better_one(scores, evaluations, stalled):
    assert metrics.has_stalled(scores, evaluations) is stalled


def test_the_weakest_classes_are_named(measured):
    names = [f"c{number}" for number in range(CLASSES)]
    told = confusion.weakest(np.asarray(measured["confusion"]), names, most=1)
    assert told.startswith("c7 0.0% of")  # never predicted; c6 does not occur
    assert confusion.weakest(np.diag([3, 0, 2]), names[:3]) == ""


class Brightness:
    """Logits from the means of an image's left and right half, which a mirror exchanges."""

    num_classes = 2

    def apply(self, variables, images, train):
        half = images.shape[2] // 2
        left, right = images[:, :, :half], images[:, :, half:]
        return jnp.stack([left.mean((1, 2, 3)), 2 * right.mean((1, 2, 3))], axis=-1)


def test_flipped_evaluation_takes_the_mean_of_both_views():
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    batch = {"image": images, "label": np.zeros(8, np.int32), "mask": np.ones(8, bool)}
    variables = {"": {"params": {"w": jnp.zeros(1)}, "batch_stats": {}}}
    mesh, config = sharding.make_mesh(), Config(augment=Augment(eval_flip=True))
    found = total(make_eval_step(config, Brightness(), mesh), variables, {}, [batch])[""]

    pixels = evaluation_images(jnp.asarray(images), config.augment)
    whole = pixels.mean((1, 2, 3))
    expected = metrics.batch_sums(
        jnp.stack([whole, 2 * whole], axis=-1), jnp.zeros(8, jnp.int32), jnp.ones(8, bool)
    )
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    config = dataclasses.replace(config, augment=Augment())
    plain = total(make_eval_step(config, Brightness(), mesh), variables, {}, [batch])[""]
    assert float(plain["loss"]) != pytest.approx(float(expected["loss"]), rel=1e-3)


def test_views_of_an_evaluation():
    images = np.arange(2 * 4 * 5, dtype=np.float32).reshape(2, 4, 5, 1)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shares, views = zip(*evaluation_views(images, Augment(eval_shift=1)), strict=True)
    assert shares == (0.5, 0.25, 0.25)
    for view, expected in zip(views, (images, padded[:, :4, :5], padded[:, 2:, 2:]), strict=True):
        np.testing.assert_array_equal(view, expected)
    mirrored = evaluation_views(images, Augment(eval_shift=1, eval_flip=True))
    assert [share for share, _ in mirrored] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    for (_, view), (_, mirror) in zip(mirrored[::2], mirrored[1::2], strict=True):
        np.testing.assert_array_equal(mirror, view[:, :, ::-1])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data_dir):
    """A run that learns nothing, is judged by its loss, and evaluated at twice the size with flips."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    command = [
        "--config=configs/resnet18.py",
        "--noreport",
        f"--workdir={workdir}",
        f"--data_dir={data_dir}",
        "--config.model.widths=(8,8,8,8)",
        "--config.model.depths=(1,1,1,1)",
        "--config.data.limit=64",
        "--config.data.eval_size=16",
        "--config.augment.eval_flip=True",
        "--config.train.epochs=20",
        "--config.train.batch_size=32",
        "--config.optimizer.learning_rate=10.0",
        "--config.schedule.warmup=0.0",
        "--config.train.monitor=loss",
        "--config.train.early_stopping=2",
    ]
    assert main.main(command) == 0
    return workdir, command


def test_a_run_that_stalls_stops_and_is_finished(stopped, capfd):
    workdir, command = stopped
    losses = [r["loss"] for r in records_of(workdir, "test")]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 20
    assert "stopped early" in (workdir / "summary.txt").read_text()
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert last == 2 * len(losses)
    capfd.readouterr()
    assert main.main(command) == 0
    assert "finished" in capfd.readouterr().err
    assert len(records_of(workdir, "test")) == len(losses)


def test_a_stopped_run_goes_on_by_force(stopped, tmp_path, capfd):
    """The evaluations before do not count: it stops again after its patience, or a better one."""
    workdir, command = stopped
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    before = len(records_of(again, "test"))
    forced = [c if "workdir" not in c else f"--workdir={again}" for c in command]
    assert main.main([*forced, "--resume=force", "--config.optimizer.learning_rate=1e-9"]) == 0
    assert len(records_of(again, "test")) > before
    train = records_of(again, "train")
    assert train[-1]["step"] == records_of(again, "test")[-1]["step"]


def test_the_best_checkpoint_is_the_one_of_the_least_loss(stopped):
    workdir, _ = stopped
    records = records_of(workdir, "test")
    best = min(records, key=lambda record: record["loss"])
    assert flax_resnet.load(workdir, "best").step == best["step"]
    assert (workdir / "checkpoints" / str(best["step"])).is_dir()


def test_evaluation_writes_the_matrix_and_predicts_as_it_evaluates(stopped, tmp_path, capsys):
    workdir, _ = stopped
    for name in ("confusion.csv", "confusion.png"):
        command = [f"--workdir={workdir}", f"--confusion={tmp_path / name}"]
        assert evaluate.main(command) == 0
    assert "weakest classes" in capsys.readouterr().out
    rows = list(csv.reader((tmp_path / "confusion.csv").open()))
    counts = np.array([row[1:] for row in rows[1:]], int)
    assert rows[0][1:] == [row[0] for row in rows[1:]] == [str(n) for n in range(10)]
    record = json.loads((workdir / "evaluations.jsonl").read_text().splitlines()[-1])
    assert counts.sum() == record["count"] == 360
    assert np.trace(counts) / 360 == pytest.approx(record["top1"])
    assert (tmp_path / "confusion.png").stat().st_size > 10_000

    last = records_of(workdir, "test")[-1]  # of training, at the same size
    assert record["loss"] == pytest.approx(last["loss"], rel=1e-4)
    assert evaluate.main([f"--workdir={workdir}", "--image_size=8"]) == 0
    small = json.loads((workdir / "evaluations.jsonl").read_text().splitlines()[-1])
    assert small["loss"] != pytest.approx(last["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "flag", ["--confusion=matrix.txt", "--confusion=.", "--config.train.monitor=f1"]
)
def test_wrong_input_is_one_line(stopped, flag, capsys):
    workdir, command = stopped
    run = (
        main.main([*command, flag])
        if "config" in flag
        else evaluate.main([f"--workdir={workdir}", flag])
    )
    error = capsys.readouterr().err.strip().splitlines()
    assert run == 2
    assert len(error) == 1
    assert flag.split("=")[1] in error[0]
