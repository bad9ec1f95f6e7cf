"""Confidence intervals of accuracies, and the exact paired test of two networks."""

import numpy as np


def proportion_interval(
    successes: int, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Wilson's interval of a proportion, such as a top-1 accuracy.

    Args:
      successes: number of correct predictions.
      count: number of independent images; without images the interval is (0, 1).
      confidence: probability with which such intervals hold the true proportion.

    Returns:
      (low, high), in [0, 1].

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    if not count:
        return 0.0, 1.0
    found = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Compare two networks on the same images by McNemar's exact test.

    Images that both get right, or both wrong, say nothing about the difference. If the networks were equally good,
    each of the others would be right by the first or by the second with probability 1/2.

    Args:
      first: bool [n], whether the first network is right about each image.
      second: bool [n], the same of the second network.

    Returns:
      (images that only the first gets right, images that only the second gets right, two-sided p-value).

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages"; Dietterich 1998, "Approximate statistical tests for comparing supervised classification learning
    algorithms", section 3.1.
    """
    from scipy.stats import binomtest

    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return only_first, only_second, p_value
