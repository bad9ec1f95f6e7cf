"""The training images of a run that are most like a photo, by the features of its network."""

import dataclasses
import threading
from typing import NamedTuple

import numpy as np

from flax_resnet.data.images import upright
from flax_resnet.data.open import open_source
from flax_resnet.data.records import Source
from flax_resnet.errors import DataError, UserError, one_line
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.feature_classifiers import nearest_neighbours
from flax_resnet.inference.features import NAME
from flax_resnet.inference.judged_split import input_images
from flax_resnet.training.experiment import make_sampler

# Images per step: a thread that computes on a CPU can be stopped after seconds.
BATCH = 16


class Neighbour(NamedTuple):
    """A training image that is like a photo.

    Attributes:
      image: the image as the network sees it, uint8 [S, S, 3].
      name: its file, or its position in the split.
      label: the name of its class; "" without a label.
      similarity: cosine similarity of the features, -1 to 1.
    """

    image: np.ndarray
    name: str
    label: str
    similarity: float


class TrainingImages:
    """A random sample of the training images, whose features `compute` computes once.

    Another thread may read `done`, `size` and `is_ready` meanwhile.

    Args:
      classifier: the network of a run.
      source: the training split of the run.
      most: largest number of images in the sample, 1 or more. The sample depends only on `data.split_seed`, and
        holds only images that the run uses (`data.fraction`, `data.limit`).

    Attributes:
      total: number of images that the run uses for training.
      size: number of images in the sample, unreadable ones included.
      done: number of images of the sample that were read so far.
      is_ready: whether all were read.
      problem: why they cannot be read, in one line; "" otherwise.
    """

    def __init__(self, classifier: Classifier, source: Source, *, most: int) -> None:
        self._classifier, self._source = classifier, source
        used = make_sampler(source, classifier.config)
        self.total = used.epoch_size
        self.size = min(most, self.total)
        self._sample = dataclasses.replace(used, subset_size=self.size).used.astype(np.int64)
        self.done, self.is_ready, self.problem = 0, False, ""
        self._indices = np.zeros(0, np.int64)
        self._labels = np.zeros(0, np.int32)
        self._vectors = np.zeros((0, 0), np.float32)

    @property
    def readable(self) -> int:
        """The number of images that are compared with a photo."""
        return len(self._indices)

    def compute(self, stop: threading.Event | None = None) -> None:
        """Read the sample and compute its features; return early once `stop` is set.

        Images that cannot be read are left out. If the source cannot be read, `problem` says why.
        """
        parts = []
        try:
            for start in range(0, self.size, BATCH):
                if stop and stop.is_set():
                    return
                chunk = self._sample[start : start + BATCH]
                parts.append(self._features(chunk))
                self.done += len(chunk)
        except (UserError, OSError) as error:
            self.problem = one_line(error)
            return
        indices, labels, vectors = map(np.concatenate, zip(*parts, strict=True))
        self._indices, self._labels, self._vectors = indices, labels, vectors
        self.is_ready = True

    def nearest(self, vector: np.ndarray, count: int) -> tuple[Neighbour, ...]:
        """Return the most similar images, the most similar one first; none before the features are computed.

        Args:
          vector: the features of a photo, float32 [C].
          count: largest number of images.
        """
        count = min(count, self.readable)
        if not self.is_ready or not count:
            return ()
        similarities, rows = nearest_neighbours(vector[None], self._vectors, count)
        found = []
        for similarity, row in zip(similarities[0].tolist(), rows[0].tolist(), strict=True):
            index, label = int(self._indices[row]), int(self._labels[row])
            try:
                image = input_images(self._classifier, self._source, [index])[0]
            except DataError:  # removed since
                continue
            name = self._source.class_names[label] if label >= 0 else ""
            found.append(Neighbour(image, self._source.describe(index), name, similarity))
        return tuple(found)

    def _features(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the indices, labels and features of the readable ones of these images."""
        source = self._source
        records = source.read(indices)
        images, readable = [], []
        for row, index in enumerate(indices):
            try:
                encoded = records.images[row]
                name = source.describe(int(index))
                images.append(upright(encoded, exif=source.orientations, name=name))
                readable.append(row)
            except DataError:
                continue
        # One size of batches, so that one program is compiled.
        filled = images + [images[0]] * (BATCH - len(images)) if images else []
        features = self._classifier.features(filled, (NAME,), batch_size=BATCH)[NAME]
        return indices[readable], records.labels[readable], features[: len(images)]


def training_images(classifier: Classifier, *, most: int, data_dir: str = "") -> TrainingImages:
    """Return a sample of the images that a run was trained on, before its features are computed.

    Args:
      classifier: the network of the run.
      most: largest number of images.
      data_dir: TFDS data folder; empty for that of the run.

    Raises:
      DataError: the images are missing.
    """
    data = classifier.config.data
    data = data.but(data_dir=data_dir) if data_dir else data
    return TrainingImages(classifier, open_source(data, train=True), most=most)
