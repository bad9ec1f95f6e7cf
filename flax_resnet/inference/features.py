"""The features of a whole split: what the head sees of every image, computed on all devices."""

import itertools
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from flax_resnet.augment import evaluation_images
from flax_resnet.config import Config
from flax_resnet.data.records import Source
from flax_resnet.errors import DataError, WeightsError
from flax_resnet.models.folding import fold_batch_norm
from flax_resnet.ops import dispatch
from flax_resnet.training import sharding
from flax_resnet.training.input.feeds import every_example

NAME = "pre_logits"


class Features(NamedTuple):
    """The features of n images, in the order of the split.

    Attributes:
      vectors: float32 [n, C].
      labels: int32 [n].
    """

    vectors: np.ndarray
    labels: np.ndarray


def compute_features(
    model: nn.Module,
    variables: Any,
    config: Config,
    source: Source,
    *,
    batch_size: int,
    limit: int = 0,
    description: str = "features",
) -> Features:
    """Shows a network every image of a split, cut as for evaluation, once.

    Args:
      model: the network; its head, if it has one, is not computed.
      variables: its params and batch_stats.
      config: the configuration: how images are cut and normalised.
      source: the split.
      batch_size: images per step.
      limit: most images, a random subset; 0 for all.
      description: what the progress bar says; it is drawn on a terminal only.

    Returns:
      The features; images that cannot be decoded are left out.

    Raises:
      DataError: too many images cannot be decoded, or some have no label (below 0, as in the test splits of
        competitions).
      WeightsError: features are not finite numbers.
    """
    mesh = sharding.make_mesh()
    whole = sharding.replicated(mesh)
    folded = jax.jit(lambda variables: fold_batch_norm(model, variables))(variables)

    def forward(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = evaluation_images(batch["image"], config.augment)
        found: Any = model.apply(variables, images, train=False, features=(NAME,))
        return {"vectors": found[NAME], "labels": batch["label"], "mask": batch["mask"]}

    # Replicated, so that every process has all of them: they are few bytes beside the images.
    forward = jax.jit(
        forward,
        in_shardings=(whole, None),
        out_shardings=whole,
        compiler_options=dispatch.compiler_options(),
    )
    count = min(limit or len(source), len(source))
    vectors = np.empty((count, model.feature_info()[NAME][1]), np.float32)
    labels = np.empty(count, np.int32)
    filled = 0
    batches = every_example(source, config, mesh, batch_size=batch_size, limit=limit)
    results = (forward(folded, batch) for batch in batches)
    shown = sys.stderr.isatty()
    with tqdm(total=count, unit="img", desc=description, leave=False, disable=not shown) as bar:
        # In pairs, so that the device is at work on the next batch while this one is read.
        for result, _ in itertools.pairwise(itertools.chain(results, [None])):
            part = {name: np.asarray(x.addressable_data(0)) for name, x in result.items()}
            kept = part["mask"]
            rows = slice(filled, filled + int(kept.sum()))
            vectors[rows], labels[rows] = part["vectors"][kept], part["labels"][kept]
            filled = rows.stop
            bar.update(rows.stop - rows.start)
            if not np.isfinite(vectors[rows]).all():
                raise WeightsError(
                    f"{description}: some are not finite numbers, as weights gone wrong make them"
                )
    if unlabelled := int((labels[:filled] < 0).sum()):
        raise DataError(f"{description}: {unlabelled} of {filled} images have no label")
    return Features(vectors[:filled], labels[:filled])
