"""Prepares a TFDS dataset for random access: python -m flax_resnet.prepare --name cifar10

Downloads it and writes it as array_record into the TFDS data folder, once. (TFDS's own `tfds build` does the
same with --file_format=array_record, but needs apache_beam even for datasets that do not.)
"""

import sys
from collections.abc import Sequence

from absl import flags

from flax_resnet import command
from flax_resnet.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` without the program's name."""
    return command.run("flax_resnet.prepare", __doc__, _define, _prepare, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    flags.DEFINE_string(
        "name", "", "TFDS dataset, as name, name/config or name:version", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "TFDS data folder (default: TFDS's own)", flag_values=values
    )


def _prepare(values: flags.FlagValues) -> None:
    if not values["name"].value:
        raise ConfigError("--name is needed: the dataset to prepare, such as cifar10")
    from flax_resnet.data.preparation import prepare_dataset

    print(prepare_dataset(values["name"].value, values["data_dir"].value))


if __name__ == "__main__":
    sys.exit(main())
