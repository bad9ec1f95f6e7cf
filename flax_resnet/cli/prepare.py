"""Stores a dataset for random access: python -m flax_resnet prepare --name=cifar10

Downloads a TFDS dataset and writes it as array_record into the TFDS data folder, once. One that is there as
tfrecord is converted: the array_record files come beside the others. (TFDS's own `tfds build` and `tfds
convert_format` do the same, but need apache_beam even for datasets that do not.)

With --pack=NEW_NAME, a TFDS dataset, or a folder or CSV file of images (--path), becomes a TFDS dataset of its
own, of JPEGs whose longer side is at most --max_side: smaller to store, and faster to decode. Packing
that was interrupted goes on where it was.
"""

import sys
from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app
from flax_resnet.data.data_section import Data
from flax_resnet.errors import ConfigError

PACKING = ("path", "max_side", "quality", "eval_fraction", "shard_size", "max_bad")  # need --pack


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` without the program's name."""
    return app.run("flax-resnet prepare", __doc__, _define, _prepare, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, "", help, flag_values=values)

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    text("name", "TFDS dataset, as name, name/config or name:version")
    text("data_dir", "TFDS data folder (default: TFDS's own)")
    integer("threads", 0, "images, or files, worked on at once; 0 for one per core")
    text("pack", "name of a new TFDS dataset, to pack --name or --path into")
    text(
        "path",
        "to pack: a folder of one sub-folder per class, or of such as train/ and test/; or a CSV file",
    )
    integer("max_side", 400, "an image whose longer side is longer is made smaller, pixels")
    integer("quality", 90, "of JPEGs that are made, 1 to 100; a JPEG that fits is stored as it is")
    flags.DEFINE_float(
        "eval_fraction",
        Data().eval_fraction,
        "share of a folder without train/ that becomes the split test",
        flag_values=values,
    )
    integer("shard_size", 2048, "images per file, at most")
    integer("max_bad", 10, "unreadable images named and left out before packing stops")


def _prepare(values: flags.FlagValues) -> None:
    name, pack = app.flag(values, "name"), app.flag(values, "pack")
    for flag in ("threads", "max_bad"):
        if app.flag(values, flag) < 0:
            raise ConfigError(f"--{flag}={app.flag(values, flag)}: must be at least 0")
    threads = app.flag(values, "threads")
    if values["pack"].present:
        from flax_resnet.data.packing import Packing, pack_dataset

        options = ("name", "path", "data_dir", "max_side", "quality", "eval_fraction", "shard_size")
        packing = Packing(pack, **{flag: app.flag(values, flag) for flag in options})
        print(pack_dataset(packing, threads=threads, max_bad=app.flag(values, "max_bad")))
        return
    for flag in PACKING:
        if values[flag].present:
            raise ConfigError(f"--{flag} needs --pack=NEW_NAME, the dataset to make")
    if not name:
        raise ConfigError("--name is needed: the dataset to prepare, such as cifar10")
    from flax_resnet.data.array_record import prepare_dataset

    print(prepare_dataset(name, app.flag(values, "data_dir"), threads=threads))


if __name__ == "__main__":
    sys.exit(main())
