"""Flax variables in the shape of every kind of network that the tables of names know, filled at random."""

import jax
import numpy as np


def tree(shapes, dtype=np.float32):
    """Flax variables of random numbers from "collection/module/leaf" -> shape."""
    draw = np.random.default_rng(0)
    variables = {"params": {}, "batch_stats": {}}
    for path, shape in shapes.items():
        *folders, leaf = path.split("/")
        inner = variables
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = draw.normal(size=shape).astype(dtype)
    return variables


def norm(module, channels, *, running=True, leaves=("scale", "bias")):
    shapes = {f"params/{module}/{leaf}": (channels,) for leaf in leaves}
    if running:
        shapes |= {f"batch_stats/{module}/{leaf}": (channels,) for leaf in ("mean", "var")}
    return shapes


def conv(module, *shape):
    return {f"params/{module}/kernel": shape}


def linear(module, *shape):
    return {f"params/{module}/kernel": shape, f"params/{module}/bias": shape[-1:]}


def shortcut(block, first):
    return conv(f"{block}/downsample_{first}", 1, 1, 4, 6) | norm(
        f"{block}/downsample_{first + 1}", 6
    )


BASIC = (
    conv("conv1", 7, 7, 3, 4)
    | norm("bn1", 4)
    | conv("layer1_0/conv1", 3, 3, 4, 4)
    | norm("layer1_0/bn1", 4)
    | conv("layer1_0/conv2", 3, 3, 4, 4)
    | norm("layer1_0/bn2", 4)
    | conv("layer2_11/conv1", 3, 2, 2, 6)  # grouped, and not square
    | norm("layer2_11/bn1", 6)
    | conv("layer2_11/conv3", 1, 1, 6, 6)
    | norm("layer2_11/bn3", 6)
    | shortcut("layer2_11", 0)
    | linear("fc", 6, 5)
)
DEEP = (
    conv("conv1_0", 3, 3, 3, 2)
    | norm("conv1_1", 2)
    | conv("conv1_3", 3, 3, 2, 2)
    | norm("conv1_4", 2)
    | conv("conv1_6", 3, 3, 2, 4)
    | norm("bn1", 4)
    | conv("maxpool_0", 3, 3, 4, 4)
    | norm("maxpool_1", 4)
    | conv("layer1_0/conv1", 1, 1, 4, 6)
    | norm("layer1_0/bn1", 6)
    | linear("layer1_0/se/fc1", 6, 2)
    | linear("layer1_0/se/fc2", 2, 6)
    | shortcut("layer1_0", 1)
    | conv("layer1_1/se/conv", 3)
    | linear("fc", 6, 5)
)
VGG = (
    conv("features_0", 3, 3, 3, 4)
    | {"params/features_0/bias": (4,)}
    | norm("features_1", 4)
    | linear("classifier_0", 16, 8)
    | linear("classifier_6", 8, 5)
)


def preactivation(stem, **kind):
    return (
        stem
        | norm("layer1_0/norm1", 4, **kind)
        | conv("layer1_0/conv1", 1, 1, 4, 2)
        | norm("layer1_0/norm2", 2, **kind)
        | conv("layer1_0/conv2", 3, 3, 2, 2)
        | norm("layer1_0/norm3", 2, **kind)
        | conv("layer1_0/conv3", 1, 1, 2, 6)
        | conv("layer1_0/downsample_conv", 1, 1, 4, 6)
        | norm("layer4_9/norm1", 6, **kind)
        | norm("norm", 6, **kind)
        | linear("fc", 6, 5)
    )


GROUPNORM = preactivation(conv("conv1", 7, 7, 3, 4), running=False)
SE_PREACTIVATION = (
    preactivation(conv("conv1", 7, 7, 3, 4))
    | linear("layer1_0/se/fc1", 6, 2)
    | linear("layer1_0/se/fc2", 2, 6)
    | conv("layer4_9/se/conv", 3)
)
EVONORM = preactivation(
    conv("conv1_0", 3, 3, 3, 2)
    | norm("conv1_1", 2, running=False, leaves=("scale", "bias", "v"))
    | conv("conv1_3", 3, 3, 2, 2)
    | norm("conv1_4", 2, running=False, leaves=("scale", "bias", "tau"))
    | conv("conv1_6", 3, 3, 2, 4),
    running=False,
    leaves=("scale", "bias", "v"),
)
TREES = {
    "basic": ("torch", BASIC),
    "deep": ("torch", DEEP),
    "vgg": ("torch", VGG),
    "preactivation": ("timm_v2", preactivation(conv("conv1", 7, 7, 3, 4))),
    "preactivation with attention": ("timm_v2", SE_PREACTIVATION),
    "evonorm": ("timm_v2", EVONORM),
    "huggingface": ("huggingface", BASIC),
    "bit": ("bit", GROUPNORM),
}


def abstract(variables):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
