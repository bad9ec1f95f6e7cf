"""Every network of the registry, by shapes alone: counts, dtypes, features, and what is refused."""

import csv

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, refused

from flax_resnet import create_model, list_models
from flax_resnet.errors import ConfigError
from flax_resnet.models.airbench import AIRBENCH
from flax_resnet.models.baselines import BASELINES
from flax_resnet.models.variants import VARIANTS

# timm 1.0's counts for its resnet.py and resnetv2.py, torchvision's for VGG and AlexNet; for the CIFAR
# networks plain arithmetic over the papers' architectures, running statistics not stated.
COUNTS = {
    row["name"]: (int(row["parameters"]), row["running_statistics"])
    for row in csv.DictReader((ROOT / "tests" / "models" / "parameter_counts.csv").open())
}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def is_block(name):
    return name is not None and name.startswith("layer")


def shapes_of(model, size, **call):
    image = jax.ShapeDtypeStruct((2, size, size, model.in_channels), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init_with_output(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, mutable=True, **call
        ),
        image,
    )


DEEPEST = ("preact1001", "resnet1202")  # traced in 12 s each


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in DEEPEST else n for n in list_models()],
)
def test_every_network(name):
    """Parameters, statistics, logits and what each block puts out, computing in bfloat16."""
    model = create_model(name, dtype="bfloat16")
    size = 224 if name in BASELINES else 32
    logits, variables = shapes_of(
        model, size, train=True, capture_intermediates=lambda m, method: is_block(m.name)
    )
    assert logits.shape == (2, model.num_classes)
    assert logits.dtype == jnp.float32
    blocks = variables.pop("intermediates", {})
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    if name in VARIANTS:
        assert len(blocks) == sum(model.depths)
        assert {out["__call__"][0].dtype for out in blocks.values()} == {jnp.dtype("bfloat16")}
    if name in COUNTS:
        parameters, statistics = COUNTS[name]
        assert count(variables["params"]) == parameters
        if statistics:
            assert count(variables.get("batch_stats", {})) == int(statistics)


def test_the_table_of_counts_is_whole():
    assert len(set(COUNTS) & set(VARIANTS)) == 101 + 19
    assert set(COUNTS) >= {*BASELINES, *AIRBENCH}


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 272_474), (32, 466_906), (44, 661_338), (56, 855_770), (110, 1_730_714)],
)
def test_option_b_of_the_cifar_networks(depth, parameters):
    model = create_model(f"resnet{depth}", shortcut="projection")
    assert count(shapes_of(model, 32)[1]["params"]) == parameters


def test_plain_networks_have_what_their_residual_twins_have_but_shortcuts():
    for plain, twin in (("plain20", "resnet20"), ("plain34", "resnet34")):
        ours, theirs = (shapes_of(create_model(n), 32)[1]["params"] for n in (plain, twin))
        kept = {
            k: {m: v for m, v in block.items() if not m.startswith("downsample")}
            for k, block in theirs.items()
        }
        assert ours == kept


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50d", "senet154", "resnetblur50", "resnetaa50d", "resnetrs50", "resnetv2_50d",
     "resnetv2_50x1_bit", "test_resnet", "resnet20", "wrn16_4", "resnet18_cifar", "vgg11", "alexnet"],
)  # fmt: skip
def test_features_have_the_strides_and_channels_they_say(name):
    model = create_model(name)
    info = model.feature_info()
    size = 224 if name == "alexnet" else 64
    found, _ = shapes_of(model, size, train=False, features=tuple(info))
    assert list(info)[-2:] == ["pre_logits", "logits"]
    for feature, (stride, channels) in info.items():
        shape = found[feature].shape
        assert shape[-1] == channels
        if name != "alexnet":  # its unpadded windows lose the edge
            assert shape == ((2, 64 // stride, 64 // stride, channels) if stride else (2, channels))
    only, _ = shapes_of(model, size, train=False, features=("pre_logits",))
    assert list(only) == ["pre_logits"]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50d", "senet154", "resnetblur50", "resnetv2_50d"]
)
def test_dilated_networks(name, output_stride):
    model = create_model(name, output_stride=output_stride)
    assert model.feature_info()["stage4"][0] == output_stride
    found, variables = shapes_of(model, 64, train=False, features=("stage4",))
    assert found["stage4"].shape[1] == 64 // output_stride
    assert count(variables["params"]) == COUNTS[name][0]  # dilation costs nothing


@pytest.mark.parametrize("size", [33, 40, 100, 200])
def test_filtered_networks_take_odd_maps(size):
    for name in ("resnetaa50", "resnetaa50d", "resnetblur50d"):
        assert shapes_of(create_model(name), size)[0].shape == (2, 1000)


def test_any_depths_and_widths_by_hand():
    model = create_model("resnet50", depths=(1, 2), widths=[8, 24], num_classes=3, in_channels=5)
    logits, variables = shapes_of(model, 32, train=False)
    assert logits.shape == (2, 3)
    assert set(variables["params"]) == {"conv1", "bn1", "layer1_0", "layer2_0", "layer2_1", "fc"}
    assert variables["params"]["conv1"]["kernel"].shape == (7, 7, 5, 8)
    assert variables["params"]["fc"]["kernel"].shape == (96, 3)


def test_without_a_head_the_pooled_map_comes_out():
    assert shapes_of(create_model("resnet18", num_classes=0), 64)[0].shape == (2, 512)
    model = create_model("resnet18", num_classes=0, global_pool="none")
    assert shapes_of(model, 64)[0].shape == (2, 2, 2, 512)


@pytest.mark.parametrize(
    ("name", "options", "allowed"),
    [
        ("resnet18", {"stem": "cifra"}, "cifar"),
        ("resnet18", {"num_classes": -1}, "between 0"),
        ("resnet18", {"num_classes": 2.5}, "a whole number"),
        ("resnet18", {"num_classes": True}, "a whole number"),
        ("resnet18", {"zero_init_last": 1}, "True or False"),
        ("resnet18", {"dropout": 1.0}, "below 1"),
        ("resnet18", {"dropout": "much"}, "a number"),
        ("resnet18", {"widths": 64}, "one per stage"),
        ("resnet18", {"widths": ()}, "one per stage"),
        ("resnet18", {"depths": (2, 0, 2, 2)}, "from 1"),
        ("resnet18", {"output_stride": 4}, "8"),
        ("resnet18", {"dtype": "int8"}, "float16"),
        ("resnet18", {"dtype": "floaty"}, "float32"),
        ("resnet18", {"dtype": None}, "float32"),
        ("resnet18", {"norm_epsilon": float("nan")}, "above 0"),
        ("resnet18", {"standardize": "x"}, "a number"),
    ],
)
def test_wrong_values_are_refused(name, options, allowed):
    ((key, value),) = options.items()
    with refused(f"model.{key}", kind=ConfigError) as error:
        create_model(name, **options)
    assert error.value.value is value
    assert allowed in error.value.allowed


@pytest.mark.parametrize("choice", ["bsic", "preact"])
def test_a_wrong_block_is_named_among_the_others(choice):
    blocks = ("basic", choice, "basic", "basic")
    with refused("model.block", choice, ConfigError) as error:
        create_model("resnet18", block=blocks)
    assert str(blocks) in error.value.problem
    assert "basic" in error.value.allowed


@pytest.mark.parametrize(
    ("name", "options", "cure"),
    [
        ("resnet18", {"num_class": 3}, "'num_classes'"),
        ("resnet18", {"block_widths": ((1, 1),)}, ""),
    ],
)
def test_unknown_options_are_refused(name, options, cure):
    ((key, value),) = options.items()
    with refused(f"model.{key}", value, ConfigError) as error:
        create_model(name, **options)
    assert name in error.value.problem
    assert cure in error.value.cure


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "'resnet18'"), ("transformer", None), (5, None)]
)
def test_unknown_networks_are_refused(name, near):
    with refused("model.name", name, ConfigError) as error:
        create_model(name)
    assert near in error.value.cure if near else not error.value.cure


@pytest.mark.parametrize(
    ("name", "options", "key", "other"),
    [
        ("resnet18", {"depths": (2, 2)}, "depths", "widths"),
        ("resnet18", {"block": ("basic", "basic")}, "block", "depths"),
        ("test_resnet", {"block": ("basic", "preact_basic", "basic", "basic")}, "block", None),
        ("resnet18", {"cardinality": 32}, "cardinality", "block"),
        ("resnet18", {"base_width": 128}, "base_width", "block"),
        ("resnext50_32x4d", {"block": "basic"}, "cardinality", "block"),
        ("resnet18", {"stride_first": True}, "stride_first", "block"),
        ("resnet50_v1", {"anti_alias": "blur"}, "stride_first", "anti_alias"),
        ("resnetv2_50", {"anti_alias": "blur"}, "anti_alias", "block"),
        ("resnetv2_50d_evos", {"act": "silu"}, "act", "norm"),
        ("resnet50d", {"shortcut_size": 3}, "shortcut_size", "shortcut"),
        ("resnetv2_50", {"shortcut_size": 3}, "shortcut_size", "block"),
        ("senet154", {"shortcut": "average"}, "shortcut_size", "shortcut"),
        ("plain18", {"zero_init_last": True}, "zero_init_last", "shortcut"),
        ("plain18", {"drop_path": 0.1}, "drop_path", "shortcut"),
        ("resnetblur18", {"stem_pool": "max_zero"}, "stem_pool", "anti_alias"),
        ("resnet18", {"global_pool": "none"}, "global_pool", "num_classes"),
        ("resnet18", {"num_classes": 0, "dropout": 0.1}, "dropout", "num_classes"),
        ("resnet18_cifar", {"output_stride": 8}, "output_stride", "stem"),
        ("ecaresnet50d_pruned", {"depths": (3, 4, 6, 2)}, "depths", "block_widths"),
        ("ecaresnet50d_pruned", {"widths": (8, 16, 32, 64)}, "widths", "block_widths"),
        ("ecaresnet50d_pruned", {"base_width": 128}, "base_width", "block_widths"),
    ],
)
def test_options_that_clash_are_refused(name, options, key, other):
    """Each is allowed, but not together."""
    with refused(f"model.{key}", kind=ConfigError) as error:
        create_model(name, **options)
    assert name in error.value.problem
    assert f"model.{other}=" in error.value.allowed if other else not error.value.allowed


@pytest.mark.parametrize(
    ("name", "options", "key", "value"),
    [
        ("ecaresnet50d_pruned", {"scan_blocks": True}, "scan_blocks", True),
        ("resnext50_32x4d", {"widths": (4, 4, 4, 4)}, "widths", (4, 4, 4, 4)),
        ("resnet50d", {"stem_width": 1}, "stem_width", 1),
        ("resnet50", {"cardinality": 32, "reduce_first": 3}, "cardinality", 32),
        ("resnet18", {"shortcut": "pad", "widths": (64, 32, 16, 8)}, "shortcut", "pad"),
    ],
)
def test_blocks_that_cannot_be_built_are_refused(name, options, key, value):
    with refused(f"model.{key}", value, ConfigError) as error:
        create_model(name, **options)
    assert name in error.value.problem


def test_wrong_calls_are_refused():
    model = create_model("resnet18")
    with refused("features", "stage11", ConfigError) as error:
        shapes_of(model, 32, features=("stage11",))
    assert "stage1" in error.value.allowed
    with refused("images", (1, 32, 32, 1), ConfigError) as error:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    assert "model.in_channels=3" in error.value.allowed
    with refused("images", (2, 16, 16, 3), ConfigError):
        shapes_of(create_model("vgg11"), 16)
