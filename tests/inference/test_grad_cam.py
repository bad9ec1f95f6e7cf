"""Grad-CAM: against what pytorch-grad-cam gave once, against a NumPy statement, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, refused
from golden.grad_cam_cases import CLASSES, GRAD_CAMS, STRIDE
from golden.pairs import abstract, as_arrays, torch_shapes_of
from untrained import initial
from weights_by_name import images_of, tensors_of

from flax_resnet import create_model
from flax_resnet.errors import ConfigError
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.grad_cam import grad_cam
from flax_resnet.weights import from_torch

GOLDEN = np.load(ROOT / "tests" / "golden" / "grad_cam.npz")
BOUND = 1e-4


def our_grad_cam(pair, classes, dtype="float32"):
    """Our heat maps of a pair, for images of these classes."""
    shapes = abstract(pair)
    variables = from_torch(tensors_of(torch_shapes_of(shapes)), shapes)
    images = images_of(len(classes), pair.size, pair.channels)
    with jax.enable_x64(dtype == "float64"):
        heat = jax.jit(partial(grad_cam, create_model(pair.ours, dtype=dtype, **pair.options)))
        arrays = as_arrays(variables, dtype)
        return np.asarray(heat(arrays, jnp.asarray(images, dtype), jnp.array(classes, jnp.int32)))


@pytest.mark.parametrize("label", GRAD_CAMS)
def test_heat_maps_are_those_of_pytorch_grad_cam(label):
    maps = our_grad_cam(GRAD_CAMS[label], CLASSES)
    assert maps.dtype == np.float32
    assert np.abs(maps[:, ::STRIDE, ::STRIDE] - GOLDEN[label]).max() < BOUND


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def wide(untrained):
    """The untrained network on images of 64 px, so that its last map has 8 x 8 positions."""
    from flax_resnet.config import freeze

    sections = {"model": {"name": "resnet18", "widths": (4, 8, 16, 32), "depths": (1, 1, 1, 1)}}
    sections["model"]["stem"] = "cifar"
    config = freeze({**sections, "data": {"image_size": 64, "eval_crop": "resize"}})
    return Classifier(untrained.model, untrained.variables, untrained.class_names, config, 0)


def scaled(image):
    """Scale an array to [0, 1]; one of a single value becomes 0."""
    spread = image.max() - image.min()
    return (image - image.min()) / spread if spread else image * 0


def enlarged(image, size):
    """Bilinear interpolation between the centres of an image's pixels."""
    count = len(image)
    at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    tents = np.maximum(1 - np.abs(at[:, None] - np.arange(count)), 0)
    return tents @ image @ tents.T


def test_a_heat_map_is_what_the_equations_say(wide, photos):
    """With average pooling and a linear head, d y_c / d A^k is the head's weight / number of positions."""
    maps = wide.features(photos, ("stage4",))["stage4"].astype(np.float64)
    kernel = np.asarray(wide.variables["params"]["fc"]["kernel"], np.float64)
    positions = maps.shape[1] * maps.shape[2]
    filled = 0
    for number in range(3):
        evidence = np.maximum((maps * (kernel[:, number] / positions)).sum(-1), 0)
        expected = np.stack([scaled(enlarged(scaled(one), 64)) for one in evidence])
        np.testing.assert_allclose(wide.explain(photos, number), expected, atol=1e-4)
        filled += expected.max() > 0.9
    assert filled >= 2


def test_a_class_is_a_name_an_index_or_the_prediction(wide, photos):
    every = [wide.explain(photos, number) for number in range(3)]
    assert any(np.abs(one - every[0]).max() > 0.1 for one in every)
    np.testing.assert_allclose(wide.explain(photos, "b"), every[1], atol=1e-6)
    mixed = wide.explain(photos, ["c", 0, "b"], batch_size=2)
    expected = [every[2][0], every[0][1], every[1][2]]
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    labels = wide.predict(photos).labels
    predicted = [every[label][row] for row, label in enumerate(labels)]
    np.testing.assert_allclose(wide.explain(photos), predicted, atol=1e-6)


def test_what_cannot_be_explained_is_refused(wide, photos):
    for wrong in ("d", 3, -1, True, 1.5):
        with refused("classes", wrong, ConfigError):
            wide.explain(photos, [0, 0, wrong])
    for number in (2, 4):
        with refused("classes", kind=ConfigError):
            wide.explain(photos, [0] * number, batch_size=2)
    with refused("batch_size", 0, ConfigError):
        wide.explain(photos, batch_size=0)


def test_every_kind_of_network_has_one_last_map():
    """Plain, pre-activated, scanned, densely pooled: each marks the map before its pooling, once."""
    small = {"widths": (4, 8), "depths": (1, 2), "num_classes": 3}
    options = [
        ("resnet18", small),
        ("resnet18", {**small, "scan_blocks": True, "depths": (2, 3)}),
        ("resnetv2_18", {**small, "stem_width": 4}),
        ("plain20", {"num_classes": 3}),
        ("vgg11", {"num_classes": 3}),
        ("alexnet", {"num_classes": 3}),
        ("airbench94", {"num_classes": 3}),
    ]
    for name, given in options:
        model = create_model(name, **given)
        images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
        variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        heat = jax.eval_shape(partial(grad_cam, model), variables, images, jnp.zeros(2, jnp.int32))
        assert heat.shape == (2, 224, 224), name


def test_a_network_without_a_head_is_refused():
    model = create_model("resnet18", widths=(4, 8), depths=(1, 1), num_classes=0)
    variables = initial(model)
    with refused("model", kind=ConfigError):
        grad_cam(model, variables, jnp.zeros((1, 32, 32, 3)), jnp.zeros(1, jnp.int32))
