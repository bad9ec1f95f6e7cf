"""What a network says of a photo: its most probable classes, the parts that count, and similar training images."""

import logging
import os
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from flax_resnet.data.images import prepare_image, upright
from flax_resnet.errors import ConfigError, DataError, WeightsError
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.evaluation import all_class_names
from flax_resnet.inference.features import NAME
from flax_resnet.inference.network_choice import NetworkChoice
from flax_resnet.inference.training_images import Neighbour, TrainingImages, training_images

log = logging.getLogger("flax_resnet")

TOP = 5
NEIGHBOURS = 5


class Answer(NamedTuple):
    """The prediction for a photo.

    Attributes:
      image: the photo as the network sees it, uint8 [S, S, 3].
      probabilities: float32 [K], which sum to 1.
      vector: the features of the photo, float32 [C]; empty if there are none.
    """

    image: np.ndarray
    probabilities: np.ndarray
    vector: np.ndarray

    def best(self, count: int = TOP) -> list[int]:
        """Return the indices of the most probable classes, at most `count`, the most probable one first."""
        return np.argsort(-self.probabilities, kind="stable")[:count].tolist()


class PhotoAnswers(Protocol):
    """A model that answers for photos.

    Attributes:
      class_names: one name per class.
      training: the training images to search for similar ones, or None.
      no_heat: why there are no heat maps; "" if there are.
      no_neighbours: why there are no similar training images; "" if there are.
    """

    class_names: tuple[str, ...]
    training: TrainingImages | None
    no_heat: str
    no_neighbours: str

    def answer(self, file: str | os.PathLike) -> Answer:
        """Return the prediction for an image file. Raises DataError if the file cannot be read."""

    def heat(self, file: str | os.PathLike, label: int) -> np.ndarray:
        """Return the Grad-CAM heat map of a class, float32 [S, S], from 0 to 1, without `no_heat`.

        Raises:
          DataError: the file cannot be read.
        """

    def neighbours(self, answer: Answer) -> tuple[Neighbour, ...]:
        """Return the most similar training images; none as long as their features are not computed."""


class NetworkAnswers:
    """The answers of a network of this package; see `PhotoAnswers`. It compiles the programs at once.

    Args:
      classifier: the network.
      training: the training images to search for similar ones, or None.
      no_neighbours: why there are none.

    Attributes:
      classifier: the network.

    Raises:
      ConfigError: the network has no classes.
      WeightsError: its probabilities are not finite.
    """

    def __init__(
        self,
        classifier: Classifier,
        training: TrainingImages | None = None,
        no_neighbours: str = "",
    ) -> None:
        if not classifier.model.num_classes:
            raise ConfigError(
                "has no head",
                key="model",
                value=classifier.config.model.name,
                cure="choose a network with classes",
            )
        self.class_names = all_class_names(classifier.class_names, classifier.model.num_classes)
        self.training, self.no_neighbours = training, no_neighbours
        self.classifier = classifier
        self.no_heat = ""
        self._compile()

    def answer(self, file: str | os.PathLike) -> Answer:
        """Return the prediction for an image file, with the pixels and views of the run's evaluation."""
        return self._answer(self._photo(file))

    def heat(self, file: str | os.PathLike, label: int) -> np.ndarray:
        """Return the Grad-CAM heat map of a class."""
        return self.classifier.explain([self._photo(file)], label)[0]

    def neighbours(self, answer: Answer) -> tuple[Neighbour, ...]:
        """Return the most similar training images."""
        return self.training.nearest(answer.vector, NEIGHBOURS) if self.training else ()

    def _photo(self, file: str | os.PathLike) -> Image.Image:
        return upright(file, exif=self.classifier.config.data.exif, name=os.fspath(file))

    def _answer(self, photo: Image.Image) -> Answer:
        classifier, data = self.classifier, self.classifier.config.evaluating().data
        vector = np.zeros(0, np.float32)
        if self.training:
            vector = classifier.features([photo], (NAME,))[NAME][0].astype(np.float32)
        probabilities = classifier.predict([photo]).probabilities[0]
        return Answer(prepare_image(photo, data, name="photo"), probabilities, vector)

    def _compile(self) -> None:
        blank = Image.new("RGB", (8, 8))
        if not np.isfinite(self._answer(blank).probabilities).all():
            raise WeightsError(
                "give probabilities that are not finite: they may have diverged", key="weights"
            )
        try:
            self.classifier.explain([blank], 0)
        except ConfigError as error:
            self.no_heat = f"This network has no Grad-CAM: it {error.problem}."


def network_answers(network: NetworkChoice, *, most: int, data_dir: str = "") -> NetworkAnswers:
    """Return the answers of a run, or of a network with pretrained weights, which has no training images.

    If the training images of a run are missing, it has none either, and a line says so.

    Args:
      network: the run or the network.
      most: largest number of training images to search; 0 for none.
      data_dir: TFDS data folder; empty for that of the run.

    Raises:
      UserError: there is no such run or network, or `NetworkAnswers` raises it.
    """
    classifier = network.load()
    training, missing = None, ""
    if not network.workdir:
        missing = "There are no near neighbours: the training images of weights are not known."
    elif most:
        try:
            training = training_images(classifier, most=most, data_dir=data_dir)
        except DataError as error:
            log.warning("no near neighbours: %s", error)
            missing = "There are no near neighbours: the training images of the run are missing."
    return NetworkAnswers(classifier, training, missing)
