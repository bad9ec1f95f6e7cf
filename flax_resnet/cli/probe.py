"""Measures how good a network's features are for a dataset, without training the network.

python -m flax_resnet probe --workdir /tmp/run
    top-1 of k nearest neighbours, and of a linear classifier, on what the head of the network sees: both learn from
    the training split and are judged on the evaluation split; appended to probes.jsonl in the workdir.
python -m flax_resnet probe --model resnet50.a1_in1k --dataset cifar10 --limit 10000
    timm's weights, or a file of weights (--weights). The classes of the dataset need not be the network's.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from flax_resnet.cli import app, network_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` without the program's name."""
    return app.run("flax-resnet probe", __doc__, _define, _probe, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_common(values)
    network_flags.define(values)
    for name, help in (
        ("dataset", "a TFDS dataset, a folder of images, or a CSV file (default: the run's own)"),
        ("train_split", "split to learn from (default: the run's own, or train)"),
        ("split", "split to be judged on (default: the run's own; or validation, or test)"),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
    for name, default, least, help in (
        ("k", 20, 1, "neighbours that vote"),
        ("limit", 0, 0, "most training images, chosen at random; 0 for all"),
        ("image_size", 0, 0, "side in pixels (default: that of the run, or of the weights)"),
    ):
        flags.DEFINE_integer(name, default, help, lower_bound=least, flag_values=values)
    flags.DEFINE_float(
        "temperature",
        0.07,
        "a neighbour's vote is exp(similarity / temperature)",
        flag_values=values,
    )


def _probe(values: flags.FlagValues) -> None:
    network_flags.check(values, purpose="probe", model_only=("weights",))
    app.set_up_jax(app.flag(values, "compilation_cache"))
    from flax_resnet.data.sources.named import DatasetChoice
    from flax_resnet.inference.classifier import NetworkChoice
    from flax_resnet.inference.probes import probe

    def chosen(names: Sequence[str]) -> dict[str, Any]:
        return {name: app.flag(values, name) for name in names}

    record = probe(
        NetworkChoice(**chosen(NetworkChoice._fields)),
        DatasetChoice(**chosen(DatasetChoice._fields)),
        **chosen(("k", "temperature", "limit", "batch_size")),
    )
    what = f"checkpoint {record['step']}" if "step" in record else record["model"]
    print(
        f"top-1 of {record['k']} neighbours {record['knn_top1']:.2%}, of a linear classifier "
        f"{record['linear_top1']:.2%} (C={record['linear_c']:g}) on {record['split']} "
        f"({record['count']} images; learnt from {record['train_count']}), {what}"
    )


if __name__ == "__main__":
    sys.exit(main())
