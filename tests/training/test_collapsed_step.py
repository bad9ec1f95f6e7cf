"""The training step collapses 1x1 convolutions by device and by group, and its forms on GPU agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import farthest_leaf, refused
from untrained import initial

from benchmarks.speed.workloads import configured
from flax_resnet.models.layers import normalization
from flax_resnet.ops import dispatch
from flax_resnet.training import sharding
from flax_resnet.training.state import build_model
from flax_resnet.training.step.gradient import make_gradient
from flax_resnet.training.step.training_loss import LossInputs

SMALL = ("model.widths=(4,6)", "model.depths=(1,2)")
ROWS, SIZE, CLASSES = 32, 32, 5
GHOST = ("model.norm_scope=ghost", "model.norm_groups=4")
# {case: (settings, microbatches, groups and shards of the collapsed layers)}; the tests have eight devices.
CASES = {
    "global": ((), 1, (1, 8)),
    "global, microbatches": ((), 2, (1, 8)),
    "local": (("model.norm_scope=local",), 1, (1, 1)),
    "ghost": (GHOST, 1, (4, 8)),
    "ghost, microbatches": (GHOST, 2, (2, 8)),
    "local, recomputed, stacked, attention": (
        (
            "model.norm_scope=local",
            "model.remat=block",
            "model.scan_blocks=True",
            "model.attention=se",
        ),
        1,
        (1, 1),
    ),
}


def gradient(settings, microbatches=1):
    """Return the gradient, metrics and statistics of a batch in float64 on all devices."""
    config = configured("resnet50", SIZE, ROWS, dtype="float32", settings=(*SMALL, *settings))
    mesh, model = sharding.make_mesh(), build_model(config, CLASSES).clone(dtype=jnp.float64)
    images = np.random.default_rng(1).normal(size=(ROWS, SIZE, SIZE, 3))
    variables = jax.tree.map(lambda leaf: leaf.astype("float64"), initial(model))
    split = sharding.split(mesh)
    inputs = LossInputs(
        batch_stats=variables["batch_stats"],
        images=jax.device_put(images, split),
        targets=jax.device_put(jax.nn.one_hot(jnp.arange(ROWS) % CLASSES, CLASSES), split),
        weight=float(ROWS),
        dropout_key=jax.random.key(0),
    )
    run = make_gradient(config, model, mesh, microbatches=microbatches)
    return jax.jit(run)(variables["params"], inputs)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_devices_groups_and_microbatches(case, monkeypatch):
    settings, microbatches, expected = CASES[case]
    scopes, real = set(), normalization.collapsed_batch_norm

    def recorded(x, kernel, scale, bias, about, scope):
        scopes.add((scope.groups, scope.shards))
        return real(x, kernel, scale, bias, about, scope)

    monkeypatch.setattr(normalization, "collapsed_batch_norm", recorded)
    with jax.enable_x64(True):
        collapsed = gradient((*settings, "model.collapse=on"), microbatches)
        assert scopes == {expected}
        assert (
            farthest_leaf(collapsed, gradient((*settings, "model.collapse=off"), microbatches))
            < 1e-9
        )


@pytest.mark.slow
def test_the_forms_on_gpu_agree(monkeypatch):
    forms = {name: f"{name}={choices[1]}" for name, choices in dispatch.GPU_FORMS.items()}
    with jax.enable_x64(True):
        wanted = gradient(("model.collapse=off",))
        for switch in ("", ",".join(forms.values())):
            monkeypatch.setenv(dispatch.FORMS_SWITCH, switch)
            with dispatch.operations("gpu"):
                assert farthest_leaf(gradient(("model.collapse=on",)), wanted) < 1e-9


def test_a_form_that_does_not_exist_is_refused(monkeypatch):
    x = jnp.zeros(3)
    assert dispatch.gpu_form("product", x) == ""  # the program is for a CPU
    for text in ("product=triton", "products=dot", "dot"):
        monkeypatch.setenv(dispatch.FORMS_SWITCH, text)
        with refused(dispatch.FORMS_SWITCH, text):
            dispatch.gpu_form("product", x)
