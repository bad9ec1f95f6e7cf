"""The weights alone as .safetensors, for timm, torchvision, and `load_pretrained` of this package."""

import dataclasses
import json
import pathlib

import jax
import numpy as np

from flax_resnet.inference.classifier import load_pretrained
from flax_resnet.inference.export.format_row import FormatRow, Runtime
from flax_resnet.inference.export.program import Program, exact, program_of
from flax_resnet.inference.export.signature import Signature
from flax_resnet.inference.export.weights_file import write_weights

LOAD = """
import flax_resnet

classifier = flax_resnet.load_pretrained("{network}", weights="model.safetensors")
prediction = classifier.predict(["photo.jpg"])  # reads config.json for the preprocessing
"""


def _write(program: Program, path: pathlib.Path) -> None:
    write_weights(program.classifier, path)


def _open(path: pathlib.Path, signature: Signature) -> Runtime:
    about = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    classifier = load_pretrained(about["architecture"], weights=path)
    # The file holds no views of test-time augmentation, over which the other formats average.
    augment = classifier.config.augment.but(**about["export"]["views"])
    config = dataclasses.replace(classifier.config, augment=augment)
    program = program_of(dataclasses.replace(classifier, config=config), signature)
    apply = jax.jit(program.outputs)

    def run(images: np.ndarray) -> np.ndarray:
        with exact():
            return np.asarray(apply(program.variables, images))

    return run


ROWS = (
    FormatRow(
        name="safetensors",
        help="the weights alone, for timm and torchvision",
        file="model.safetensors",
        write=_write,
        open=_open,
        runtimes=("flax_resnet",),
        load=LOAD,
        supports={
            "preprocessing": ("none",),
            "softmax": (False,),
            "batch_size": (None,),
            "precision": ("float32",),
        },
    ),
)
