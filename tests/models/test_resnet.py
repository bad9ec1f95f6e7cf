"""Options of ResNet for training: scanned and rematerialised blocks, dropout, stochastic depth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn

from flax_resnet import create_model
from flax_resnet.models.stacking import stack_blocks, unstack_blocks

SMALL = {"widths": (8, 8), "depths": (1, 3), "num_classes": 5}


@pytest.fixture(scope="module")
def small():
    """A function for one training pass, the variables, and the function's result without options.

    The function maps variables and options of the network to logits, new batch statistics and gradients.
    """
    images = jnp.asarray(np.random.RandomState(0).randn(4, 32, 32, 3), jnp.float32)

    def run(variables, **options):
        model = create_model("resnet18", **SMALL, **options)

        def loss(variables):
            logits, updated = model.apply(
                variables, images, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )  # fmt: skip
            return jnp.square(logits).mean(), (logits, updated)

        (_, (logits, updated)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
        return logits, updated["batch_stats"], grads["params"]

    model = create_model("resnet18", **SMALL)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images[:1], train=False))()
    return run, variables, run(variables)


@pytest.mark.parametrize("remat", ["none", "block", "stage"])
@pytest.mark.parametrize("scan", [False, True])
def test_scan_and_remat_do_not_change_the_results(small, scan, remat):
    run, variables, expected = small
    given = stack_blocks(variables) if scan else variables
    found = run(given, scan_blocks=scan, remat=remat)
    if scan:
        assert "layer2_rest" in found[2]
        found = (found[0], *(unstack_blocks({"x": tree})["x"] for tree in found[1:]))
    for ours, theirs in zip(found, expected, strict=True):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1, float(jnp.abs(b).max())))


def test_remat_is_in_the_program(small):
    _, variables, _ = small
    images = jnp.zeros((1, 32, 32, 3))
    for remat, times in (("none", 0), ("block", 4), ("stage", 2)):
        model = create_model("resnet18", **SMALL, remat=remat)
        program = str(jax.make_jaxpr(lambda v, m=model: m.apply(v, images))(variables))
        assert program.count("checkpoint[") + program.count("remat2[") == times, remat


def test_unstack_blocks_inverts_stack_blocks(small):
    _, variables, _ = small
    back = unstack_blocks(stack_blocks(variables))
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    model = create_model("resnet18", **SMALL, scan_blocks=True)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), stack_blocks(variables))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


@pytest.mark.parametrize("options", [{"drop_path": 0.5}, {"drop_path": 0.5, "scan_blocks": True}, {"dropout": 0.5},
                                     {"dropout": 0.5, "dropout_at": "blocks"}])  # fmt: skip
def test_dropping_is_random_in_training_and_absent_in_evaluation(small, options):
    run, variables, expected = small
    images = jnp.asarray(np.random.RandomState(1).randn(2, 32, 32, 3), jnp.float32)
    given = stack_blocks(variables) if options.get("scan_blocks") else variables
    assert float(jnp.abs(run(given, **options)[0] - expected[0]).max()) > 1e-3
    ours = create_model("resnet18", **SMALL, **options).apply(given, images, train=False)
    theirs = create_model("resnet18", **SMALL).apply(variables, images, train=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_stochastic_depth_keeps_the_mean_and_rises_with_depth():
    from flax_resnet.models.resnet import block_specs

    stages = block_specs(create_model("resnet18", drop_path=0.7))
    rates = [spec.drop_path for stage in stages for spec in stage]
    np.testing.assert_allclose(rates, np.linspace(0, 0.7, 8))
    options = {"depths": (1, 1), "widths": (4, 4), "num_classes": 0, "norm": "frozen"}
    model = create_model("resnetv2_18", **options, drop_path=0.5)
    image = jnp.asarray(np.random.RandomState(0).randn(1, 16, 16, 3), jnp.float32)
    variables = model.init(jax.random.key(0), image)
    (expected,) = model.apply(variables, image, features=("stage2",))["stage2"]
    drawn = jax.jit(
        lambda v: model.apply(
            v, jnp.tile(image, (4096, 1, 1, 1)), train=True, features=("stage2",),
            rngs={"dropout": jax.random.key(0)},
        )
    )(variables)["stage2"]  # fmt: skip
    # At rate 1/2, the last block is either dropped, or kept and doubled. The mean of both outputs equals the output
    # without stochastic depth.
    other = int(jnp.argmax(jnp.abs(drawn - drawn[:1]).max(axis=(1, 2, 3))))
    np.testing.assert_allclose((drawn[0] + drawn[other]) / 2, expected, atol=1e-5)
    share = float((jnp.abs(drawn - drawn[:1]).max(axis=(1, 2, 3)) > 1e-3).mean())
    assert 0.45 < share < 0.55


def test_scanned_blocks_drop_at_their_own_rates():
    """The last block is dropped for every image, so it has no gradient; the first scanned block has one."""
    alone = {"depths": (1, 3), "widths": (8, 8), "num_classes": 5, "scan_blocks": True}
    model = create_model("resnet18", **alone, drop_path=0.9999999)
    images = jnp.asarray(np.random.RandomState(0).randn(8, 32, 32, 3), jnp.float32)
    inside = model.init(jax.random.key(0), images[:1])

    def loss(params):
        logits, _ = model.apply(
            {**inside, "params": params}, images, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        return jnp.square(logits).sum()

    kernel = jax.jit(jax.grad(loss))(inside["params"])["layer2_rest"]["conv1"]["kernel"]
    first, last = np.abs(kernel).max(axis=(1, 2, 3, 4))
    assert first > 0
    assert last == 0


SHUT, OPEN = -1e4, 1e4  # biases for which the gate, a sigmoid, is exactly 0 and 1


def with_gates(variables, bias, blocks):
    """Set the gates of blocks to a constant."""
    gated = jax.tree.map(np.copy, variables)
    for name in blocks:
        last = gated["params"][name]["se"]["fc2"]
        last["kernel"], last["bias"] = 0 * last["kernel"], 0 * last["bias"] + bias
    return gated


@pytest.mark.parametrize("name", ["sepreact164", "sewrn16_8"])
def test_attention_scales_the_branch_of_a_pre_activation_block(name):
    shape = {"widths": (8, 16), "num_classes": 3}
    model = create_model(name, depths=(2, 1), **shape)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), images))
    blocks = [block[0] for stage in model.stages() for block in stage]

    def outputs(model, variables):
        call = jax.jit(partial(model.apply, features=("stage1", "logits")))
        return call(variables, images)

    ours = outputs(model, variables)
    without = model.clone(attention="none")
    everything = outputs(model, with_gates(variables, OPEN, blocks))
    expected = outputs(without, variables)
    np.testing.assert_allclose(everything["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    assert np.abs(ours["logits"] - expected["logits"]).max() > 1e-3
    # The second block has no projection: with a shut gate it is the identity.
    shut = outputs(model, with_gates(variables, SHUT, ["layer1_1"]))
    shorter = outputs(model.clone(depths=(1, 1)), variables)
    np.testing.assert_allclose(shut["stage1"], shorter["stage1"], rtol=1e-5, atol=1e-5)
    assert np.abs(ours["stage1"] - shorter["stage1"]).max() > 1e-3
