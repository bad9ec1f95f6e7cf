"""What an export refuses, and what its check notices."""

import dataclasses
import json
import math

import numpy as np
import pytest
from conftest import drawn, refused
from untrained import initial

from flax_resnet import create_model
from flax_resnet.config import freeze
from flax_resnet.errors import ConfigError, ExportError, OutputError
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.export import FORMATS, export, replay
from flax_resnet.inference.export import program as programs
from flax_resnet.inference.export.program import program_of
from flax_resnet.inference.export.replaying import Replayed, largest_difference
from flax_resnet.inference.export.signature import Signature

SHAPE = {"widths": (4, 8), "depths": (1, 1), "stem": "cifar"}
NAMES = ("caf\udce9", "`tick`", "")


@pytest.fixture(scope="module")
def classifier():
    model = create_model("resnet18", num_classes=3, **SHAPE)
    sections = {
        "model": {"name": "resnet18", **SHAPE},
        "data": {"eval_size": 40},
        "augment": {"eval_shift": 4},
    }
    return Classifier(model, drawn(initial(model)), NAMES, freeze(sections), 0)


def test_flat_probabilities_are_no_excuse():
    flat = np.full((2, 30_000), 1 / 30_000, np.float32)
    assert largest_difference(np.zeros_like(flat), flat, softmax=True) == math.inf
    assert largest_difference(flat * 0.99, flat, softmax=True) > 5e-4
    sharp = np.float32([[1 - 2e-7, 1e-7, 1e-7]])
    other = np.float32([[1 - 3e-7, 2e-7, 1e-7]])
    assert largest_difference(other, sharp, softmax=True) < 1e-6  # float32 has no digits of these


def test_what_was_not_computed_does_not_differ_and_is_not_ok():
    assert not Replayed("onnx", "pip install onnxruntime", 4, None, 1e-4).differs
    assert Replayed("onnx", "onnxruntime", 4, 2e-4, 1e-4).differs


def test_odd_class_names_and_another_image_size(classifier, tmp_path):
    folder = export(classifier, tmp_path / "net", "stablehlo", image_size=16)
    assert (folder / "labels.txt").read_bytes() == b"caf\\udce9\n`tick`\n\n"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "`caf\\udce9`, `` `tick` ``, `  `" in text
    about = json.loads((folder / "config.json").read_text())
    assert about["pretrained_cfg"]["input_size"] == [3, 16, 16]
    assert about["pretrained_cfg"].get("test_input_size", [3, 16, 16]) == [3, 16, 16]
    assert about["label_names"] == [*NAMES]


def test_a_wrong_fold_is_noticed(classifier, tmp_path, monkeypatch):
    fold = programs.fold_batch_norm

    def wrong(model, variables):
        folded = fold(model, variables)
        folded["params"]["fc"]["bias"] = folded["params"]["fc"]["bias"] + 1
        return folded

    monkeypatch.setattr(programs, "fold_batch_norm", wrong)
    with refused(tmp_path / "net", kind=ExportError):
        export(classifier, tmp_path / "net", "stablehlo", image_size=16)
    assert not list(tmp_path.iterdir())


def test_images_smaller_than_the_shift_of_views_are_refused(classifier):
    with refused("image_size", 4, ConfigError):
        program_of(classifier, Signature(image_size=4))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_weights_beyond_the_format_are_refused(classifier, precision):
    program = program_of(classifier, Signature(image_size=16, precision=precision))
    row = dataclasses.replace(FORMATS["stablehlo"], largest=1000)
    with refused("format", "stablehlo", ConfigError):
        row.check_size(program)
    FORMATS["stablehlo"].check_size(program)


def test_paths_that_no_file_system_takes(classifier, tmp_path):
    long = tmp_path / ("x" * 300)
    with refused(long, kind=OutputError):
        export(classifier, long, "stablehlo", image_size=16)
    with refused(long / "config.json", kind=ExportError):
        replay(long)


def test_formats_may_be_separated_by_spaces(classifier, tmp_path):
    folder = export(classifier, tmp_path / "net", "stablehlo, safetensors", image_size=16)
    assert [row.format for row in replay(folder)] == ["stablehlo", "safetensors"]


def test_a_run_folder_is_no_export(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {}}')
    with refused(tmp_path / "config.json", kind=ExportError) as error:
        replay(tmp_path)
    assert "no exported model" in error.value.problem
