"""Flags that select a network: a run of this package, or a network with pretrained weights."""

from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import ConfigError


def define(values: flags.FlagValues) -> None:
    """Add the flags that select a network, and the batch size."""
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
    flags.DEFINE_integer(
        "batch_size",
        0,
        "images per step (default: that of the run, or 64)",
        lower_bound=0,
        flag_values=values,
    )


def check(values: flags.FlagValues, *, purpose: str, model_only: Sequence[str]) -> None:
    """Check that the flags select exactly one network and fit together.

    Args:
      values: the parsed flags.
      purpose: a verb for the error message: what the command does with the network.
      model_only: flags that go with --model, not with --workdir.

    Raises:
      ConfigError: both or neither of --workdir and --model are set, or a flag does not go with the one that is.
    """
    sources = {name: app.flag(values, name) for name in ("workdir", "model")}
    if bool(sources["workdir"]) == bool(sources["model"]):
        raise ConfigError(
            f"--workdir or --model is needed, and one only: the run, or the network, to {purpose}"
        )
    if sources["model"]:
        if (checkpoint := app.flag(values, "checkpoint")) != "last":
            raise ConfigError(f"--checkpoint={checkpoint}: goes with --workdir, not --model")
        return
    for name in model_only:
        if app.flag(values, name):
            raise ConfigError(
                f"--{name}={app.flag(values, name)}: goes with --model, not --workdir"
            )
