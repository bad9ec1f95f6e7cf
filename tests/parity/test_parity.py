"""The networks against timm and torchvision: what they gave once (tests/golden), and live (-m parity)."""

import json

import numpy as np
import pytest
from conftest import ROOT
from golden.cases import GOLDENS, WITH_GRADIENTS
from golden.pairs import (
    FLOAT32_BOUND,
    FLOAT64_BOUND,
    Pair,
    abstract,
    distance,
    gradient_errors,
    our_gradients,
    our_outputs,
    relative,
    torch_shapes_of,
)
from weights_by_name import images_of, tensors_of

from flax_resnet.weights import from_torch

GOLDEN = json.loads((ROOT / "tests" / "golden" / "logits.json").read_text(encoding="utf-8"))

# The smallest network of each family, and every option.
LIVE = (
    *("resnet18", "resnet14t", "resnet26", "resnet50c", "resnet50s", "resnet34d", "test_resnet"),
    *("resnext50_32x4d", "wide_resnet50_2", "seresnet18", "seresnext26t_32x4d", "senet154"),
    *("ecaresnet26t", "ecaresnetlight", "ecaresnet50d_pruned", "resnetblur18", "resnetblur50d"),
    *("resnetaa34d", "resnetaa50", "resnetrs50", "resnet50_gn", "resnetv2_18", "resnetv2_18d"),
    *("resnetv2_50", "resnetv2_50t", "resnetv2_50d_gn", "resnetv2_50d_evos", "resnetv2_50d_frn"),
    *("resnetv2_50x1_bit", "torchvision/resnet18", "torchvision/resnet50", "torchvision/alexnet"),
    *("torchvision/vgg11", "torchvision/vgg11_bn", "resnet20, option A", "resnet20, option B"),
    *("preact164", "wrn16_4", "resnet50, output_stride=8", "resnet50d, output_stride=16"),
    *("resnetv2_50d, output_stride=8", "senet154, output_stride=8", "resnet50, in_channels=1"),
    *("resnet50, in_channels=4", "resnet50, global_pool=max", "resnetv2_50, global_pool=avgmax"),
)
LIVE_GRADIENTS = (
    *("resnet18", "resnet50d", "seresnet50", "test_resnet", "resnetv2_18d", "resnetv2_50x1_bit"),
    *("resnet20, option A", "torchvision/vgg11_bn"),
)


@pytest.fixture(scope="module")
def parity():
    for library in ("torch", "timm", "torchvision"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install '.[parity]'")
    import compare

    return compare


def filled(pair):
    shapes = abstract(pair)
    return from_torch(tensors_of(torch_shapes_of(shapes)), shapes)


def test_the_golden_file_holds_all_cases():
    assert GOLDEN.keys() == GOLDENS.keys()
    assert {label for label in GOLDEN if "gradients" in GOLDEN[label]} == {*WITH_GRADIENTS}


@pytest.mark.parametrize("label", GOLDENS)
def test_logits_are_those_of_timm(label):
    pair = GOLDENS[label]
    images = images_of(2, pair.size, pair.channels)
    reference = np.array(GOLDEN[label]["logits"])
    assert distance(our_outputs(pair, filled(pair), images, "float32"), reference) <= FLOAT32_BOUND


@pytest.mark.parametrize("label", WITH_GRADIENTS)
def test_gradients_are_those_of_timm(label):
    pair = GOLDENS[label]
    images = images_of(2, pair.size, pair.channels)
    loss, gradients = our_gradients(pair, filled(pair), images, np.array([3, 7]))
    assert relative(loss, GOLDEN[label]["loss"]) <= FLOAT64_BOUND
    errors = gradient_errors(
        {name: np.linalg.norm(value.ravel()) for name, value in gradients.items()},
        GOLDEN[label]["gradients"],
    )
    assert {k: v for k, v in errors.items() if not v <= FLOAT64_BOUND} == {}


@pytest.mark.parity
@pytest.mark.parametrize("label", LIVE)
def test_logits_live(parity, label):
    row = parity.compare_logits(parity.all_pairs()[label])
    assert not row.failure, (row.failure, row.figures)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["resnet50", "resnetv2_50"])
def test_feature_maps_live(parity, name):
    row = parity.compare_features(name)
    assert not row.failure, (row.failure, row.figures)


@pytest.mark.parity
@pytest.mark.parametrize("label", LIVE_GRADIENTS)
def test_gradients_live(parity, label):
    row = parity.compare_gradients(parity.all_pairs()[label])
    assert not row.failure, (row.failure, row.figures)


@pytest.mark.parity
@pytest.mark.parametrize("label", ["resnet18", "resnet50", "wrn16_4"])
def test_trajectories_live(parity, label):
    row = parity.compare_trajectory(parity.all_pairs()[label])
    assert not row.failure, (row.failure, row.figures)


@pytest.mark.parity
def test_all_names_of_timm_are_here(parity):
    from flax_resnet import list_models

    names = parity.timm_names()
    assert len(names) == 101
    assert {*names} <= {*list_models()}


SMALL = Pair("resnet18", {"num_classes": 10}, "resnet18", {"num_classes": 10}, 32)


@pytest.mark.parity
def test_the_first_layer_that_diverges_is_named(parity, monkeypatch):
    """A wrong padding, a stride in the wrong place, and two tensors swapped."""
    import parity_outputs

    assert not parity.compare_logits(SMALL).failure
    loaded = parity_outputs.loaded

    def wrongly_padded(pair, tensors):
        net = loaded(pair, tensors)
        net.layer2[1].conv1.padding_mode = "circular"
        return net

    monkeypatch.setattr(parity_outputs, "loaded", wrongly_padded)
    assert "first to diverge: layer2.1.conv1: " in parity.compare_logits(SMALL).failure

    def swapped(pair, tensors):
        first, second = "layer3.1.conv1.weight", "layer3.1.conv2.weight"
        return loaded(pair, {**tensors, first: tensors[second], second: tensors[first]})

    monkeypatch.setattr(parity_outputs, "loaded", swapped)
    assert "first to diverge: layer3.1.conv1: " in parity.compare_logits(SMALL).failure

    monkeypatch.setattr(parity_outputs, "loaded", loaded)
    moved = Pair("resnet50", {}, "resnet50_v1", {}, 32)
    failure = parity.compare_logits(moved).failure
    assert failure == "first to diverge: layer2.0.conv1: [2, 128, 4, 4], torch's [2, 128, 8, 8]"


@pytest.mark.parity
def test_failures_are_listed_and_the_exit_code_is_one(parity, monkeypatch, tmp_path, capsys):
    import parity_outputs

    monkeypatch.setattr(parity, "all_pairs", lambda: {"resnet18": SMALL, "resnet34": SMALL})
    monkeypatch.setattr(parity, "timm_names", lambda: ["resnet18", "resnet34"])
    page = tmp_path / "parity.md"
    assert parity.main(["--names", "resnet18", "--output", str(page)]) == 0
    assert "The logits of 1 of 1 networks of timm are" in page.read_text()
    to_torch = parity_outputs.to_torch
    monkeypatch.setattr(
        parity_outputs, "to_torch", lambda tree: {**to_torch(tree), "fc.bias": np.ones(10)}
    )
    assert parity.main(["--names", "resnet[13]*", "--output", str(page)]) == 1
    told = "failed: Networks of timm: resnet34: AssertionError: fc.bias came back changed"
    assert told in capsys.readouterr().out.splitlines()
    assert "**failed**" in page.read_text()
