"""ONNX models compute what JAX computes, and are as simple as hand-written ones."""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused
from jax import lax

from flax_resnet.augment.augment_section import Augment
from flax_resnet.config import Config
from flax_resnet.data.images import prepare_image
from flax_resnet.errors import ConfigError
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.export.onnx_graph import model as onnx_model
from flax_resnet.inference.export.program import Program, program_of
from flax_resnet.inference.export.signature import Signature
from flax_resnet.models import create_model
from flax_resnet.models.layers.activations import ACTIVATIONS
from flax_resnet.models.layers.attention import ATTENTION
from flax_resnet.models.layers.normalization import NORMS
from flax_resnet.models.layers.pooling import (
    ANTI_ALIAS,
    GLOBAL_POOLS,
    adaptive_average_pool,
    average_pool,
)
from flax_resnet.models.shortcuts import SHORTCUTS
from flax_resnet.models.stems import STEMS

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install '.[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[onnx]'")
from flax_resnet.inference.export.formats.onnx import ROWS  # noqa: E402

ROW = ROWS[0]


@dataclasses.dataclass(frozen=True)
class FunctionProgram(Program):
    """A program of any function of the images."""

    function: Any = None

    def unfolded(self):
        return self

    def logits(self, variables, images):
        if self.signature.takes_bytes:
            images = images.astype(jnp.float32)
        return self.function(images)


def program_of_function(function, size=12, channels=3, data=None, **signature):
    model = create_model("resnet20", in_channels=channels)
    config = Config() if data is None else dataclasses.replace(Config(), data=data)
    signature = Signature(image_size=size, **signature)
    return FunctionProgram(model, {}, config, ("a",), signature, None, function)


def variables_of(model):
    """Draw random variables: scales and statistics are not 1 and 0."""
    draw = np.random.default_rng(0)
    images = jnp.zeros((1, 64, 64, model.in_channels))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def leaf(path, shape):
        if path[-1].key in ("scale", "var"):
            return draw.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        deviation = np.prod(shape.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.1
        return draw.normal(0, deviation, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def network(name="resnet18", size=32, config=None, signature=None, **options):
    options = {"depths": (1, 1), "widths": (8, 16), "num_classes": 7, **options}
    model = create_model(name, **options)
    names = tuple(f"class {number}" for number in range(model.num_classes))
    classifier = Classifier(model, variables_of(model), names, config or Config(), 0)
    return program_of(classifier, Signature(image_size=size, **(signature or {})))


def pixels_of(program, count=3):
    size = program.signature.image_size
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def outputs(program, path, count=3):
    """Return the outputs of ONNX Runtime and of JAX for random images."""
    pixels = pixels_of(program, count)
    ROW.write(program, path)
    inputs = program.model_input(pixels)
    if not program.signature.takes_bytes:
        inputs = inputs.transpose(0, 3, 1, 2)
    return ROW.open(path, program.signature)(inputs), program.expected(pixels)


def assert_equal(program, path, bound=1e-5, count=3):
    found, expected = outputs(program, path, count)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
    return onnx.load(path)


def counts(model):
    return collections.Counter(node.op_type for node in model.graph.node)


def sides(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_network_with_every_kind_of_layer(tmp_path):
    program = network(
        "resnet50", stem="deep", attention="se", anti_alias="blur", shortcut="average"
    )
    model = assert_equal(program, tmp_path / "model.onnx")
    assert sides(model.graph.input[0]) == ["batch", 3, 32, 32]
    assert sides(model.graph.output[0]) == ["batch", 7]
    found = counts(model)
    assert not found["Transpose"]
    assert not found["Reshape"]
    assert not found["Concat"]
    assert not found["Slice"]
    assert not found["BatchNormalization"]
    assert found["Gemm"] == 1


def test_every_activation_and_pool(tmp_path):
    def function(images):
        parts = [row.apply(images - 0.1).mean(axis=(1, 2)) for row in ACTIVATIONS.values()]
        parts += [row.pool(images) for row in GLOBAL_POOLS.values() if not row.keeps_map]
        parts += [row.max_pool(images).mean(axis=(1, 2)) for row in ANTI_ALIAS.values()]
        parts.append(adaptive_average_pool(images, 5).reshape(-1, 75))
        planes = jnp.transpose(lax.slice_in_dim(images, 1, 3, axis=3), (0, 3, 1, 2))
        parts.append(planes.reshape(-1, 2 * 144))
        return jnp.concatenate(parts, axis=1)

    assert_equal(program_of_function(function), tmp_path / "model.onnx")


def test_sums_windows_and_edges(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype(np.float32)

    def function(images):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        edges = jnp.pad(jnp.pad(images, [(0, 0), (2, 1), (1, 3), (0, 0)], "reflect"),
                        [(0, 0), (1, 2), (0, 2), (0, 0)], "reflect")  # fmt: skip
        parts = [
            (y * 2 + 1).max(axis=2),  # y is used twice: the factor stays outside of the kernel
            (1 - y).mean(axis=1),
            ((jnp.sin(1.0) * images + 3) * 0.5 - 7)[..., None].max(axis=(3, 4)),
            average_pool(images, size=3, stride=2, partial=True),
            average_pool(images, size=2, stride=2),
            edges,
        ]
        return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)

    model = assert_equal(program_of_function(function), tmp_path / "model.onnx")
    assert counts(model)["Conv"] == 1  # not once for each of its users


def test_grey_images_views_and_shared_weights(tmp_path):
    augment = Augment(mean=(0.5,), std=(0.25,), eval_flip=True, eval_shift=2)
    config = dataclasses.replace(Config(), augment=augment)
    for preprocessing in ("none", "normalize"):
        program = network(config=config, in_channels=1, signature={"preprocessing": preprocessing})
        model = assert_equal(program, path := tmp_path / f"{preprocessing}.onnx")
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(program.variables))
        assert weights < path.stat().st_size < 2 * weights + 65536  # six views, one set of weights
        assert counts(model)["Gemm"] == 6


def test_batch_size_softmax_and_metadata(tmp_path):
    signature = {"batch_size": 3, "softmax": True, "preprocessing": "normalize"}
    model = assert_equal(network(signature=signature), tmp_path / "model.onnx")
    assert sides(model.graph.input[0]) == [3, 32, 32, 3]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.output[0].name == "probabilities"
    assert counts(model)["Softmax"] == counts(model)["Transpose"] == 1
    about = {prop.key: prop.value for prop in model.metadata_props}
    assert "class 6" in about["class_names"]
    assert about["preprocessing"] == "normalize"


def test_float16_weights_are_half_as_large(tmp_path):
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    assert_equal(network(widths=(64, 128)), whole)
    program = network(widths=(64, 128), signature={"precision": "float16"})
    assert_equal(program, half, bound=1e-2)
    assert half.stat().st_size < 0.55 * whole.stat().st_size


def test_weights_beyond_float16_are_refused(tmp_path):
    program = network(signature={"precision": "float16"})
    head = program.variables["params"]["fc"]
    head["kernel"] = head["kernel"] * 1e9
    with refused("precision", "float16", ConfigError):
        ROW.write(program, tmp_path / "model.onnx")


def test_weights_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "LARGEST_MESSAGE", 10_000)
    assert_equal(network(), path := tmp_path / "model.onnx")
    assert path.stat().st_size < 20_000 < (tmp_path / "model.onnx.data").stat().st_size


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [0.875, 0.93, 1.0, "resize"])
def test_resized_pixels_are_those_of_pillow(tmp_path, interpolation, crop):
    settings = {"eval_crop": "resize"} if crop == "resize" else {"eval_crop_fraction": crop}
    data = Config().data.but(
        image_size=16, interpolation=interpolation, **{"eval_crop": "center", **settings}
    )
    program = program_of_function(
        lambda images: images.reshape(images.shape[0], -1), 16, data=data, preprocessing="resize"
    )
    ROW.write(program, path := tmp_path / "model.onnx")
    run = ROW.open(path, program.signature)
    draw = np.random.default_rng(0)
    for height, width in ((40, 61), (16, 16), (9, 50), (21, 22), (16, 27), (33, 20), (50, 9)):
        image = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
        expected = prepare_image(image, data, name="image").reshape(-1)
        differences = np.abs(run(image[None])[0] - expected)
        # Pillow 13 resizes some tall images vertically first; of noise, each order rounds other pixels.
        most, mean = (8, 0.5) if height > width else (1, 0.1)
        assert differences.max() <= most
        assert differences.mean() < mean


def test_what_cannot_be_written_is_refused(tmp_path):
    program = program_of_function(lambda images: jnp.sort(images, axis=1).mean(axis=(1, 2)))
    with refused("--format", "onnx", ConfigError) as error:
        ROW.write(program, tmp_path / "model.onnx")
    assert "sort" in error.value.problem
    assert not (tmp_path / "model.onnx").exists()


def nodes(name):
    from flax_resnet.inference.export.onnx_graph.simplify import simplify
    from flax_resnet.inference.export.onnx_graph.trace import traced_graph

    model = create_model(name)
    names = tuple(map(str, range(1000)))
    classifier = Classifier(model, variables_of(model), names, Config(), 0)
    graph, end = traced_graph(program_of(classifier, Signature(image_size=224)))
    simplify(graph, end)
    return collections.Counter(node.op for node in graph.nodes)


def test_resnet50_has_the_nodes_of_torch():
    # What torch.onnx makes of timm's resnet50 (torch 2.14), but for its Reshape before the head.
    assert nodes("resnet50") == dict(Conv=53, Relu=49, Add=16, MaxPool=1, ReduceMean=1, Gemm=1)


@pytest.mark.slow
def test_other_networks_have_the_nodes_of_torch():
    assert nodes("seresnet50") == dict(
        Conv=85, Relu=65, Add=16, MaxPool=1, ReduceMean=17, Sigmoid=16, Mul=16, Gemm=1
    )
    bit = nodes("resnetv2_50x1_bit")
    assert (bit["Conv"] + bit["Gemm"], bit["Relu"], bit["Add"]) == (54, 49, 16)
    assert bit["Reshape"] == 2 * 49
    assert not bit["Transpose"]


OPTIONS = {
    "stem": STEMS,
    "shortcut": SHORTCUTS,
    "attention": ATTENTION,
    "anti_alias": ANTI_ALIAS,
    "act": ACTIVATIONS,
    "norm": NORMS,
    "global_pool": {k: v for k, v in GLOBAL_POOLS.items() if not v.keeps_map},
    "output_stride": (8, 16),
    "scan_blocks": (True,),
    "dtype": ("bfloat16",),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option in OPTIONS for value in OPTIONS[option]]
)
def test_every_option_of_a_network(tmp_path, option, value):
    program = network(size=64, depths=(2, 2, 1), widths=(32, 32, 64), **{option: value})
    assert_equal(program, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18d", "resnext50_32x4d", "ecaresnet26t", "resnetv2_50d_gn", "resnetv2_50d_evos", "vgg11_bn",
     "airbench94", "preact164", "wrn16_4"],
)  # fmt: skip
def test_sample_of_networks(name):
    from benchmarks.lab.onnx_networks import BOUND, measure

    assert measure(name)["difference"] < BOUND
