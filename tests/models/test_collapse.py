"""Networks train the same way with and without collapsed 1x1 convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import farthest_leaf, refused
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh
from untrained import initial

from flax_resnet import create_model
from flax_resnet.models.layers import normalization
from flax_resnet.ops.dispatch import operations
from flax_resnet.training import sharding

SMALL = {"widths": (8, 12), "depths": (1, 2), "num_classes": 5}
DEEP = {"widths": (8, 12, 16, 24), "depths": (1, 2, 1, 1)}
IMAGES = np.random.default_rng(0).normal(size=(8, 48, 48, 3))

# {name: (options, collapsed layers)}: a last 1x1 per bottleneck, and a projection per stage where it is a 1x1 with
# more outputs than inputs.
FAMILIES = {
    "bottleneck": ({"name": "resnet50"}, 3 + 2),
    "stride in the first 1x1": ({"name": "resnet50", "stride_first": True}, 3 + 2),
    "projections of basic blocks": ({"name": "resnet18"}, 1),
    "average-pooled projections, deep stem": ({"name": "resnet50d"}, 3 + 2),
    "grouped": ({"name": "resnext50_32x4d", "cardinality": 4, "base_width": 16}, 3 + 2),
    "wide": ({"name": "wide_resnet50_2"}, 3 + 2),
    "squeeze-and-excitation": ({"name": "seresnet50"}, 3 + 2),
    "efficient channel attention": ({"name": "resnet50", "attention": "eca"}, 3 + 2),
    "anti-aliased": ({"name": "resnet50", "anti_alias": "blur"}, 3 + 2),
    "dilated": ({"name": "resnet50", "output_stride": 8, **DEEP}, 5 + 4),
    "stochastic depth and dropout": (
        {"name": "resnet50", "drop_path": 0.5, "dropout": 0.3, "dropout_at": "blocks"},
        3 + 2,
    ),
    "SiLU": ({"name": "resnet50", "act": "silu"}, 3 + 2),
    "ghost statistics": ({"name": "resnet50", "norm_scope": "ghost", "norm_groups": 4}, 3 + 2),
    "recomputed blocks": ({"name": "resnet50", "remat": "block"}, 3 + 2),
    "stacked blocks": ({"name": "resnet50", "scan_blocks": True}, 3 + 2),
}
NEVER = {
    "pre-activation": {"name": "resnetv2_50"},
    "frozen": {"name": "resnet50", "norm": "frozen"},
    "group normalisation": {"name": "resnet50", "norm": "group"},
}


@pytest.fixture
def taken(monkeypatch):
    """The shapes (inputs, outputs) of the layers that were collapsed, once per trace."""
    shapes, real = [], normalization.collapsed_batch_norm

    def recorded(x, kernel, *args):
        shapes.append(kernel.shape)
        return real(x, kernel, *args)

    monkeypatch.setattr(normalization, "collapsed_batch_norm", recorded)
    return shapes


def made(name, dtype="float64", **options):
    return create_model(name, **{**SMALL, **options}, dtype=dtype)


def step(model, variables, images=IMAGES):
    """Return the loss, its gradient and the new statistics of a training step."""

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params},
            jnp.asarray(images, model.dtype),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return (logits**2).mean(), updated

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def variables_of(model):
    return jax.tree.map(lambda leaf: leaf.astype("float64"), initial(model))


def one_device():
    """As on one GPU; the tests have eight devices."""
    return use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Auto,)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_gradient_and_statistics_are_those_of_the_usual_form(family, taken):
    options, count = FAMILIES[family]
    with jax.enable_x64(True):
        variables = variables_of(made(**options))
        usual = step(made(**options, collapse="off"), variables)
        assert not taken
        collapsed = step(made(**options, collapse="on"), variables)
        scanned = "scan_blocks" in options
        assert len(taken) >= count - scanned, taken
        assert farthest_leaf(collapsed, usual) < 1e-8


@pytest.mark.parametrize("family", NEVER)
def test_networks_without_such_a_layer(family, taken):
    model = made(**NEVER[family], dtype="bfloat16")
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 48, 48, 3)), train=False)
    )
    with operations("gpu"), one_device():
        jax.eval_shape(lambda v: step(model, v), variables)
    assert not taken


@pytest.mark.parametrize("name", ["resnetv2_50", "resnet20"])
def test_networks_without_such_a_layer_refuse_it(name):
    with refused("model.collapse", "on"):
        create_model(name, collapse="on")
    create_model(name, collapse="off")


def test_auto_is_for_wide_layers_in_bfloat16_on_a_gpu(taken):
    model = made("resnet50", "bfloat16", widths=(12, 512))
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 48, 48, 3)), train=False)
    )
    jax.eval_shape(lambda v: step(model, v), variables)
    assert not taken
    with operations("gpu"), one_device():
        jax.eval_shape(lambda v: step(model, v), variables)
    # The last stage has 8 x 6 x 6 pixels, too few for 512 channels.
    assert (12, 48) in taken
    assert (512, 2048) not in taken
    taken.clear()
    with operations("gpu"), one_device():
        jax.eval_shape(lambda v: step(model.clone(dtype=jnp.dtype("float32")), v), variables)
    assert not taken


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bottleneck", "squeeze-and-excitation"])
def test_eight_devices_equal_one(family, taken):
    options, _ = FAMILIES[family]
    mesh = sharding.make_mesh()
    with jax.enable_x64(True):
        variables = variables_of(made(**options))
        model = made(**options, collapse="on")
        images = jax.device_put(IMAGES, sharding.split(mesh))
        several = sharding.on_mesh(lambda v, x: step(model, v, x), mesh)(
            jax.device_put(variables, sharding.replicated(mesh)), images
        )
        assert taken
        assert farthest_leaf(several, step(made(**options, collapse="off"), variables)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bottleneck", "squeeze-and-excitation", "grouped"])
def test_bfloat16_gradients_are_as_near_to_float64_as_those_of_the_usual_form(family):
    options, _ = FAMILIES[family]
    options = options | {"widths": (16, 32)}
    with jax.enable_x64(True):
        variables = variables_of(made(**options))
        exact = step(made(**options), variables)
        narrow = jax.tree.map(lambda leaf: leaf.astype("float32"), variables)
        distances = [
            _distance(step(made(**options, dtype="bfloat16", collapse=form), narrow), exact)
            for form in ("on", "off")
        ]
        assert distances[0] < 1.2 * distances[1], distances


def _distance(got, exact):
    """Return the relative distance of all gradients together."""
    (_, _), got = got
    (_, _), exact = exact
    flat = [
        jnp.concatenate([leaf.ravel().astype("float64") for leaf in jax.tree.leaves(tree)])
        for tree in (got, exact)
    ]
    return float(jnp.linalg.norm(flat[0] - flat[1]) / jnp.linalg.norm(flat[1]))
