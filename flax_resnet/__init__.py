"""Residual networks in JAX: train, evaluate, load.

>>> import flax_resnet
>>> classifier = flax_resnet.load("/tmp/run")  # doctest: +SKIP
>>> model = flax_resnet.create_model("resnet18", num_classes=10)
"""

from flax_resnet.inference.classifier import Classifier, Prediction, load, load_pretrained
from flax_resnet.models import create_model, list_models
from flax_resnet.training.train import train
from flax_resnet.version import __version__

__all__ = [
    "Classifier",
    "Prediction",
    "__version__",
    "create_model",
    "list_models",
    "load",
    "load_pretrained",
    "train",
]
