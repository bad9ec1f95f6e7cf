"""Losses against their formulas in NumPy."""

import numpy as np
import pytest
from conftest import refused
from sklearn.utils.class_weight import compute_class_weight

from flax_resnet.config import freeze
from flax_resnet.optim.losses import Loss, class_weights, loss_sum, loss_weight

N, K = 6, 4
DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(size=(N, K)).astype(np.float32)
SOFT = DRAW.dirichlet(np.ones(K), N).astype(np.float32)
HARD = np.eye(K, dtype=np.float32)[[0, 3, 2, 2, 1, 0]]
WEIGHTS = np.array([1.0, 0.5, 3.0, 2.0])
LOG_P = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
P = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))


def batch_loss(logits, targets, section):
    weights = class_weights(section, np.zeros(4))
    return loss_sum(logits, targets, section, weights) / loss_weight(targets, section, weights)


def smoothed(targets, smoothing):
    return (1 - smoothing) * targets + smoothing / K


def binary(targets):
    return -(targets * np.log(P) + (1 - targets) * np.log(1 - P))


@pytest.mark.parametrize("targets", [SOFT, HARD], ids=["soft", "hard"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy(targets, smoothing):
    expected = -(smoothed(targets, smoothing) * LOG_P).sum(1).mean()
    found = batch_loss(LOGITS, targets, Loss(label_smoothing=smoothing))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_weigh_examples_as_torchs_cross_entropy_does(smoothing):
    losses = -(WEIGHTS * smoothed(HARD, smoothing) * LOG_P).sum(1)
    expected = losses.sum() / WEIGHTS[HARD.argmax(1)].sum()
    section = Loss(
        label_smoothing=smoothing, class_weights="given", weight_per_class=tuple(WEIGHTS)
    )
    np.testing.assert_allclose(batch_loss(LOGITS, HARD, section), expected, rtol=1e-5)


def test_a_batch_without_weight_has_no_loss():
    first = np.eye(K, dtype=np.float32)[[0] * N]
    assert (
        float(
            batch_loss(
                LOGITS, first, Loss(class_weights="given", weight_per_class=(0.0, 1.0, 1.0, 1.0))
            )
        )
        == 0
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy(smoothing):
    terms = binary(smoothed(SOFT, smoothing))
    section = Loss(name="sigmoid", label_smoothing=smoothing)
    np.testing.assert_allclose(batch_loss(LOGITS, SOFT, section), terms.mean(), rtol=1e-5)
    summed = Loss(name="sigmoid", label_smoothing=smoothing, sum_classes=True)
    np.testing.assert_allclose(batch_loss(LOGITS, SOFT, summed), terms.sum(1).mean(), rtol=1e-5)
    weighted = Loss(
        name="sigmoid",
        label_smoothing=smoothing,
        class_weights="given",
        weight_per_class=tuple(WEIGHTS),
    )
    expected = (WEIGHTS * terms).mean()
    np.testing.assert_allclose(batch_loss(LOGITS, SOFT, weighted), expected, rtol=1e-5)


def test_a_threshold_makes_soft_labels_hard():
    section = Loss(name="sigmoid", threshold=0.2)
    expected = binary((SOFT > 0.2).astype(float)).mean()
    np.testing.assert_allclose(batch_loss(LOGITS, SOFT, section), expected, rtol=1e-5)


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 3], [5, 50, 1])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    found = class_weights(Loss(class_weights="balanced"), np.bincount(labels))
    np.testing.assert_allclose(found, [*expected[:2], 1.0, expected[2]])


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_weights_by_effective_number(beta):
    """Cui et al. 2019, equation 2: the number is the sum of beta^i for i below n."""
    counts = np.array([5, 50, 0, 1])
    numbers = np.array([sum(beta**i for i in range(n)) for n in (5, 50, 1)])
    expected = 1 / numbers / (1 / numbers).mean()
    section = Loss(class_weights="effective_number", effective_beta=beta)
    np.testing.assert_allclose(
        class_weights(section, counts), [*expected[:2], 1.0, expected[2]], rtol=1e-9
    )


def test_weights_from_counts_clash_with_balanced_draws():
    with refused("loss.class_weights", "balanced"):
        freeze({"loss": {"class_weights": "balanced"}, "data": {"class_balanced": True}})


@pytest.mark.parametrize("name", ["balanced", "effective_number"])
def test_without_counts_the_classes_have_equal_weights(name):
    """As in a plot of the learning rate, which opens no dataset. A warning would be an error here."""
    assert class_weights(Loss(class_weights=name), np.zeros(4)) == ()
