"""What an exported model takes and returns."""

import dataclasses

from flax_resnet.errors import ConfigError
from flax_resnet.settings import LARGEST_INT

PREPROCESSING = {
    "none": "float32 images, normalised as in `augment.normalize`, of the network's size",
    "normalize": "uint8 images of the network's size; the model normalises them",
    "resize": "uint8 images of any size; the model resizes, crops and normalises them",
}
PRECISIONS = ("float32", "float16")
LARGEST_BATCH = 4096  # images; the check of an export computes a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """The inputs and outputs of an exported model, and the precision of its weights.

    Attributes:
      image_size: height and width of the images that the network receives, in pixels.
      preprocessing: a key of `PREPROCESSING`: the images that the model takes.
      softmax: whether the model returns probabilities instead of logits.
      batch_size: number of images per call; None for any number.
      precision: "float32", or "float16" for weights of half the size.

    Raises:
      ConfigError: a value is not allowed.
    """

    image_size: int
    preprocessing: str = "none"
    softmax: bool = False
    batch_size: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        for key, choices in (("preprocessing", (*PREPROCESSING,)), ("precision", PRECISIONS)):
            if getattr(self, key) not in choices:
                raise ConfigError(key=key, value=getattr(self, key), allowed=choices)
        for key in ("image_size", "batch_size"):
            value = getattr(self, key)
            if key == "batch_size" and value is None:
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            most = LARGEST_BATCH if key == "batch_size" else LARGEST_INT
            if not whole or not 1 <= value <= most:
                allowed = f"a whole number from 1 to {most:,}"
                raise ConfigError(key=key, value=value, allowed=allowed)

    @property
    def takes_bytes(self) -> bool:
        """Whether the model takes uint8 images."""
        return self.preprocessing != "none"
