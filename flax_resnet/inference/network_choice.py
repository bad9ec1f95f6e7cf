"""The network that a command works on: a run, or a network with pretrained weights."""

from typing import NamedTuple

from flax_resnet.inference.classifier import Classifier, load, load_pretrained


class NetworkChoice(NamedTuple):
    """The network that a user selects: a run, or a network with pretrained weights.

    Attributes:
      workdir: the run folder, or empty.
      checkpoint: with `workdir`: "last", "best" or a step.
      model: without `workdir`: a network, or timm's weights for one.
      weights: with `model`: a weights file; empty for timm's weights on the Hugging Face hub.
    """

    workdir: str = ""
    checkpoint: str = "last"
    model: str = ""
    weights: str = ""

    def load(self) -> Classifier:
        """Return the network with its weights. Raises UserError as `load` and `load_pretrained` do."""
        if self.workdir:
            return load(self.workdir, self.checkpoint)
        return load_pretrained(self.model, weights=self.weights)
