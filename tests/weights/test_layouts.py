"""The tables of names: every leaf there and back, the names of the other side, and those of timm."""

import re

import jax
import numpy as np
import pytest
from layout_trees import BASIC, DEEP, EVONORM, GROUPNORM, TREES, abstract, assert_same, tree

from flax_resnet.weights import detect, from_torch, layout_of, read_tensors, to_torch
from flax_resnet.weights.layouts import LAYOUTS


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


def test_every_pattern_of_the_tables_serves():
    used = set()
    for layout, shapes in TREES.values():
        for path in shapes:
            module = path.partition("/")[2].rpartition("/")[0]
            used.add(
                (layout, next(p for p, _ in LAYOUTS[layout].modules if re.fullmatch(p, module)))
            )
    assert used == {(name, p) for name, layout in LAYOUTS.items() for p, _ in layout.modules}


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
