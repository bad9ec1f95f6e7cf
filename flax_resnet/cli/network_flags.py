"""What a command measures: a run, or a network with weights made elsewhere; and the images it is shown."""

from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import ConfigError


def define(values: flags.FlagValues) -> None:
    """Adds the flags that name a network, and what all that show it images have."""
    for name, help in (
        ("workdir", "folder of the run"),
        ("model", "instead of a run: a network, or timm's weights for one (resnet50.a1_in1k)"),
        ("weights", "with --model: file of weights (default: timm's on the Hugging Face hub)"),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
    flags.DEFINE_string("checkpoint", "last", "last, best, or a step", flag_values=values)
    flags.DEFINE_integer(
        "batch_size",
        0,
        "images per step (default: the run's own, or 64)",
        lower_bound=0,
        flag_values=values,
    )


def check(values: flags.FlagValues, *, purpose: str, model_only: Sequence[str]) -> None:
    """Checks that the flags name one network, and belong together.

    Args:
      values: the parsed flags.
      purpose: what is done to the network, a verb.
      model_only: flags that go with --model, not --workdir.

    Raises:
      ConfigError: neither --workdir nor --model, or both; or a flag that does not go with the one given.
    """
    given = {name: app.flag(values, name) for name in ("workdir", "model")}
    if bool(given["workdir"]) == bool(given["model"]):
        raise ConfigError(
            f"--workdir or --model is needed, and one only: the run, or the network, to {purpose}"
        )
    if given["model"]:
        if (checkpoint := app.flag(values, "checkpoint")) != "last":
            raise ConfigError(f"--checkpoint={checkpoint}: goes with --workdir, not --model")
        return
    for name in model_only:
        if app.flag(values, name):
            raise ConfigError(
                f"--{name}={app.flag(values, name)}: goes with --model, not --workdir"
            )
