"""Measure the quality of a network's features on a dataset, without training the network.

python -m flax_resnet probe --workdir /tmp/run
    Fits k nearest neighbours and a linear classifier to the features before the head, on the training split. Prints
    their top-1 on the evaluation split, and appends it to probes.jsonl in the workdir.
python -m flax_resnet probe --model resnet50.a1_in1k --dataset cifar10 --limit 10000
    Probes timm's weights, or a weights file (--weights). The dataset may have other classes than the network.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from flax_resnet.cli import app, network_flags
from flax_resnet.settings import LARGEST_IMAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet probe", __doc__, _define, _probe, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_common(values)
    network_flags.define(values)
    network_flags.define_batch_size(values)
    for name, help in (
        ("dataset", "a TFDS dataset, a folder of images, or a CSV file (default: that of the run)"),
        ("train_split", "split to fit the probes on (default: that of the run, or train)"),
        ("split", "split to evaluate (default: that of the run; with --model validation or test)"),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
    for name, default, least, most, help in (
        ("k", 20, 1, None, "number of nearest neighbours that vote"),
        ("limit", 0, 0, None, "largest number of training images, a random subset; 0 for all"),
        (
            *("image_size", 0, 0, LARGEST_IMAGE),
            "image size in pixels (default: that of the run or of the weights)",
        ),
    ):
        flags.DEFINE_integer(name, default, help, least, most, flag_values=values)
    flags.DEFINE_float(
        "temperature",
        0.07,
        "a neighbour's vote is exp(similarity / temperature)",
        flag_values=values,
    )


def _probe(values: flags.FlagValues) -> None:
    network_flags.check(values, purpose="probe", model_only=("weights",))
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.data.named import DatasetChoice
    from flax_resnet.inference.network_choice import NetworkChoice
    from flax_resnet.inference.probes import probe
    from flax_resnet.training.runs.folder import PROBES, RunFolder

    def chosen(names: Sequence[str]) -> dict[str, Any]:
        return {name: app.flag(values, name) for name in names}

    network = NetworkChoice(**chosen(NetworkChoice._fields))
    record = probe(
        network,
        DatasetChoice(**chosen(DatasetChoice._fields)),
        **chosen(("k", "temperature", "limit", "batch_size")),
    )
    what = f"checkpoint {record['step']}" if "step" in record else record["model"]
    print(
        f"top-1 of {record['k']} neighbours {record['knn_top1']:.2%}, of a linear classifier "
        f"{record['linear_top1']:.2%} (C={record['linear_c']:g}) on {record['split']} "
        f"({record['count']} images; learnt from {record['train_count']}), {what}",
        flush=True,
    )
    if network.workdir:
        RunFolder.at(network.workdir).append_record(PROBES, record)


if __name__ == "__main__":
    sys.exit(main())
