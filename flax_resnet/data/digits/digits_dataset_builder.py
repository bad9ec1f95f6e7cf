"""TFDS builder for the handwritten digits that scikit-learn includes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
1,797 handwritten digits from 43 people, 8x8 pixels with 17 grey levels (here scaled to 0-255), real scans
by the National Institute of Standards and Technology: the test part of "Optical recognition of handwritten
digits" as scikit-learn ships it. The split is fixed: every fifth image, from the first on, is `test` (360),
the others are `train` (1,437). `train[:1200]` and `train[1200:]` give a fixed part for validation.
"""

_CITATION = """
@misc{optdigits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Builder of `digits` from scikit-learn's copy: image uint8 [8, 8, 1] as PNG, label 0-9."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Every fifth image is test."}  # noqa: RUF012 - TFDS declares it so
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (index % 5 == 0) == test:
                pixels = np.rint(image * (255 / 16)).astype(np.uint8)
                yield index, {"image": pixels[..., None], "label": int(label)}
