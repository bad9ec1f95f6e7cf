"""Options of networks: each row of each registry, options that a network does not use, and those that are set."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import refused

from flax_resnet import create_model, list_models
from flax_resnet.config import default_config, freeze, override
from flax_resnet.errors import ConfigError
from flax_resnet.models.blocks import BLOCKS
from flax_resnet.models.layers.activations import ACTIVATIONS
from flax_resnet.models.layers.attention import ATTENTION
from flax_resnet.models.layers.normalization import NORMS
from flax_resnet.models.layers.pooling import ANTI_ALIAS, GLOBAL_POOLS
from flax_resnet.models.model_section import Model
from flax_resnet.models.shortcuts import SHORTCUTS
from flax_resnet.models.stems import STEM_POOLS, STEMS
from flax_resnet.settings import UNSET
from flax_resnet.training.state import build_model

REGISTRIES = {
    "block": BLOCKS,
    "stem": STEMS,
    "stem_pool": STEM_POOLS,
    "shortcut": SHORTCUTS,
    "attention": ATTENTION,
    "anti_alias": ANTI_ALIAS,
    "act": ACTIVATIONS,
    "norm": NORMS,
    "global_pool": GLOBAL_POOLS,
}
ROWS = [(option, row) for option, registry in REGISTRIES.items() for row in registry.values()]
# More options that a row needs.
NEEDS = {("global_pool", "none"): {"num_classes": 0}}
SMALL = {"depths": (1, 2), "widths": (8, 16)}


def shapes_of(model):
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init_with_output(
            jax.random.key(0), x, features=tuple(model.feature_info())
        ),
        image,
    )


@pytest.mark.parametrize(("option", "row"), ROWS, ids=lambda x: getattr(x, "name", x))
def test_every_row_builds_a_network(option, row):
    options = {option: row.name, "num_classes": 3, **NEEDS.get((option, row.name), {})}
    model = create_model("resnet50", **SMALL, **options)
    assert row.help
    assert getattr(model, option) == row.name
    found, _ = shapes_of(model)
    for name, (stride, channels) in model.feature_info().items():
        side = 32 // stride if stride else 0
        assert found[name].shape == ((2, side, side, channels) if stride else (2, channels))


@pytest.mark.parametrize(
    ("name", "options", "unused", "owner"),
    [
        ("alexnet", {}, {"stem": "cifar"}, "model.name='alexnet'"),
        ("vgg16", {}, {"norm": "group"}, "model.name='vgg16'"),
        ("vgg16", {}, {"norm_momentum": 0.1}, "model.name='vgg16'"),
        ("vgg16", {}, {"norm_scope": "local"}, "model.name='vgg16'"),
        ("vgg16_bn", {}, {"zero_init_last": False}, "model.name='vgg16_bn'"),
        ("airbench94", {}, {"dropout": 0.0}, "model.name='airbench94'"),
        ("resnet50_gn", {}, {"norm_momentum": 0.1}, "model.norm='group'"),
        ("resnet50_gn", {}, {"norm_groups": 2}, "model.norm='group'"),
        ("resnet50_gn", {}, {"norm_scope": "global"}, "model.norm='group'"),
        ("resnet18", {"norm": "frozen"}, {"norm_momentum": 0.1}, "model.norm='frozen'"),
        ("resnet18", {"norm": "frn"}, {"norm_scope": "local"}, "model.norm='frn'"),
        ("resnet18", {}, {"attention_ratio": 0.25}, "model.attention='none'"),
        ("seresnet18", {"attention": "eca"}, {"attention_ratio": 0.25}, "model.attention='eca'"),
        ("resnet18", {}, {"norm_groups": 2}, "model.norm_scope"),
        ("resnet18", {"norm_scope": "local"}, {"norm_groups": 2}, "model.norm_scope='local'"),
    ],
)
def test_an_option_that_the_network_does_not_use_is_refused(name, options, unused, owner):
    create_model(name, **options)
    ((key, value),) = unused.items()
    with refused(f"model.{key}", value, ConfigError) as error:
        create_model(name, **options, **unused)
    assert owner in error.value.problem


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("airbench94", {"norm_momentum": 0.1, "norm_epsilon": 1e-5}),
        ("vgg11_bn", {"norm_momentum": 0.3, "norm_epsilon": 1e-3, "dropout": 0.0}),
        ("alexnet", {"dropout": 0.0}),
        ("resnet50_gn", {"norm_epsilon": 1e-3}),
        ("resnet18", {"attention": "se", "attention_ratio": 0.25}),
        ("seresnet18", {"attention": "none"}),
        ("resnetrs50", {"attention": "none"}),  # whose own ratio does not apply
        ("wrn16_4", {"dropout": 0.0, "zero_init_last": False, "output_stride": 32}),
    ],
)
def test_an_option_that_is_set_reaches_the_network(name, options):
    """Also if its value is another network's default."""
    model = create_model(name, **options)
    assert {key: getattr(model, key) for key in options} == options
    config = freeze({"model": {"name": name, **options}})
    assert config.model.options() == options
    assert build_model(config, 7) == model.clone(num_classes=7)


def test_batch_normalisation_takes_its_momentum_and_groups():
    images = jnp.ones((2, 32, 32, 3))

    def running_means(**options):
        model = create_model("resnet18", **SMALL, num_classes=3, **options)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
        train = jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])[1])
        return train(ones)["batch_stats"]["bn1"]["mean"]

    assert set(running_means(norm_momentum=0.0).tolist()) == {1.0}
    assert (running_means(norm_momentum=1.0) > 1).all()
    with refused("model.norm_groups", 4):
        running_means(norm_scope="ghost", norm_groups=4)


def test_local_normalisation_has_a_group_for_each_device():
    for name in ("resnet18", "vgg11_bn", "airbench94"):
        assert create_model(name, norm_scope="local").norm_groups == jax.device_count()
        assert create_model(name, norm_scope="global").norm_groups == 1
        assert create_model(name, norm_scope="ghost", norm_groups=4).norm_groups == 4


def test_attention_takes_its_ratio():
    def hidden(**options):
        params = shapes_of(create_model("resnet18", **SMALL, num_classes=3, **options))[1]["params"]
        return params["layer2_0"]["se"]["fc1"]["kernel"].shape

    assert hidden(attention="se") == (16, 8)
    assert hidden(attention="se", attention_ratio=2.0) == (16, 32)


def test_no_option_is_set_by_default():
    assert Model().options() == {}
    assert Model(zero_init_last=False, dropout=0.0).options() == {
        "zero_init_last": False,
        "dropout": 0.0,
    }
    for name in list_models("resnet18*"):
        config = freeze({"model": {"name": name}})
        assert build_model(config, 7) == create_model(name, num_classes=7)


def test_the_networks_say_whether_they_measure_batches():
    measured = {name: create_model(name).measures_batches for name in ("resnet18", "resnet50_gn")}
    assert measured == {"resnet18": True, "resnet50_gn": False}
    assert not create_model("resnet18", norm="frozen").measures_batches
    assert create_model("vgg11_bn").measures_batches
    assert not create_model("vgg11").measures_batches


@pytest.mark.parametrize(
    ("name", "stem", "depths"),
    [
        ("resnet50", "cifar", (1, 1)),
        ("airbench94", UNSET, UNSET),
        ("no such network", "cifar", (1, 1)),  # create_model refuses it
    ],
)
def test_options_of_the_recipe_that_another_network_does_not_have_do_not_apply(name, stem, depths):
    recipe = default_config()
    recipe.model.update({"stem": "cifar", "depths": (1, 1), "norm_momentum": 0.2})
    found = override(recipe.to_dict(), {"model.name": name})["model"]
    assert (found["stem"], found["depths"], found["norm_momentum"]) == (stem, depths, 0.2)
    kept = override(recipe.to_dict(), {"model.name": name, "model.stem": "deep"})["model"]
    assert kept["stem"] == "deep"


def test_the_section_survives_a_run_folder():
    section = Model(norm="frozen", norm_epsilon=1e-3, attention_ratio=0.25, act="silu")
    assert freeze({"model": dataclasses.asdict(section)}).model == section
