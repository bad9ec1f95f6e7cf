"""Store a dataset for random access: python -m flax_resnet prepare --name=cifar10

Downloads a TFDS dataset and writes it as array_record files into the TFDS data folder, once. If the dataset is
there as tfrecord files, it converts them and keeps both. (TFDS's `tfds build` and `tfds convert_format` do the
same, but need apache_beam even for datasets that do not.)

With --pack=NEW_NAME, packs a TFDS dataset, a folder or a CSV file of images (--path) into a new TFDS dataset of
JPEGs with a longer side of at most --max_side. Such files are smaller and faster to decode. Run the same command
again to resume interrupted packing.
"""

import sys
from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app
from flax_resnet.cli.resumable import resumable
from flax_resnet.data.data_section import EVAL_FRACTION
from flax_resnet.errors import ConfigError
from flax_resnet.settings import LARGEST_INT

# Flags that need --pack.
PACKING = ("path", "max_side", "quality", "eval_fraction", "shard_size", "max_bad")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet prepare", __doc__, _define, _resumed, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, "", help, flag_values=values)

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    text("name", "TFDS dataset, as name, name/config or name:version")
    text("data_dir", "TFDS data folder (default: that of TFDS)")
    integer("threads", 0, "images or files to process in parallel; 0 for one per core")
    text("pack", "name of the new TFDS dataset to pack --name or --path into")
    text(
        "path",
        "to pack: a folder with one sub-folder per class, or with such folders in train/ and test/; or a CSV file",
    )
    integer("max_side", 400, "longest side in pixels; larger images are downsampled")
    integer(
        "quality", 90, "JPEG quality, 1 to 100; JPEGs that are small enough are stored unchanged"
    )
    flags.DEFINE_float(
        "eval_fraction",
        EVAL_FRACTION,
        "for a folder without train/: share of the images in the test split",
        flag_values=values,
    )
    integer("shard_size", 2048, "largest number of images per file")
    integer("max_bad", 10, "number of unreadable images to skip before packing fails")


def _resumed(values: flags.FlagValues) -> None:
    with resumable():
        _prepare(values)


def _prepare(values: flags.FlagValues) -> None:
    name, pack = app.flag(values, "name"), app.flag(values, "pack")
    for flag in ("threads", "max_bad"):
        if not 0 <= app.flag(values, flag) <= LARGEST_INT:
            allowed = f"between 0 and {LARGEST_INT:,}"
            raise ConfigError(key=f"--{flag}", value=app.flag(values, flag), allowed=allowed)
    threads = app.flag(values, "threads")
    if values["pack"].present:
        from flax_resnet.data.packing import Packing, pack_dataset

        options = ("name", "path", "data_dir", "max_side", "quality", "eval_fraction", "shard_size")
        packing = Packing(pack, **{flag: app.flag(values, flag) for flag in options})
        print(pack_dataset(packing, threads=threads, max_bad=app.flag(values, "max_bad")))
        return
    for flag in PACKING:
        if values[flag].present:
            raise ConfigError(
                "needs --pack",
                key=f"--{flag}",
                value=app.flag(values, flag),
                cure="set --pack=NEW_NAME, the dataset to make",
            )
    if not name:
        raise app.needed("--name", "the dataset to prepare, such as cifar10")
    from flax_resnet.data.array_record import prepare_dataset

    print(prepare_dataset(name, app.flag(values, "data_dir"), threads=threads))


if __name__ == "__main__":
    sys.exit(main())
