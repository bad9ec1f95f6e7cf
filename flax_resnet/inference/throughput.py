"""The speed of a network's prediction on this machine."""

import statistics
import time

import jax
import numpy as np

from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.file_predictions import compiled_forward
from flax_resnet.training import sharding

# Calls that are timed: at least CALLS, then more until SECONDS have passed or there are MOST_CALLS.
CALLS, MOST_CALLS, SECONDS = 3, 50, 1.0


def images_per_second(classifier: Classifier, batch_size: int) -> float:
    """Return the images per second of the compiled prediction, on all devices.

    It is the size of a batch / the median time of a call after the first one. The batch, random pixels at the size
    of evaluation, is in the memory of the devices: reading and decoding are not part of it.

    Args:
      classifier: the network.
      batch_size: images per call; rounded up to a multiple of the number of devices.
    """
    mesh = sharding.make_mesh()
    batch_size = sharding.round_up(mesh, batch_size)
    side = classifier.config.evaluating().data.image_size
    rows = sharding.local_rows(batch_size)
    shape = (rows.stop - rows.start, side, side, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels = sharding.place({"image": noise}, mesh)["image"]
    forward = compiled_forward(classifier, ())
    jax.block_until_ready(forward(classifier.variables, pixels))
    times: list[float] = []
    while len(times) < CALLS or (sum(times) < SECONDS and len(times) < MOST_CALLS):
        start = time.perf_counter()
        jax.block_until_ready(forward(classifier.variables, pixels))
        times.append(time.perf_counter() - start)
    return batch_size / statistics.median(times)
