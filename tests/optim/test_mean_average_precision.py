"""Mean average precision against scikit-learn, and a run that is judged by it."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import records_of
from PIL import Image
from sklearn.metrics import average_precision_score

import flax_resnet
from flax_resnet import main
from flax_resnet.cli import report
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.optim import evaluation_metrics as metrics
from flax_resnet.optim.metrics import mean_average_precision as ours

NAME = "mean_average_precision"


def network_like(classes, examples, noise, scale):
    """Logits of a classifier by distance from prototypes; the last class does not occur, if there are others."""
    draw = np.random.default_rng(classes)
    prototypes = draw.normal(size=(classes, 32))
    labels = draw.integers(0, max(2, classes - 1), examples).astype(np.int32)
    features = prototypes[labels] + noise * draw.normal(size=(examples, 32))
    logits = features @ prototypes.T - (prototypes**2).sum(axis=1) / 2
    return (scale * logits / noise**2).astype(np.float32), labels


def sums_of(logits, labels, batch_size=512):
    """The sums over batches whose last is padded with what must not count."""
    step, sums = jax.jit(metrics.batch_sums), None
    for start in range(0, len(labels), batch_size):
        rows = np.arange(start, start + batch_size)
        inside = np.minimum(rows, len(labels) - 1)
        found = step(logits[inside], labels[inside], rows < len(labels))
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
    return jax.device_get(sums)


def macro(labels, scores):
    """scikit-learn's average precision, as the mean over the classes that occur."""
    occur = np.unique(labels)
    return average_precision_score(
        labels[:, None] == occur, scores[:, occur].astype(np.float64), average="macro"
    )


def probabilities(logits):
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


CASES = {
    "two classes": (2, 1000, 4.0, 1.0),
    "well trained": (10, 2000, 1.5, 1.0),
    "badly trained": (10, 2000, 8.0, 1.0),
    "overconfident": (10, 2000, 4.0, 10.0),
    "untrained": (10, 2000, 20.0, 0.3),
    "many classes": (300, 3000, 2.0, 1.0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_scikit_learns(case):
    """Exactly for the bins as scores, and nearly for the probabilities."""
    logits, labels = network_like(*case)
    value = metrics.means(sums_of(logits, labels))[NAME]
    binned = macro(labels, np.asarray(ours.score_bins(jnp.asarray(logits))))
    assert value == pytest.approx(binned, rel=1e-12)
    assert value == pytest.approx(macro(labels, probabilities(logits)), abs=1.5e-3)


def test_no_score_is_too_large_for_the_bins():
    """Probabilities that are 0 or 1 in float32 are told apart; beyond the range, they share the outer bins."""
    margins = np.array([0, 20, 40, 60, 100, 1e4, 3e38], np.float32)
    bins = np.asarray(ours.score_bins(jnp.stack([margins, 0 * margins], axis=1)))
    assert (np.diff(bins[:4, 0]) > 0).all()
    assert (np.diff(bins[:4, 1]) < 0).all()
    assert len(set(bins[4:, 0])) == len(set(bins[4:, 1])) == 1
    assert bins.min() == 0
    assert bins.max() == ours.MOST_BINS - 1


def test_equal_logits_have_the_precision_of_chance():
    labels = np.arange(100, dtype=np.int32) % 4
    assert metrics.means(sums_of(np.zeros((100, 4), np.float32), labels))[NAME] == 0.25


def test_counts_are_of_bounded_size():
    for classes in (1, 2, 1000, 30_000):
        shapes = (
            jax.ShapeDtypeStruct(*s)
            for s in (((4, classes), "float32"), ((4,), "int32"), ((4,), "bool"))
        )
        scores = jax.eval_shape(metrics.batch_sums, *shapes)["scores"]
        assert scores.shape[:2] == (2, classes)
        assert 2**7 <= scores.shape[2] <= 2**12
        assert scores.size <= 2**23


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """A short run that is judged by it."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    options = ["--config.train.epochs=3", f"--config.train.monitor={NAME}"]
    assert main.main([*tiny, *options, f"--workdir={workdir}"]) == 0
    return workdir


def test_it_selects_the_best_checkpoint_of_a_run(run):
    records = records_of(run, "test")
    values = [record[NAME] for record in records]
    assert len(set(values)) == 3
    best = max(records, key=lambda record: record[NAME])
    assert flax_resnet.load(run, "best").step == best["step"]
    assert f"{best[NAME]:.2%}" in (run / "summary.txt").read_text()
    assert report.main([f"--workdir={run}"]) == 0


def test_a_run_computes_it_as_scikit_learn(run, data_dir):
    images, labels, _ = open_source(Data(data_dir=data_dir), train=False).read(range(360))
    pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    prediction = flax_resnet.load(run, "last").predict(pictures)
    expected = macro(labels, prediction.probabilities)
    assert records_of(run, "test")[-1][NAME] == pytest.approx(expected, abs=1.5e-3)
