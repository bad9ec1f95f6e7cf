"""Flags that select a network: a run of this package, or a network with pretrained weights."""

from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import ConfigError


def define(values: flags.FlagValues) -> None:
    """Add the flags that select a network."""
    for name, help in (
        ("workdir", "run folder"),
        ("model", "instead of a run: a network, or timm's weights for one (resnet50.a1_in1k)"),
        (
            "weights",
            "with --model: a weights file (default: timm's weights on the Hugging Face hub)",
        ),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
    flags.DEFINE_string("checkpoint", "last", "last, best, or a step", flag_values=values)


def define_batch_size(values: flags.FlagValues) -> None:
    """Add the number of images per step."""
    flags.DEFINE_integer(
        "batch_size",
        0,
        "images per step (default: that of the run, or 64)",
        lower_bound=0,
        upper_bound=2**20,
        flag_values=values,
    )


def check(values: flags.FlagValues, *, purpose: str, model_only: Sequence[str]) -> None:
    """Check that the flags select exactly one network and fit together.

    Args:
      values: the parsed flags.
      purpose: a verb for the error message, such as "evaluate".
      model_only: flags that go with --model, not with --workdir.

    Raises:
      ConfigError: both or neither of --workdir and --model are set, or a flag belongs to the other one.
    """
    source = app.one_of(values, ("workdir", "model"), f"the run, or the network, to {purpose}")
    other, options = ("workdir", ["checkpoint"]) if source == "model" else ("model", model_only)
    for name in options:
        if app.flag(values, name) != values[name].default:
            raise ConfigError(
                f"is an option of --{other}, not of --{source}",
                key=f"--{name}",
                value=app.flag(values, name),
                cure="leave it out",
            )
