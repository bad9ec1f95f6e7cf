"""Export a network to other runtimes: python -m flax_resnet export --workdir /tmp/run --format onnx --output net/

The output is a folder: the model in each format, labels.txt, config.json, README.md, and check/ with a few test
images. They are replayed in the runtimes of the formats before the folder gets its name.
python -m flax_resnet export --model resnet50.a1_in1k --format onnx,stablehlo --output net/
    Exports timm's weights, or a weights file (--weights), in two formats.
python -m flax_resnet export --check net/
    Replays the test images again, for instance on another machine. No run is needed.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app, device, network_flags
from flax_resnet.errors import ConfigError
from flax_resnet.inference.export.format_row import FORMATS
from flax_resnet.inference.export.signature import LARGEST_BATCH, PRECISIONS, PREPROCESSING

OPTIONS = ("format", "image_size", "preprocessing", "softmax", "batch_size", "precision")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet export", __doc__, _define, _export, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_compilation_cache(values)
    device.define(values)
    network_flags.define(values)
    formats = "; ".join(f"{row.name}: {row.help}" for row in FORMATS.values())
    images = "; ".join(f"{name}: {help}" for name, help in PREPROCESSING.items())
    for name, default, help in (
        ("output", "", "folder to write, new or empty"),
        ("format", "onnx", f"formats, separated by commas ({formats})"),
        ("check", "", "instead of exporting: an exported folder whose test images are replayed"),
    ):
        flags.DEFINE_string(name, default, help, flag_values=values)
    flags.DEFINE_integer(
        "image_size",
        None,
        "height and width of the network's images (default: the evaluation size of the network)",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "images per call of the exported model (default: any number)",
        lower_bound=1,
        upper_bound=LARGEST_BATCH,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "preprocessing", "none", [*PREPROCESSING], f"input ({images})", flag_values=values
    )
    flags.DEFINE_bool("softmax", False, "return probabilities, not logits", flag_values=values)
    flags.DEFINE_enum(
        "precision", "float32", [*PRECISIONS], "dtype of the stored weights", flag_values=values
    )


def _export(values: flags.FlagValues) -> None:
    folder = app.flag(values, "check")
    if folder:
        _check(values, folder)
        return
    network_flags.check(values, purpose="export", model_only=("weights",))
    output = app.flag(values, "output")
    if not output:
        raise app.needed("--output", "the folder to write")
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.inference.export import export
    from flax_resnet.inference.network_choice import NetworkChoice

    network = NetworkChoice(**{name: app.flag(values, name) for name in NetworkChoice._fields})
    options = {name: app.flag(values, name) for name in OPTIONS}
    try:
        written = export(network, output, **options)
    except ConfigError as error:
        if error.key not in OPTIONS:
            raise
        raise ConfigError(
            error.problem,
            key=f"--{error.key}",
            value=error.value,
            allowed=error.allowed,
            cure=error.cure,
        ) from error
    size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    print(f"{written}: {size / 1e6:,.1f} MB; README.md says how to load the model")


def _check(values: flags.FlagValues, folder: str) -> None:
    """Replay the test images of an exported folder, and print a table."""
    for name in ("workdir", "model", "weights", "checkpoint", "output", *OPTIONS):
        if app.flag(values, name) != values[name].default:
            raise ConfigError(
                f"is not used with --check={folder}",
                key=f"--{name}",
                value=app.flag(values, name),
                cure="leave it out",
            )
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.inference.export.replaying import refuse_differences, replay

    results = replay(folder)
    rows = [("format", "runtime", "images", "largest difference", "")]
    for row in results:
        if row.difference is None:
            rows.append((row.format, f"missing: {row.runtime}", "0", "not checked", ""))
            continue
        verdict = f"above {row.tolerance:g}" if row.differs else f"ok, at most {row.tolerance:g}"
        rows.append((row.format, row.runtime, str(row.images), f"{row.difference:.1e}", verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip())
    refuse_differences(results, pathlib.Path(folder))


if __name__ == "__main__":
    sys.exit(main())
