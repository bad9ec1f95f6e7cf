"""What programs for CPU are compiled with, and when with nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from flax_resnet.ops import conv, dispatch


def test_programs_leave_convolutions_to_xla():
    options = dispatch.compiler_options()
    if not jaxlib.__version__.startswith(("0.10.", "0.11.")):
        pytest.skip(f"what jaxlib {jaxlib.__version__} does of itself is not known")
    assert options == dispatch.CPU_COMPILER
    x, kernel = jnp.zeros((4, 16, 16, 32)), jnp.zeros((3, 3, 32, 32))
    run = partial(conv.plain, conv.Geometry(1, 1, 1, 1))

    def is_of_ynnpack(options):
        program = jax.jit(run, compiler_options=options).lower(x, kernel).compile()
        return "__ynn_fusion" in program.as_text()

    assert is_of_ynnpack({})
    assert not is_of_ynnpack(options)


@pytest.mark.parametrize("option", [("xla_cpu_no_such", "1"), (*dispatch.CPU_COMPILER, "NO_SUCH")])
def test_options_that_this_xla_does_not_know_are_left_out(option, monkeypatch):
    monkeypatch.setattr(dispatch, "CPU_COMPILER", dict([option]))
    assert dispatch.compiler_options() == {}


def test_a_users_own_option_stands(monkeypatch):
    (name,) = dispatch.CPU_COMPILER
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=-reduce")
    assert dispatch.compiler_options() == {}


def test_plain_programs_are_compiled_as_xla_does_it(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "plain")
    assert dispatch.compiler_options() == {}
