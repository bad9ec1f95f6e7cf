"""Show a network: python -m flax_resnet summary --model resnet18 --image_size 224

Prints one row per layer with parameters: its output shape, parameters and multiply-adds, and the totals. With
--list 'seresnet*' instead of --model, prints one row per network. The numbers are computed from shapes; nothing is
allocated or compiled.

python -m flax_resnet summary --config configs/resnet50_mlperf.py --schedule rate.png --num_train 1281167
    Draws the learning rate of a configuration over its run. Needs matplotlib.
"""

import csv
import io
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from flax_resnet.cli import app, config_flag
from flax_resnet.cli.plots import learning_rate
from flax_resnet.cli.text_table import aligned
from flax_resnet.errors import ConfigError, suggestion, writing
from flax_resnet.models.summary import MIB, Layer, Summary, collapsed, summarize, totals
from flax_resnet.settings import LARGEST_IMAGE, LARGEST_INT

FORMATS = ("table", "csv", "json")
MODES = ("model", "list", "schedule")
GOES_WITH = {  # flags -> the modes that use them
    ("config", "data_dir", "num_train"): ("schedule",),
    ("batch_size", "depth"): ("model",),
    ("image_size", "num_classes", "in_channels", "dtype", "format", "output"): ("model", "list"),
}


def format_table(summary: Summary, layers: Sequence[Layer]) -> str:
    """Format the layers and totals of a network as a table."""
    rows = [
        [x.name, x.kind, str(list(x.output_shape)), f"{x.parameters:,}", f"{x.macs:,}"]
        for x in layers
    ]
    head = ["layer", "kind", "output", "parameters", "multiply-adds"]
    lines = aligned([head, *rows], left=3)
    rule = "-" * len(lines[0])
    mib = {key: value / MIB for key, value in (
        ("input", summary.input_size), ("forward/backward", summary.activation_size),
        ("parameters", summary.parameter_size), ("estimated total", summary.total_size),
    )}  # fmt: skip
    facts = [
        ["total parameters", f"{summary.parameters:,}"],
        ["trainable", f"{summary.parameters:,}"],
        ["not trained (running statistics)", f"{summary.running_statistics:,}"],
        ["multiply-adds per image", _macs(summary.macs)],
        *([f"{key} size", f"{value:,.2f} MB"] for key, value in mib.items()),
    ]
    title = f"{summary.name}, images {list(summary.input_shape)}, {summary.dtype}"
    return "\n".join([title, rule, lines[0], rule, *lines[1:], rule, *aligned(facts, left=1)])


def _macs(macs: int) -> str:
    return f"{macs / 1e9:.3f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet summary", __doc__, _define, _summary, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    config_flag.define(values, argv)
    app.define_data_dir(values)
    for name, help in (
        ("model", "network to print"),
        ("list", "instead of --model: pattern of network names; prints one row per network"),
        (
            "schedule",
            "instead of --model, with --config: picture file for the learning rate over the run",
        ),
        ("dtype", "compute dtype (default: float32)"),
        ("output", "file to write (default: standard output)"),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
    flags.DEFINE_string("format", "table", f"one of {', '.join(FORMATS)}", flag_values=values)
    for name, default, low, help in (
        (
            "image_size",
            0,
            0,
            "height and width in pixels (default: 224, or 32 for networks with a cifar stem)",
        ),
        ("batch_size", 1, 1, "images in the batch, for the memory sizes"),
        ("num_classes", -1, -1, "number of classes (default: that of the network)"),
        ("in_channels", 0, 0, "channels of the images (default: 3)"),
        (
            "num_train",
            0,
            0,
            "with --schedule: number of training images (default: that of the dataset)",
        ),
        ("depth", 0, 0, "sum the layers below this depth of their path; 1 for one row per block"),
    ):
        most = LARGEST_IMAGE if name == "image_size" else LARGEST_INT
        flags.DEFINE_integer(name, default, help, low, most, flag_values=values)


def _summary(values: flags.FlagValues) -> None:
    mode = app.one_of(values, MODES, "a network, a pattern, or a picture to draw")
    for names, allowed in GOES_WITH.items():
        for name in names:
            if values[name].present and mode not in allowed:
                others = " or ".join(f"--{other}" for other in allowed)
                raise ConfigError(
                    f"is an option of {others}, not of --{mode}",
                    key=f"--{name}",
                    cure="leave it out",
                )
    if app.flag(values, "schedule"):
        config = config_flag.frozen_config(values)
        output = app.picture(app.flag(values, "schedule"), "--schedule")
        learning_rate.draw(config, output, num_train=app.flag(values, "num_train"))
        print(output)
        return
    parsed = {name: app.flag(values, name) for name in values if name not in ("h", "help")}
    if parsed["format"] not in FORMATS:
        raise ConfigError(key="--format", value=parsed["format"], allowed=FORMATS)
    options = {
        key: parsed[key]
        for key, unset in (("num_classes", -1), ("in_channels", 0), ("dtype", ""))
        if parsed[key] != unset
    }
    shape = {key: parsed[key] for key in ("image_size", "batch_size")}
    if parsed["model"]:
        summary = summarize(parsed["model"], **shape, **options)
        layers = collapsed(summary.layers, parsed["depth"]) if parsed["depth"] else summary.layers
        text = _written(
            parsed["format"], [layer._asdict() for layer in layers], totals(summary),
            format_table(summary, layers),
        )  # fmt: skip
    else:
        rows = _listed(parsed["list"], shape, options)
        head = ["model", "image size", "parameters", "running statistics", "multiply-adds"]
        cells = [
            [r["model"], str(r["image_size"]), f"{r['parameters']:,}", f"{r['running_statistics']:,}",
             _macs(round(r["gmacs"] * 1e9))] for r in rows
        ]  # fmt: skip
        text = _written(parsed["format"], rows, {}, "\n".join(aligned([head, *cells], left=1)))
    if not parsed["output"]:
        print(text)
        return
    with writing(parsed["output"]):
        pathlib.Path(parsed["output"]).expanduser().write_text(text + "\n")


def _listed(pattern: str, shape: dict[str, int], options: dict[str, Any]) -> list[dict[str, Any]]:
    from flax_resnet.models import list_models

    names = list_models(pattern)
    if not names:
        near = suggestion(pattern.strip("*"), list_models())
        hint = near if near.startswith("did") else "--list '*' shows all"
        raise ConfigError("matches no network", key="--list", value=pattern, cure=hint)
    rows = []
    for name in tqdm(names, disable=not sys.stderr.isatty(), leave=False, unit="network"):
        try:
            summary = summarize(name, **shape, **options)
        except ConfigError as error:
            raise ConfigError(
                f"{name}: {error.problem}".removesuffix(": "),
                key=error.key,
                value=error.value,
                allowed=error.allowed,
                cure=error.cure,
            ) from error
        sums = totals(summary)
        rows.append({
            "model": name, "image_size": summary.input_shape[1],
            **{key: sums[key] for key in ("parameters", "running_statistics", "gmacs")},
        })  # fmt: skip
    return rows


def _written(format: str, rows: list[dict[str, Any]], facts: dict[str, Any], table: str) -> str:
    """Return rows and totals in the given format; CSV has only the rows."""
    if format == "table":
        return table
    if format == "json":
        return json.dumps({**facts, "rows": rows}, indent=2)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shape = {k: "x".join(map(str, v)) for k, v in row.items() if isinstance(v, tuple)}
        writer.writerow({**row, **shape})
    return text.getvalue().rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
