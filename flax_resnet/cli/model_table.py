"""The evaluation of several networks into one table, a row for each; part of the command evaluate."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from flax_resnet.cli import app
from flax_resnet.cli.continued_output import Written, written_rows
from flax_resnet.cli.row_writers import format_of, row_writer
from flax_resnet.errors import (
    ConfigError,
    DataError,
    OutputError,
    UserError,
    WeightsError,
    printable,
    recognized,
)

log = logging.getLogger("flax_resnet")


def is_asked_for(values: flags.FlagValues) -> bool:
    """Return whether the flags of evaluate select several networks, or a file for their rows."""
    names = ("models", "output", "append")
    pattern = any(letter in app.flag(values, "model") for letter in "*?[")
    return pattern or any(app.flag(values, name) for name in names)


def evaluate(values: flags.FlagValues) -> None:
    """Evaluate the networks one after the other, and write their rows.

    Raises:
      UserError: a flag is wrong, the data are missing, the output cannot be written, or networks could not be
        evaluated; the last after all others have a row.
    """
    output, append, kind = _output(values)
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.named import DatasetChoice
    from flax_resnet.inference import several_models
    from flax_resnet.inference.evaluation import open_other

    key = "--models" if app.flag(values, "models") else "--model"
    texts = [app.flag(values, "model")]
    if key == "--models":
        texts = several_models.read_names(app.flag(values, "models"), key)
    weights, real_labels = app.flag(values, "weights"), app.flag(values, "real_labels")
    models = several_models.select_models(texts, weights, key)
    fields = ("dataset", "split", "data_dir", "image_size")
    choice = DatasetChoice(**{name: app.flag(values, name) for name in fields})
    open_other(Data(), choice)  # raises for wrong data before any download
    columns = [*several_models.COLUMNS, *(several_models.REAL_COLUMNS if real_labels else ())]
    done: set[str] = set()

    def note(row: Mapping[str, Any]) -> None:
        _check_row(row, choice._asdict(), weights, output)
        done.add(row["model"])

    written = written_rows(output, kind, columns, note) if append else Written()
    if skipped := done.intersection(models.names):
        log.info("%s: %d of %d networks have a row", output, len(skipped), len(models.names))
    failed = []
    with row_writer(output, kind, columns, keep=written.size, at_once=True) as writer:
        for name in models.names:
            if name in done:
                continue
            try:
                row = several_models.model_row(
                    name,
                    choice,
                    weights=models.file_of(name),
                    batch_size=app.flag(values, "batch_size"),
                    real_labels=real_labels,
                )
            except Exception as error:
                failed.append(name)
                _report(name, error)
                continue
            writer.write(row)
            if output:
                print(f"{name}: top-1 {row['top1']:.2%} of {row['count']:,} images", flush=True)
    if failed:
        again = "the same command with --append evaluates only these" if output else ""
        raise WeightsError(
            f"{len(failed)} of {len(models.names)} networks were not evaluated: {', '.join(failed)}",
            key=key,
            value=app.flag(values, key.removeprefix("--")),
            cure=again,
        )


def _output(values: flags.FlagValues) -> tuple[str, bool, str]:
    """Return the output, whether to continue it, and its format. Raise ConfigError if they do not fit."""
    output, append = app.flag(values, "output"), app.flag(values, "append")
    if confusion := app.flag(values, "confusion"):
        raise ConfigError(
            "is for one network, and without --output",
            key="--confusion",
            value=confusion,
            cure="leave it out",
        )
    if append and not output:
        raise ConfigError("needs --output, a .csv or .jsonl file", key="--append")
    kind = "csv" if not output else format_of(output)
    if kind == "parquet":
        raise ConfigError(key="--output", value=output, allowed="a .csv or .jsonl file")
    return output, append, kind


def _check_row(row: Mapping[str, Any], choice: Mapping[str, Any], folder: str, output: str) -> None:
    """Raise DataError if a row that is there already is that of other images, or of weights in another place."""
    found = {name: str(row[name]) for name in ("dataset", "split", "image_size")}
    wanted = {name: str(choice[name]) for name in found if choice[name]}
    file = row["weights"]
    found["weights"] = file if file in ("", folder) else str(pathlib.Path(file).parent)
    wanted["weights"] = folder if folder in ("", file) else str(pathlib.Path(folder).expanduser())
    for name, value in wanted.items():
        if found[name] != value:
            raise DataError(
                f"has a row with {name}={found[name]}, not {value or 'those of the hub'}",
                key="--output",
                value=output,
                cure="name another file",
            )


def _report(name: str, error: Exception) -> None:
    """Print one line for a network that cannot be evaluated. Raise what is a bug, or stops all networks."""
    mistake = error if isinstance(error, UserError) else recognized(error)
    if mistake is None or isinstance(mistake, OutputError):
        raise error
    log.warning("%s: not evaluated: %s", printable(name), " ".join(str(mistake).split()))
