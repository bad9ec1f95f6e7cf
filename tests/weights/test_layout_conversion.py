"""Convert tensors to variables: dtypes, mismatches, a head with other classes, a stem with other channels."""

import jax
import numpy as np
import pytest
from conftest import refused
from layout_trees import BASIC, DEEP, GROUPNORM, VGG, abstract, assert_same, conv, tree

from flax_resnet.errors import WeightsError
from flax_resnet.weights import detect, from_torch, layout_of, to_torch
from flax_resnet.weights.layout_conversion import adapt_channels
from flax_resnet.weights.layouts import LAYOUTS


def test_converted_arrays_are_contiguous_copies_with_the_requested_dtype():
    variables = tree(BASIC)
    tensors = {k: v.astype(np.float64) for k, v in to_torch(variables).items()}
    filled = from_torch(tensors, abstract(variables))
    assert {x.dtype for x in jax.tree.leaves(filled)} == {np.dtype(np.float32)}
    tensors = to_torch(variables)
    filled = from_torch(tensors, abstract(variables))
    tensors["bn1.bias"][:] = 7
    assert not np.any(filled["params"]["bn1"]["bias"] == 7)
    assert all(x.flags.c_contiguous for x in jax.tree.leaves(filled))


def test_all_mismatches_are_reported_in_one_line():
    variables = tree(BASIC)
    tensors = to_torch(variables)
    del tensors["layer1.0.conv1.weight"], tensors["bn1.running_mean"]
    tensors |= {f"extra.{i:02d}.weight": np.zeros(1, np.float32) for i in range(13)}
    tensors["layer1.0.bn1.weight"] = np.zeros(9, np.float32)
    tensors["layer1.0.conv2.weight"] = np.zeros(9, np.float32)  # another rank
    with refused("weights", ..., WeightsError) as caught:
        from_torch(tensors, abstract(variables))
    _, *misfits = caught.value.problem.replace("network: ", "network; ").split("; ")
    assert misfits == [
        "missing: bn1.running_mean, layer1.0.conv1.weight",
        f"unused: {', '.join(f'extra.{i:02d}.weight' for i in range(10))} and 3 more",
        "shape: layer1.0.bn1.weight source [9] expected [4], "
        "layer1.0.conv2.weight source [9] expected [4, 4, 3, 3]",
    ]
    assert caught.value.cure == ""
    # The counters num_batches_tracked are optional.
    from_torch(
        {k: v for k, v in to_torch(variables).items() if "num_batches" not in k},
        abstract(variables),
    )


def test_the_error_names_the_layout_of_another_kind_of_network():
    tensors = to_torch(tree(GROUPNORM))
    with refused("weights", ..., WeightsError) as caught:
        from_torch(tensors, abstract(tree(BASIC)))
    assert LAYOUTS["timm_v2"].title in caught.value.problem
    assert "batch_stats/bn1/mean" in caught.value.problem  # the layout has no tensor for it
    assert "do not fit" not in caught.value.problem


def test_an_unknown_layout_is_refused():
    with refused("weights", ..., WeightsError) as caught:
        detect(["b", "a"])
    assert "2 tensors named a, b " in caught.value.problem
    assert caught.value.allowed == tuple(LAYOUTS)
    with refused("layout", "torhc", WeightsError) as caught:
        from_torch({}, {}, layout="torhc")
    assert caught.value.allowed == tuple(LAYOUTS)


def test_export_names_a_leaf_without_a_torch_tensor():
    odd = tree(BASIC | conv("layer1_0/mystery", 1, 1, 2, 2))
    for export in (layout_of, to_torch, lambda tree: to_torch(tree, "torch")):
        with refused("variables", ..., WeightsError) as caught:
            export(odd)
        # The message names only this leaf.
        assert caught.value.problem.endswith(" of params/layer1_0/mystery/kernel")


@pytest.mark.parametrize(
    ("layout", "shapes", "head"),
    [("torch", BASIC, "fc"), ("bit", GROUPNORM, "fc"), ("torch", VGG, "classifier_6")],
)
def test_another_number_of_classes_keeps_the_initial_head(layout, shapes, head):
    source = tree(shapes)
    tensors = to_torch(source, layout)
    wanted = tree({**shapes, f"params/{head}/kernel": (6, 2), f"params/{head}/bias": (2,)})
    with refused("weights", ..., WeightsError) as caught:
        from_torch(tensors, abstract(wanted))
    assert "num_classes=2 " in caught.value.cure
    assert "5 classes" in caught.value.cure
    assert "in_channels=" not in caught.value.cure
    filled = from_torch(tensors, abstract(wanted), initial=wanted)
    assert filled["params"][head]["kernel"] is wanted["params"][head]["kernel"]
    assert filled["params"][head]["bias"] is wanted["params"][head]["bias"]
    filled["params"][head] = source["params"][head]
    assert_same(filled, source)
    # With the same number of classes, the file's head is used and `initial` is ignored.
    assert_same(from_torch(tensors, abstract(source), initial=tree(shapes, np.float64)), source)
    # Other tensors than the head must fit.
    if "bn1.weight" in tensors:
        tensors["bn1.weight"] = np.zeros(9, np.float32)
        with refused("weights", ..., WeightsError) as caught:
            from_torch(tensors, abstract(wanted), initial=wanted)
        assert caught.value.problem.endswith("network: shape: bn1.weight source [9] expected [4]")


def test_weights_without_a_head_keep_the_initial_head():
    variables = tree(BASIC)
    tensors = {k: v for k, v in to_torch(variables).items() if not k.startswith("fc")}
    with refused("weights", ..., WeightsError) as caught:
        from_torch(tensors, abstract(variables))
    assert caught.value.problem.endswith("network: missing: fc.bias, fc.weight")
    assert "num_classes=5 " in caught.value.cure
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
        with refused("weights", ..., WeightsError) as caught:
            from_torch(tensors, abstract(wanted))
        assert f"in_channels={channels} " in caught.value.cure
        assert "3 channels" in caught.value.cure
        assert "num_classes=" not in caught.value.cure
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
