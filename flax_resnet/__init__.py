"""Residual networks in JAX: train, evaluate, load.

>>> import flax_resnet
>>> classifier = flax_resnet.load("/tmp/run")  # doctest: +SKIP
>>> model = flax_resnet.create_model("resnet18", num_classes=10)

The names below are imported when they are first used, so that a command can handle Ctrl-C while JAX is imported.
"""

from flax_resnet.version import __version__

TYPE_CHECKING = False  # as in typing, whose import is slow
if TYPE_CHECKING:
    from flax_resnet.inference.classifier import Classifier, load, load_pretrained
    from flax_resnet.inference.prediction import Prediction
    from flax_resnet.models import create_model, list_models
    from flax_resnet.training.train import train

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
_HOMES = {
    **dict.fromkeys(("Classifier", "load", "load_pretrained"), "inference.classifier"),
    "Prediction": "inference.prediction",
    **dict.fromkeys(("create_model", "list_models"), "models"),
    "train": "training.train",
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
