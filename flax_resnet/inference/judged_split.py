"""The predictions of a network for every example of a split, with features, for reports."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.data.images import prepare_image, upright
from flax_resnet.data.records import Records, Source
from flax_resnet.errors import DataError, WeightsError
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.evaluation import all_class_names, with_weights_labels
from flax_resnet.inference.features import NAME
from flax_resnet.ops import dispatch
from flax_resnet.training import sharding
from flax_resnet.training.input.host_batches import HostBatches
from flax_resnet.training.matmul_precision import matmul_precision

# Features are kept for as many evenly spaced examples as this memory holds: 65,536 of 2,048 channels.
FEATURE_BYTES = 1 << 28


class JudgedSplit(NamedTuple):
    """The predictions for the n examples of a split that have a label and can be read.

    Attributes:
      class_names: a name per logit.
      indices: int32 [n], the index of each example in the source, ascending.
      labels: int32 [n].
      predictions: int32 [n], the most probable class, as in evaluation.
      confidences: float32 [n], the probability of the prediction.
      label_probabilities: float32 [n], the probability of the label.
      kept: int32 [m], the rows whose features are kept, ascending.
      features: float16 [m, C], the input of the head.
      unreadable: ascending indices of the examples that cannot be read.
      unlabelled: ascending indices of the examples without a label.
    """

    class_names: tuple[str, ...]
    indices: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    label_probabilities: np.ndarray
    kept: np.ndarray
    features: np.ndarray
    unreadable: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()

    @property
    def is_right(self) -> np.ndarray:
        """Whether each prediction is the label: bool [n]."""
        return self.predictions == self.labels


class _AnyLabel:
    """A source whose examples without a label get the label 0 and are listed in `unlabelled`."""

    def __init__(self, source: Source) -> None:
        self.class_names, self.orientations = source.class_names, source.orientations
        self.unlabelled: set[int] = set()
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        records = self._source.read(indices)
        missing = records.labels < 0
        self.unlabelled |= set(np.asarray(indices)[missing].tolist())
        return records._replace(labels=np.where(missing, 0, records.labels).astype(np.int32))

    def labels(self) -> np.ndarray:
        return np.maximum(self._source.labels(), 0)

    def describe(self, index: int) -> str:
        return self._source.describe(index)


def judge_split(
    classifier: Classifier, source: Source, *, batch_size: int, where: str
) -> JudgedSplit:
    """Predict the class of every example, with the pixels, views and network of the run's evaluation.

    Args:
      classifier: the network.
      source: the split; its classes are matched by name with those of the network.
      batch_size: images per step; rounded up to a multiple of the number of devices.
      where: the name of the split, for the message of an error.

    Returns:
      The predictions. Examples that cannot be read or have no label are listed, not counted.

    Raises:
      DataError: the network lacks a class of the split, a label is no class, or no example can be read.
      WeightsError: a probability is not finite.
    """
    names = all_class_names(classifier.class_names, classifier.model.num_classes)
    lenient = _AnyLabel(source)
    known = with_weights_labels(lenient, classifier.class_names, where)
    mesh = sharding.make_mesh()
    size = sharding.round_up(mesh, batch_size)
    data = classifier.config.evaluating().data
    host = HostBatches(known, data, lists_bad=True)
    batches = host.evaluation(np.arange(len(known)), batch_size=size, rows=slice(0, size))
    forward = _compiled(classifier)
    channels = classifier.model.feature_info()[NAME][1]
    spacing = -(-len(known) * channels * 2 // FEATURE_BYTES)

    def results() -> Iterator[Any]:
        for batch in batches:
            placed = sharding.place({k: batch[k] for k in ("image", "label")}, mesh)
            found = forward(classifier.variables, placed["image"], placed["label"])
            yield batch["index"], batch["label"], batch["mask"], found

    parts: list[tuple[np.ndarray, ...]] = []
    features: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    done = 0
    # pairwise dispatches the next batch before this one is read.
    for (index, label, mask, found), _ in itertools.pairwise(itertools.chain(results(), [None])):
        counted = mask & ~np.isin(index, list(lenient.unlabelled))
        predicted, confidence, probability, vectors = (
            np.asarray(x.addressable_data(0))[counted] for x in found
        )
        parts.append((index[counted], label[counted], predicted, confidence, probability))
        rows = np.flatnonzero((done + np.arange(len(predicted))) % spacing == 0)
        kept.append(done + rows)
        features.append(vectors[rows])
        done += len(predicted)
    if not all(np.isfinite(part[3]).all() for part in parts):
        raise WeightsError(
            "give probabilities that are not finite: they may have diverged", key="weights"
        )
    indices, labels, predictions, confidences, own = map(np.concatenate, zip(*parts, strict=True))
    return JudgedSplit(
        names,
        indices.astype(np.int32),
        labels.astype(np.int32),
        predictions.astype(np.int32),
        confidences,
        own,
        np.concatenate(kept).astype(np.int32),
        np.concatenate(features),
        tuple(sorted(host.bad)),
        tuple(sorted(lenient.unlabelled - host.bad.keys())),
    )


def _compiled(classifier: Classifier) -> Any:
    """Return the jitted (variables, pixels, labels) -> (prediction, confidence, label's probability, features)."""
    augment, model = classifier.config.augment, classifier.model
    mesh = sharding.make_mesh()

    def forward(variables: Any, pixels: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        views = evaluation_views(evaluation_images(pixels, augment), augment)
        (share, plain), *others = views
        with matmul_precision(classifier.config):
            found: Any = model.apply(variables, plain, train=False, features=("logits", NAME))
            logits = share * found["logits"]
            for share, view in others:
                logits += share * model.apply(variables, view, train=False)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        predicted = jnp.argmax(logits, axis=-1)
        own = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
        vectors = found[NAME].astype(jnp.float16)
        return predicted, probabilities.max(axis=-1), own, vectors

    everywhere, split = sharding.replicated(mesh), sharding.split(mesh)
    return jax.jit(
        forward,
        in_shardings=(everywhere, split, split),
        out_shardings=everywhere,
        compiler_options=dispatch.compiler_options(),
    )


def input_images(classifier: Classifier, source: Source, indices: Sequence[int]) -> np.ndarray:
    """Return examples as the network sees them, uint8 [n, S, S, 3]. Raises DataError for an unreadable one."""
    data = classifier.config.evaluating().data
    images = np.zeros((len(indices), data.image_size, data.image_size, 3), np.uint8)
    for row, index in enumerate(indices):
        name = source.describe(int(index))
        encoded = source.read([int(index)]).images[0]
        image = upright(encoded, exif=source.orientations, name=name)  # one full image at a time
        images[row] = prepare_image(image, data, name=name)
    return images


def why_unreadable(source: Source, index: int) -> str:
    """Return the reason why an example cannot be read, in one line."""
    try:
        upright(source.read([index]).images[0], exif=False, name=source.describe(index))
    except DataError as error:
        return error.problem
    return "cannot be decoded"
