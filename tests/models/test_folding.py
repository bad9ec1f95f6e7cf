"""BatchNorm folded into convolutions leaves the logits as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused
from flax.core import freeze

from flax_resnet import create_model
from flax_resnet.errors import ConfigError
from flax_resnet.models.folding import fold_batch_norm
from flax_resnet.models.stacking import stack_blocks

SMALL = {"widths": (8, 8, 16, 16), "depths": (1, 2, 1, 1), "num_classes": 5}
# name: options, and the layers that are left as they were
NETWORKS = {
    "resnet18": (SMALL, 0),
    "seresnext50_32x4d": (SMALL | {"widths": (64, 64, 64, 64)}, 0),
    "resnetblur50": (SMALL, 0),
    "resnetv2_18": (SMALL | {"stem": "cifar"}, 6),  # the first of every block, and the last of all
    "plain20": ({"num_classes": 5}, 0),
    "vgg11_bn": ({"num_classes": 5}, 0),
}


def drawn(name, options):
    """A network, variables of which none is at its initial value, and images."""
    model = create_model(name, **options)
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.normal(size=(2, 32, 32, 3)), jnp.float32)

    def values(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(draw.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        return jnp.asarray(draw.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return model, jax.tree_util.tree_map_with_path(values, shapes), images


def logits(model, variables, images):
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_stay(name):
    options, left = NETWORKS[name]
    model, variables, images = drawn(name, options)
    folded = fold_batch_norm(model, variables)
    got, wanted = logits(model, folded, images), logits(model, variables, images)
    np.testing.assert_allclose(got, wanted, atol=2e-5 * float(jnp.abs(wanted).max()))
    assert len(jax.tree.leaves(folded["batch_stats"])) == 2 * left
    assert len(jax.tree.leaves(variables["batch_stats"])) > 2 * left  # what was given is as it was


def test_scanned_blocks_fold_alike():
    options = SMALL | {"depths": (1, 3, 1, 1)}
    model, variables, images = drawn("resnet18", options)
    as_loop = create_model("resnet18", **options, scan_blocks=True)
    folded = fold_batch_norm(as_loop, stack_blocks(variables))
    assert not jax.tree.leaves(folded["batch_stats"])
    got, wanted = logits(as_loop, folded, images), logits(model, variables, images)
    np.testing.assert_allclose(got, wanted, atol=2e-5 * float(jnp.abs(wanted).max()))


def test_standardised_convolutions_are_left_alone():
    model, variables, _ = drawn("resnet18", SMALL | {"standardize": 1e-6})
    folded = fold_batch_norm(model, variables)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, folded, variables))


def test_networks_without_batch_norm_are_left_alone():
    model, variables, _ = drawn("resnet18", SMALL | {"norm": "group"})
    assert jax.tree.all(jax.tree.map(jnp.array_equal, fold_batch_norm(model, variables), variables))


def test_training_is_refused():
    model, variables, images = drawn("resnet18", SMALL)
    folded = fold_batch_norm(model, variables)
    with refused("train", value=True, kind=ConfigError):
        model.apply(folded, images, train=True, mutable=["batch_stats"])


def test_what_is_folded_stays_and_frozen_dicts_fold():
    model, variables, _ = drawn("resnet18", SMALL)
    once = fold_batch_norm(model, variables)
    jax.tree.map(np.testing.assert_array_equal, fold_batch_norm(model, once), once)
    jax.tree.map(np.testing.assert_array_equal, fold_batch_norm(model, freeze(variables)), once)
