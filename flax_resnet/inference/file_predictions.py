"""The predictions for many image files: decoded as in evaluation, on all devices, in the order of the files."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.data.images import orientation, prepare_image
from flax_resnet.data.records import Records
from flax_resnet.errors import ConfigError, DataError, one_line
from flax_resnet.inference.classifier import Classifier
from flax_resnet.ops import dispatch
from flax_resnet.training import sharding
from flax_resnet.training.input.host_batches import HostBatches
from flax_resnet.training.matmul_precision import matmul_precision

CHUNK = 8192  # files whose names are in memory at once


class FilePrediction(NamedTuple):
    """The prediction for one file.

    Attributes:
      file: the path, as it was given.
      problem: why the file cannot be read; "" for a readable one.
      probabilities: float32 [K], which sum to 1. NaN for an unreadable file.
      features: {name: array}. NaN for an unreadable file.
    """

    file: str
    problem: str
    probabilities: np.ndarray
    features: dict[str, np.ndarray]


class _Files:
    """A `Source` of files without labels. One more example, a small blank image, can always be read."""

    class_names: tuple[str, ...] = ("",)

    def __init__(self, files: Sequence[str], *, exif: bool):
        self._files, self.orientations = files, exif
        blank = io.BytesIO()
        Image.new("RGB", (8, 8)).save(blank, "PNG")
        self._blank = blank.getvalue()

    def __len__(self) -> int:
        return len(self._files) + 1

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the files at these indices; an empty one for a file that cannot be opened."""
        images = [self._contents(int(index)) for index in indices]
        turns = np.array([orientation(image) for image in images], np.int32)
        labels = np.zeros(len(images), np.int32)
        return Records(images, labels, turns if self.orientations else None)

    def _contents(self, index: int) -> bytes:
        if index == len(self._files):
            return self._blank
        try:
            with open(self._files[index], "rb") as file:
                return file.read()
        except (OSError, ValueError):  # ValueError: a path with a zero byte
            return b""

    def labels(self) -> np.ndarray:
        """Return zeros, int32 [n]."""
        return np.zeros(len(self), np.int32)

    def describe(self, index: int) -> str:
        """Return the path of a file."""
        return self._files[index]


def predict_files(
    classifier: Classifier,
    files: Iterable[str],
    *,
    batch_size: int = 64,
    features: Sequence[str] = (),
) -> Iterator[FilePrediction]:
    """Predict the classes of image files, with the pixels and the views of the run's evaluation.

    The memory does not depend on the number of files. Pixels, views and network are those of `evaluate`.

    Args:
      classifier: the network.
      files: the paths.
      batch_size: images per step; rounded up to a multiple of the number of devices.
      features: names of features to compute, such as "pre_logits".

    Returns:
      A prediction for each file, in order.

    Raises:
      ConfigError: the network has no such feature.
    """
    known = classifier.model.feature_info()
    if unknown := [name for name in features if name not in known]:
        raise ConfigError("unknown feature", key="features", value=unknown[0], allowed=known)
    forward, mesh = compiled_forward(classifier, tuple(features)), sharding.make_mesh()
    batch_size = sharding.round_up(mesh, batch_size)

    def of_chunk(chunk: list[str]) -> Iterator[FilePrediction]:
        few = sharding.round_up(mesh, 1 << (len(chunk) - 1).bit_length())
        return _predicted(classifier, forward, chunk, min(batch_size, few))

    return itertools.chain.from_iterable(map(of_chunk, _chunks(files)))


def _chunks(files: Iterable[str]) -> Iterator[list[str]]:
    files = iter(files)
    while chunk := list(itertools.islice(files, CHUNK)):
        yield chunk


def compiled_forward(classifier: Classifier, features: tuple[str, ...]) -> Any:
    """Return the jitted function (variables, pixels) -> (probabilities, features)."""
    augment, model = classifier.config.augment, classifier.model
    mesh = sharding.make_mesh()

    def forward(variables: Any, pixels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        images = evaluation_images(pixels, augment)
        views = evaluation_views(images, augment)
        with matmul_precision(classifier.config):
            logits = sum(share * model.apply(variables, v, train=False) for share, v in views)
            found = {}
            if features:
                found = dict(model.apply(variables, images, train=False, features=features))
        return jax.nn.softmax(logits, axis=-1), found

    everywhere = sharding.replicated(mesh)
    return jax.jit(
        forward,
        in_shardings=(everywhere, sharding.split(mesh)),
        out_shardings=everywhere,
        compiler_options=dispatch.compiler_options(),
    )


def _predicted(
    classifier: Classifier, forward: Any, files: list[str], batch_size: int
) -> Iterator[FilePrediction]:
    """Yield the predictions of a chunk of files."""
    data, mesh = classifier.config.evaluating().data, sharding.make_mesh()
    host = HostBatches(_Files(files, exif=data.exif), data, lists_bad=True)
    among, rows = np.arange(len(files) + 1), slice(0, batch_size)
    batches = host.evaluation(among, batch_size=batch_size, rows=rows)
    # Only the blank image may be left for the last batch.
    wanted = itertools.islice(batches, -(-len(files) // batch_size))

    def results() -> Iterator[Any]:
        for batch in wanted:
            pixels = sharding.place({"image": batch["image"]}, mesh)["image"]
            yield batch["mask"], forward(classifier.variables, pixels)

    remaining = iter(files)
    # pairwise dispatches the next batch before this one is read.
    for (mask, outputs), _ in itertools.pairwise(itertools.chain(results(), [None])):
        probabilities, features = jax.tree.map(lambda x: np.array(x.addressable_data(0)), outputs)
        for row, file in enumerate(itertools.islice(remaining, batch_size)):
            own = {name: array[row] for name, array in features.items()}
            problem = ""
            if not mask[row]:
                problem = _problem(classifier, file)
                probabilities[row] = np.nan
                own = {name: np.full_like(array, np.nan) for name, array in own.items()}
            yield FilePrediction(file, problem, probabilities[row], own)


def _problem(classifier: Classifier, file: str) -> str:
    """Return why a file cannot be decoded."""
    try:
        prepare_image(file, classifier.config.evaluating().data, name=file)
    except DataError as error:
        return error.problem
    except (OSError, ValueError) as error:
        return one_line(error)
    return "cannot be decoded"
