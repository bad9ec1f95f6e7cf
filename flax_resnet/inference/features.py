"""The features of a split: the input of the head for every image, computed on all devices."""

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
from flax_resnet.errors import WeightsError
from flax_resnet.models.folding import fold_batch_norm
from flax_resnet.ops import dispatch
from flax_resnet.training import sharding
from flax_resnet.training.input.feeds import every_example
from flax_resnet.training.matmul_precision import matmul_precision

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
    """Compute the features of every image of a split, with the crop of evaluation.

    Args:
      model: the network; its head, if any, is not computed.
      variables: its params and batch_stats.
      config: the configuration; it determines the crop and normalisation of images.
      source: the split.
      batch_size: images per step.
      limit: largest number of images, a random subset; 0 for all.
      description: text of the progress bar, which is shown only on a terminal.

    Returns:
      The features, without images that cannot be decoded.

    Raises:
      DataError: too many images cannot be decoded, or some have no label (below 0, as in the test splits of
        competitions).
      WeightsError: features are not finite.
    """
    mesh = sharding.make_mesh()
    replicated = sharding.replicated(mesh)
    with matmul_precision(config):
        folded = jax.jit(lambda variables: fold_batch_norm(model, variables))(variables)

    def forward(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = evaluation_images(batch["image"], config.augment)
        with matmul_precision(config):
            features: Any = model.apply(variables, images, train=False, features=(NAME,))
        return {"vectors": features[NAME], "labels": batch["label"], "mask": batch["mask"]}

    # The features are replicated so that every process has all of them; they are small compared to the images.
    forward = jax.jit(
        forward,
        in_shardings=(replicated, None),
        out_shardings=replicated,
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
        # pairwise dispatches the next batch before this one is read.
        for result, _ in itertools.pairwise(itertools.chain(results, [None])):
            part = {name: np.asarray(x.addressable_data(0)) for name, x in result.items()}
            mask = part["mask"]
            rows = slice(filled, filled + int(mask.sum()))
            vectors[rows], labels[rows] = part["vectors"][mask], part["labels"][mask]
            filled = rows.stop
            bar.update(rows.stop - rows.start)
            if not np.isfinite(vectors[rows]).all():
                raise WeightsError(
                    f"some {description} are not finite; the weights may be corrupted or have diverged",
                    key="weights",
                )
    return Features(vectors[:filled], labels[:filled])
