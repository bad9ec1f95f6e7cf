"""The JSON file beside a weights file, whatever the weights file is called."""

import json

import pytest
from hub_config import CONFIG
from script_checkpoints import WEIGHTS

from flax_resnet.weights import write_safetensors
from flax_resnet.weights.opening import network_of, open_weights


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("w.safetensors", "w.json"),
        ("model_best.pth.tar", "model_best.json"),
        ("MODEL.PTH.TAR", "MODEL.json"),
        ("model_best.pth.tar", "model_best.pth.json"),
        ("last.ckpt", "last.json"),
        ("resnet18.a1.pth", "resnet18.a1.json"),
        ("weights", "weights.json"),
        ("weights.json", "config.json"),
        ("w.th", "config.json"),
    ],
)
def test_the_json_file_beside_describes_the_weights(tmp_path, name, beside):
    write_safetensors(tmp_path / "w.safetensors", WEIGHTS)
    (tmp_path / "w.safetensors").rename(tmp_path / name)
    assert network_of(tmp_path / name) == ""
    about = {**CONFIG, "architecture": "resnet18", "num_classes": 5, "label_names": [*"abcde"]}
    (tmp_path / beside).write_text(json.dumps(about))
    assert network_of(tmp_path / name) == "resnet18"
    opened = open_weights("resnet18", tmp_path / name)
    assert opened.about.class_names == tuple("abcde")
    assert opened.tensors.keys() == WEIGHTS.keys()
