import hashlib
import http.server
import importlib.util
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import threading
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save, save_file

from flax_resnet.errors import OutputError, WeightsError
from flax_resnet.weights import (
    detect,
    fetch,
    find,
    from_config,
    from_torch,
    imagenet_classes,
    layout_of,
    read_tensors,
    to_torch,
    write_safetensors,
)
from flax_resnet.weights.layout_conversion import adapt_channels
from flax_resnet.weights.layouts import LAYOUTS

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", TREES)
def test_there_and_back_bit_for_bit(kind, dtype):
    layout, shapes = TREES[kind]
    variables = tree(shapes, dtype)
    tensors = to_torch(variables, layout)
    assert all(x.flags.c_contiguous and x.flags.writeable for x in tensors.values())
    assert detect(tensors) == layout
    assert_same(from_torch(tensors, abstract(variables)), variables)
    if layout in ("torch", "timm_v2"):
        assert layout_of(abstract(variables)) == layout
    counted = {n.rpartition(".")[0] for n in tensors if n.endswith("num_batches_tracked")}
    running = {n.rpartition(".")[0] for n in tensors if n.endswith("running_mean")}
    assert counted == running
    # each tensor stands for one leaf
    assert len(tensors) - len(counted) == len(jax.tree.leaves(variables))


def test_names_and_axes_are_those_of_the_other_side():
    variables = tree(BASIC)
    params, stats = variables["params"], variables["batch_stats"]
    tensors = to_torch(variables)
    kernel = params["layer2_11"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        tensors["layer2.11.conv1.weight"], np.einsum("hwio->oihw", kernel)
    )
    np.testing.assert_array_equal(tensors["fc.weight"], params["fc"]["kernel"].T)
    np.testing.assert_array_equal(
        tensors["layer2.11.downsample.1.running_var"], stats["layer2_11"]["downsample_1"]["var"]
    )
    counter = tensors["bn1.num_batches_tracked"]
    assert (counter.dtype, counter.shape, counter.item()) == (np.int64, (), 0)

    tensors = to_torch(variables, "huggingface")
    stage = "resnet.encoder.stages.1.layers.11"
    for name, leaf in {
        "resnet.embedder.embedder.normalization.weight": params["bn1"]["scale"],
        f"{stage}.layer.2.normalization.bias": params["layer2_11"]["bn3"]["bias"],
        f"{stage}.shortcut.normalization.running_mean": stats["layer2_11"]["downsample_1"]["mean"],
        "classifier.1.weight": params["fc"]["kernel"].T,
    }.items():
        np.testing.assert_array_equal(tensors[name], leaf, err_msg=name)
    assert tensors[f"{stage}.shortcut.convolution.weight"].shape == (6, 4, 1, 1)

    variables = tree(GROUPNORM)
    params = variables["params"]
    tensors = to_torch(variables, "bit")
    unit = "resnet/block4/unit10/a/group_norm"
    np.testing.assert_array_equal(tensors[f"{unit}/gamma"], params["layer4_9"]["norm1"]["scale"])
    np.testing.assert_array_equal(
        tensors["resnet/head/conv2d/kernel"][0, 0], params["fc"]["kernel"]
    )
    assert "resnet/block1/unit01/a/proj/standardized_conv2d/kernel" in tensors
    tensors = to_torch(variables)
    assert tensors["head.fc.weight"].shape == (5, 6, 1, 1)
    assert {"stem.conv.weight", "stages.3.blocks.9.norm1.weight", "norm.bias"} < set(tensors)
    tensors = to_torch(tree(EVONORM))
    assert {"stem.conv1.weight", "stem.norm1.v", "stem.norm2.tau", "stem.conv3.weight"} < set(
        tensors
    )
    tensors = to_torch(tree(DEEP))
    assert tensors["layer1.0.se.fc1.weight"].shape == (2, 6, 1, 1)
    assert tensors["layer1.1.se.conv.weight"].shape == (1, 1, 3)
    assert {"conv1.3.weight", "maxpool.1.running_mean", "layer1.0.downsample.2.bias"} < set(tensors)


def test_what_is_filled_is_of_the_dtype_asked_for_and_a_copy():
    variables = tree(BASIC)
    tensors = {k: v.astype(np.float64) for k, v in to_torch(variables).items()}
    filled = from_torch(tensors, abstract(variables))
    assert {x.dtype for x in jax.tree.leaves(filled)} == {np.dtype(np.float32)}
    tensors = to_torch(variables)
    filled = from_torch(tensors, abstract(variables))
    tensors["bn1.bias"][:] = 7
    assert not np.any(filled["params"]["bn1"]["bias"] == 7)
    assert all(x.flags.c_contiguous for x in jax.tree.leaves(filled))


def test_all_misfits_are_told_in_one_line():
    variables = tree(BASIC)
    tensors = to_torch(variables)
    del tensors["layer1.0.conv1.weight"], tensors["bn1.running_mean"]
    tensors |= {f"extra.{i:02d}.weight": np.zeros(1, np.float32) for i in range(13)}
    tensors["layer1.0.bn1.weight"] = np.zeros(9, np.float32)
    tensors["layer1.0.conv2.weight"] = np.zeros(9, np.float32)  # of another rank
    with pytest.raises(WeightsError) as error:
        from_torch(tensors, abstract(variables))
    text = str(error.value)
    assert "\n" not in text
    assert "missing: bn1.running_mean, layer1.0.conv1.weight; unused: extra.00.weight" in text
    assert "extra.09.weight and 3 more; shape: " in text
    assert "layer1.0.bn1.weight source [9] expected [4]" in text
    assert "layer1.0.conv2.weight source [9] expected [4, 4, 3, 3]" in text
    assert "num_classes=" not in text
    assert "in_channels=" not in text
    # counters are ignored, whether they are there or not
    from_torch(
        {k: v for k, v in to_torch(variables).items() if "num_batches" not in k},
        abstract(variables),
    )


def test_a_file_of_another_kind_of_network_is_told():
    tensors = to_torch(tree(GROUPNORM))
    with pytest.raises(WeightsError, match=r"timm's resnetv2\.py, which has no counterpart of"):
        from_torch(tensors, abstract(tree(BASIC)))
    with pytest.raises(WeightsError, match=r"in no known layout .* 2 tensors named a, b"):
        detect(["b", "a"])
    with pytest.raises(WeightsError, match="'torhc': did you mean 'torch'"):
        from_torch(tensors, {}, layout="torhc")
    odd = tree(BASIC | conv("layer1_0/mystery", 1, 1, 2, 2))
    for export in (layout_of, to_torch):
        with pytest.raises(WeightsError, match=r"counterpart of params/layer1_0/mystery/kernel$"):
            export(odd)


@pytest.mark.parametrize(
    ("layout", "shapes", "head"),
    [("torch", BASIC, "fc"), ("bit", GROUPNORM, "fc"), ("torch", VGG, "classifier_6")],
)
def test_another_number_of_classes_keeps_the_initial_head(layout, shapes, head):
    source = tree(shapes)
    tensors = to_torch(source, layout)
    wanted = tree({**shapes, f"params/{head}/kernel": (6, 2), f"params/{head}/bias": (2,)})
    with pytest.raises(WeightsError, match=r"num_classes=2 asks for a fresh head .* 5 classes"):
        from_torch(tensors, abstract(wanted))
    filled = from_torch(tensors, abstract(wanted), initial=wanted)
    assert filled["params"][head]["kernel"] is wanted["params"][head]["kernel"]
    assert filled["params"][head]["bias"] is wanted["params"][head]["bias"]
    filled["params"][head] = source["params"][head]
    assert_same(filled, source)
    # the same number: the file's head, whatever stands by
    assert_same(from_torch(tensors, abstract(source), initial=tree(shapes, np.float64)), source)
    # only the head may differ
    if "bn1.weight" in tensors:
        tensors["bn1.weight"] = np.zeros(9, np.float32)
        with pytest.raises(WeightsError, match=r"network: shape: bn1\.weight source \[9\]"):
            from_torch(tensors, abstract(wanted), initial=wanted)


def test_weights_without_a_head_take_the_initial_one():
    variables = tree(BASIC)
    tensors = {k: v for k, v in to_torch(variables).items() if not k.startswith("fc")}
    with pytest.raises(WeightsError, match=r"missing: fc\.bias, fc\.weight; num_classes=5 asks"):
        from_torch(tensors, abstract(variables))
    assert_same(from_torch(tensors, abstract(variables), initial=variables), variables)


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("shapes", [BASIC, DEEP, VGG], ids=["basic", "deep", "vgg"])
def test_the_stem_is_adapted_to_other_channels(shapes, channels):
    source = tree(shapes)
    tensors = to_torch(source)
    name, stem = next(
        (path.split("/")[1], shape) for path, shape in shapes.items() if len(shape) == 4
    )
    wanted = tree({**shapes, f"params/{name}/kernel": (*stem[:2], channels, stem[3])})
    kernel = source["params"][name]["kernel"]
    if channels != 3:
        with pytest.raises(WeightsError, match=f"in_channels={channels} adapts .* from 3 channels"):
            from_torch(tensors, abstract(wanted))
    adapted = from_torch(tensors, abstract(wanted), adapt_stem=True)["params"][name]["kernel"]
    if channels == 1:
        expected = kernel[:, :, :1] + kernel[:, :, 1:2] + kernel[:, :, 2:]
        np.testing.assert_allclose(adapted, expected, rtol=1e-6, atol=1e-6)
    else:
        for channel in range(channels):
            expected = kernel[:, :, channel % 3] * np.float32(3 / channels)
            np.testing.assert_array_equal(adapted[:, :, channel], expected)


def test_adapted_stem_equals_timm():
    manipulate = pytest.importorskip("timm.models._manipulate", reason="timm is not installed")
    import torch

    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 8)).astype(np.float32)
    for channels in (1, 2, 3, 4, 6, 7):
        theirs = manipulate.adapt_input_conv(channels, torch.tensor(kernel).permute(3, 2, 0, 1))
        ours = adapt_channels(kernel, channels).transpose(3, 2, 0, 1)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-7)


def test_what_is_written_for_bit_is_read_by_timm(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    state = timm.create_model("resnetv2_50x1_bit", num_classes=5).state_dict()
    state = {k: v.numpy() for k, v in state.items()}
    variables = from_torch(state, abstract_of_timm(state))
    np.savez(tmp_path / "bit.npz", **to_torch(variables, "bit"))
    other = timm.create_model("resnetv2_50x1_bit", num_classes=5)
    other.load_pretrained(tmp_path / "bit.npz")
    for name, tensor in other.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name], err_msg=name)
    assert_same(from_torch(read_tensors(tmp_path / "bit.npz"), abstract(variables)), variables)


REAL = (
    "resnet18 resnet50d seresnet50 ecaresnet26t resnetrs50 resnetblur50 resnext50_32x4d "
    "resnetv2_50 resnetv2_50x1_bit resnetv2_50d_evos resnetv2_50d_frn resnetv2_18d vgg11_bn alexnet"
)


@pytest.mark.parametrize("name", REAL.split())
def test_every_tensor_of_timm_and_torchvision_has_its_own_leaf(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    import torch

    with torch.device("meta"):
        create = (
            timm.create_model if "res" in name or "eca" in name else torchvision.models.get_model
        )
        module = create(name)
    # small numbers of the right shapes: a broadcast needs no memory
    state = {k: np.broadcast_to(np.float32(0.5), v.shape) for k, v in module.state_dict().items()}
    filled = from_torch(state, abstract_of_timm(state))
    back = to_torch(filled)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}


def abstract_of_timm(state):
    shapes = {flax_path(k, v.shape): flax_shape(k, v.shape) for k, v in state.items()}
    shapes.pop(None, None)
    variables = {}
    for path, shape in shapes.items():
        *folders, leaf = path.split("/")
        inner = variables
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = jax.ShapeDtypeStruct(shape, np.float32)
    return variables


def flax_path(name, shape):
    """The rule of names, in the other direction and by other means than the tables."""
    module, _, leaf = name.rpartition(".")
    if leaf == "num_batches_tracked":
        return None
    kernel = len(shape) > 1
    leaf = {
        "weight": "kernel" if kernel else "scale",
        "running_mean": "mean",
        "running_var": "var",
    }.get(leaf, leaf)
    if module.startswith("stages."):
        stage, block, rest = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", module).groups()
        module = (
            f"layer{int(stage) + 1}.{block}.{rest.replace('downsample.conv', 'downsample_conv')}"
        )
    stem = {
        "conv": "conv1",
        "conv1": "conv1.0",
        "norm1": "conv1.1",
        "conv2": "conv1.3",
        "norm2": "conv1.4",
    }
    if module.startswith("stem."):
        module = {**stem, "conv3": "conv1.6"}[module[5:]]
    module = module.removeprefix("head.")
    module = re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/")
    return f"{'batch_stats' if leaf in ('mean', 'var') else 'params'}/{module}/{leaf}"


def flax_shape(name, shape):
    if len(shape) == 3:
        return shape[2:]
    if ".se." in name or name.startswith(("fc", "head.fc", "classifier")):
        return shape[1::-1]
    return shape[2:] + shape[1::-1] if len(shape) == 4 else shape


# Files


def test_safetensors_of_every_dtype_are_read(tmp_path):
    draw = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    tensors = {
        "half": draw.astype(np.float16),
        "single": draw,
        "double": draw.astype(np.float64) + 1e-12,
        "count": np.zeros((), np.int64),
    }
    path = tmp_path / "w.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    read = read_tensors(path)
    expected = {**tensors, "half": tensors["half"].astype(np.float32)}
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)
    assert b'"format":"pt"' in path.read_bytes()


def test_bfloat16_safetensors_are_read(tmp_path):
    values = np.array([[1.0, -2.5, 3e38], [1e-40, -0.0, 0.1]]).astype(ml_dtypes.bfloat16)
    data = values.tobytes()
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, len(data)]}}
    ).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    read = read_tensors(path)["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_npz_is_read_and_a_common_prefix_dropped(tmp_path):
    np.savez(tmp_path / "w.npz", **{"module.a": np.float16([1, 2]), "module.b": np.arange(3)})
    read = read_tensors(tmp_path / "w.npz")
    assert {k: (v.dtype, v.tolist()) for k, v in read.items()} == {
        "a": (np.float32, [1, 2]),
        "b": (np.int64, [0, 1, 2]),
    }
    np.savez(tmp_path / "w.npz", **{"module.a": np.zeros(1), "b": np.zeros(1)})
    assert set(read_tensors(tmp_path / "w.npz")) == {"module.a", "b"}


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def malformed(folder):
    """File name -> (how to write it, what the line says)."""
    ran = folder / "ran"
    safetensors = save({"w": np.arange(100, dtype=np.float32)})
    bad = {"good": np.zeros(2, np.float32), "bad": np.array([1, np.nan], np.float32)}
    infinite = {"bad": np.array([np.inf])}

    def npz(path, **arrays):
        with path.open("wb") as file:
            np.savez(file, **arrays)

    def cut_npz(path):
        npz(path, w=np.random.default_rng(0).normal(size=1000))
        path.write_bytes(path.read_bytes()[:4000])

    def flipped_npz(path):
        npz(path, w=np.random.default_rng(0).normal(size=1000))
        content = bytearray(path.read_bytes())
        content[4000] ^= 1
        path.write_bytes(content)

    def npy(path):
        with path.open("wb") as file:
            np.save(file, np.zeros(3))

    def zipped(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "not an array")

    fp8 = {"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    fp8 = struct.pack("<Q", len(json.dumps(fp8))) + json.dumps(fp8).encode() + b"\0"
    return {
        "cut.safetensors": (lambda p: p.write_bytes(safetensors[:-7]), "no intact safetensors"),
        "short.safetensors": (lambda p: p.write_bytes(b"abc"), "no intact safetensors"),
        "zero.safetensors": (lambda p: p.touch(), "no intact safetensors"),
        "huge.safetensors": (lambda p: p.write_bytes(b"\xff" * 64), "no intact safetensors"),
        "html.safetensors": (lambda p: p.write_text("<html>" * 20), "no intact safetensors"),
        "pickle.safetensors": (lambda p: p.write_bytes(pickle.dumps(Malicious(ran))), "no intact"),
        "none.safetensors": (lambda p: p.write_bytes(save({})), "holds no tensors"),
        "fp8.safetensors": (lambda p: p.write_bytes(fp8), "tensor w is of dtype F8_E4M3"),
        "nan.safetensors": (lambda p: save_file(bad, p), "tensor bad holds .* not finite"),
        "inf.npz": (lambda p: npz(p, **infinite), "tensor bad holds .* not finite"),
        "cut.npz": (cut_npz, "no intact npz"),
        "flipped.npz": (flipped_npz, "no intact npz"),
        "zero.npz": (lambda p: p.touch(), "no intact npz"),
        "text.npz": (lambda p: p.write_text("hello"), "no intact npz"),
        "pickle.npz": (lambda p: p.write_bytes(pickle.dumps(Malicious(ran))), "no intact npz"),
        "object.npz": (lambda p: npz(p, w=np.array([Malicious(ran)])), "no intact npz"),
        "array.npz": (npy, "a single array"),
        "zip.npz": (zipped, "tensor readme.txt is of dtype bytes"),
        "string.npz": (lambda p: npz(p, w=np.array(["a"])), "tensor w is of dtype <U1"),
        "complex.npz": (lambda p: npz(p, w=np.array([1j])), "tensor w is of dtype complex128"),
        "none.npz": (lambda p: npz(p), "holds no tensors"),
        "folder.npz": (lambda p: p.mkdir(), "is a folder"),
        "absent.pth": (lambda p: None, "no such file"),
        "w.h5": (lambda p: p.touch(), "unknown suffix '.h5', allowed: .safetensors, .pth"),
        "w": (lambda p: p.touch(), "unknown suffix ''"),
    }


@pytest.mark.parametrize("name", malformed(ROOT))
def test_a_malformed_file_is_one_line(tmp_path, name):
    write, says = malformed(tmp_path)[name]
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=says) as error:
        read_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
def test_without_torch_its_files_name_the_extra(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises(
        WeightsError, match=r"\.pth files need torch: pip install 'flax_resnet\[torch\]'"
    ):
        read_tensors(tmp_path / "w.pth")


@needs_torch
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_files_of_torch_are_unwrapped(tmp_path, suffix):
    import torch

    path = tmp_path / f"w{suffix}"
    state = {"a": torch.arange(3.0), "n": torch.zeros((), dtype=torch.int64)}
    average = {"n_averaged": torch.tensor(5), "module.a": torch.full((3,), 9.0)}
    for saved, expected in [
        (state, [0, 1, 2]),
        ({"state_dict": state, "epoch": 3}, [0, 1, 2]),
        ({"model": {f"module.{k}": v for k, v in state.items()}}, [0, 1, 2]),
        ({"model": state, "model_ema": average}, [9, 9, 9]),
        ({"state_dict": state, "state_dict_ema": {"a": state["a"].bfloat16() + 8}}, [8, 9, 10]),
        ({"a": state["a"].half().requires_grad_()}, [0, 1, 2]),
    ]:
        torch.save(saved, path)
        read = read_tensors(path)
        assert set(read) <= {"a", "n"}
        assert read["a"].dtype == np.float32
        assert read["a"].tolist() == expected


@needs_torch
def test_malformed_files_of_torch_are_one_line_and_run_nothing(tmp_path):
    import torch

    ran, path = tmp_path / "ran", tmp_path / "w.pth"

    def refuses(says):
        with pytest.raises(WeightsError, match=says) as error:
            read_tensors(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert not ran.exists()

    for legacy in (False, True):
        torch.save({"a": Malicious(ran)}, path, _use_new_zipfile_serialization=not legacy)
        refuses("refused, holds more than tensors")
    path.write_bytes(pickle.dumps(Malicious(ran)))
    refuses("refused")
    pickle.loads(path.read_bytes())
    assert ran.exists()  # it would have run
    ran.rmdir()
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    refuses("no intact file of torch")
    path.write_bytes(b"")
    refuses("no intact file of torch|refused")
    path.write_text("<html>")
    refuses("no intact file of torch|refused")
    torch.save([1, 2], path)
    refuses("holds a list, not named tensors")
    torch.save({"a": torch.zeros(1), "epoch": 3}, path)
    refuses("epoch is a int, not a tensor")
    torch.save({"a": torch.tensor([float("nan")])}, path)
    refuses("tensor a holds a number that is not finite")
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, path)
    refuses("tensor a")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": np.arange(6).reshape(2, 3).T})
    assert read_tensors(path)["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"weights .* cannot be written: .*No space left"):
            write_safetensors(path, {"a": np.zeros(9)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    os.link(path, tmp_path / "opened")  # whoever has the old file open goes on reading it
    write_safetensors(path, {"a": np.ones(1)})
    assert read_tensors(path)["a"].tolist() == [1]
    assert (tmp_path / "opened").read_bytes() == before
    with pytest.raises(OutputError, match="No such file"):
        write_safetensors(tmp_path / "absent" / "w.safetensors", {"a": np.zeros(1)})
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"weights .* cannot be written: .*directory"):
        write_safetensors(tmp_path / "d.safetensors", {"a": np.zeros(1)})
    with pytest.raises(OutputError, match="cannot be written"):
        write_safetensors(path, {"a": np.array([object()])})
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        write_safetensors(tmp_path / "w.npz", {})


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# The hub

CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "num_classes": 1000,
    },
}
FETCH = """
import sys, time
from flax_resnet.errors import WeightsError
from flax_resnet.weights import fetch, hub
hub.SECONDS = 1.0
start = time.perf_counter()
try:
    path, config = fetch(sys.argv[1])
    print(path, config["architecture"])
except WeightsError as error:
    print("WeightsError:", error)
print(time.perf_counter() - start)
"""


def fetched(home, name, **environment):
    """Runs fetch in a process of its own: huggingface_hub reads its environment when imported."""
    environment = {**os.environ, "HF_HOME": str(home), **environment}
    environment.pop("HF_HUB_CACHE", None)
    run = subprocess.run(
        [sys.executable, "-c", FETCH, name],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer, seconds = run.stdout.splitlines()
    return answer, float(seconds)


def cached(home, name, files):
    folder = home / "hub" / f"models--timm--{name}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    return snapshot


def nobody():
    """The address of a port at which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_come_from_the_cache_without_a_network(tmp_path, file):
    config = json.dumps(CONFIG).encode()
    snapshot = cached(tmp_path, "toy.a1", {file: b"weights", "config.json": config})
    answer, _ = fetched(tmp_path, "toy.a1", HF_ENDPOINT=nobody())
    assert answer == f"{snapshot / file} resnet18"


def test_a_broken_config_in_the_cache_is_one_line(tmp_path):
    snapshot = cached(tmp_path, "toy.a1", {"model.safetensors": b"w", "config.json": b"{"})
    answer, _ = fetched(tmp_path, "toy.a1", HF_ENDPOINT=nobody())
    assert answer.startswith(f"WeightsError: weights 'toy.a1': {snapshot / 'config.json'}: ")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_cache_and_network_one_line_comes_soon(tmp_path, offline):
    answer, seconds = fetched(tmp_path, "toy.a1", HF_ENDPOINT=nobody(), HF_HUB_OFFLINE=offline)
    assert seconds < 10
    assert answer.startswith(
        "WeightsError: cannot get model.safetensors of huggingface.co/timm/toy.a1, nor is it in the "
        f"cache {tmp_path / 'hub'}: "
    )
    assert answer.endswith("; download it elsewhere and name the file instead")


def test_a_network_that_never_answers_is_given_up_soon(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer, seconds = fetched(tmp_path, "toy.a1", HF_ENDPOINT=endpoint)
    assert answer.startswith("WeightsError: cannot get model.safetensors")
    assert seconds < 10


ON_THE_HUB = {
    "/timm/new.a1/resolve/main/model.safetensors": b"new weights",
    "/timm/new.a1/resolve/main/config.json": json.dumps(CONFIG).encode(),
    "/timm/old.a1/resolve/main/pytorch_model.bin": b"old weights",
    "/timm/old.a1/resolve/main/config.json": json.dumps(CONFIG).encode(),
    "/timm/bare.a1/resolve/main/model.safetensors": b"weights without a config",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub of two repositories, only one of which has safetensors."""

    def do_HEAD(self):
        path = self.path.replace("0" * 40, "main")
        content = ON_THE_HUB.get(path)
        known = any(name.startswith(path.split("resolve")[0]) for name in ON_THE_HUB)
        self.send_response(200 if content else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        if content:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_weights_are_downloaded_once(tmp_path, hub):
    for name, file in (("new.a1", "model.safetensors"), ("old.a1", "pytorch_model.bin")):
        answer, _ = fetched(tmp_path, name, HF_ENDPOINT=hub)
        path = tmp_path / "hub" / f"models--timm--{name}" / "snapshots" / ("0" * 40) / file
        assert answer == f"{path} resnet18"
        assert path.read_bytes().endswith(b"weights")
        again, _ = fetched(tmp_path, name, HF_ENDPOINT=nobody())
        assert again == answer
    answer, _ = fetched(tmp_path, "bare.a1", HF_ENDPOINT=hub)
    assert (
        answer == "WeightsError: weights 'bare.a1': huggingface.co/timm/bare.a1 has no config.json"
    )
    answer, _ = fetched(tmp_path, "none.a1", HF_ENDPOINT=hub)
    assert answer == "WeightsError: there are no weights huggingface.co/timm/none.a1"


def test_a_name_that_cannot_be_on_the_hub_is_one_line():
    with pytest.raises(WeightsError, match="no name of the hub"):
        fetch("a/b c")


# What is known of the weights


def test_weights_are_found_by_name():
    found = find("resnet50.a1_in1k")
    assert found == find("resnet50")  # the default of timm
    assert found.name == "resnet50.a1_in1k"
    assert (found.num_classes, found.image_size, found.crop_fraction) == (1000, 224, 0.95)
    assert (found.interpolation, found.test_image_size) == ("bicubic", 288)
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)
    bit = find("resnetv2_50x1_bit.goog_in21k")
    assert (bit.num_classes, bit.mean, bit.test_image_size) == (21843, (0.5, 0.5, 0.5), 224)
    assert find("resnet50.tv_in1k").interpolation == "bilinear"
    with pytest.raises(WeightsError, match=r"did you mean 'a1_in1k'.*allowed: a1_in1k, a1h_in1k"):
        find("resnet50.a1_in2k")
    with pytest.raises(WeightsError, match=r"'resnet05' on the hub: did you mean 'resnet50'"):
        find("resnet05.a1_in1k")


def test_the_table_is_whole():
    from flax_resnet.weights.catalog import _pretrained

    table = _pretrained()
    rows = [row for tags in table.values() for row in tags.values()]
    assert (len(table), len(rows)) == (78, 174)
    for row in rows:
        assert row.interpolation in ("bilinear", "bicubic")
        assert 0 < row.crop_fraction <= 1
        assert 0 < row.test_crop_fraction <= 1
        assert 128 <= row.image_size <= row.test_image_size <= 512
        assert len(row.mean) == len(row.std) == 3


def test_a_config_of_the_hub_is_read():
    read = from_config({**CONFIG, "label_names": ["a", "b", "c"]})
    assert read.name == "resnet18.a1_in1k"
    assert (read.num_classes, read.class_names) == (3, ("a", "b", "c"))
    assert (read.image_size, read.test_image_size) == (224, 288)
    assert (read.crop_fraction, read.test_crop_fraction) == (0.95, 0.95)
    assert (read.mean, read.std) == ((0.5,) * 3, (0.25,) * 3)
    flat = {"architecture": "resnet18", **CONFIG["pretrained_cfg"]}
    assert from_config(flat) == read._replace(num_classes=1000, class_names=())
    for key, value, says in [
        ("mean", 3, "config.json of the weights: "),
        ("crop_pct", 0, "must be above zero"),
        ("input_size", [3, 224, 192], "must be square"),
        ("input_size", None, "config.json of the weights: "),
    ]:
        with pytest.raises(WeightsError, match=says):
            from_config({**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], key: value}})
    with pytest.raises(WeightsError, match="has no 'input_size'"):
        from_config({})
    with pytest.raises(WeightsError, match=r"config\.json"):
        from_config({**CONFIG, "pretrained_cfg": None})


def test_imagenet_classes_are_in_the_usual_order():
    wnids, names = imagenet_classes()
    assert len(wnids) == len(names) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], names[0], names[207], names[999]) == (
        "n01440764",
        "tench",
        "golden retriever",
        "toilet tissue",
    )


def test_importing_the_room_is_cheap():
    code = "import sys, flax_resnet.weights; print(sorted(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not re.search(r"'(torch|safetensors|huggingface_hub)'", out.stdout)


def test_every_pattern_of_the_tables_serves():
    used = set()
    for layout, shapes in TREES.values():
        for path in shapes:
            module = path.partition("/")[2].rpartition("/")[0]
            used.add(
                (layout, next(p for p, _ in LAYOUTS[layout].modules if re.fullmatch(p, module)))
            )
    assert used == {(name, p) for name, layout in LAYOUTS.items() for p, _ in layout.modules}
