"""Convert weights to a run, or a run to weights: python -m flax_resnet convert SOURCE DEST

Import: SOURCE is the name of timm's weights (resnet50.a1_in1k), or a weights file together with --model. A weights
file is in torch's layout (.safetensors, or a checkpoint of torch), BiT's (.npz) or this package's (.msgpack). DEST
is a new run folder, for flax_resnet.load.
Export: SOURCE is a run folder. DEST is a new .safetensors file, for timm or torchvision. A .json file beside it
holds the classes and the preprocessing, with the keys of timm's config.json.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import ConfigError, WeightsError, WorkdirError, writing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run(
        "flax-resnet convert", __doc__, _define, _convert, argv, positional=("source", "dest")
    )


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    flags.DEFINE_string(
        "source", "", "name of timm's weights, weights file, or run folder", flag_values=values
    )
    flags.DEFINE_string("dest", "", "run folder or .safetensors file to write", flag_values=values)
    flags.DEFINE_string("model", "", "network of the weights file SOURCE", flag_values=values)
    flags.DEFINE_string(
        "checkpoint", "last", "checkpoint of a run: last, best, or a step", flag_values=values
    )


def _convert(values: flags.FlagValues) -> None:
    source, dest = app.flag(values, "source"), app.flag(values, "dest")
    for key, value in (("SOURCE", source), ("DEST", dest)):
        if not value:
            raise ConfigError(
                "is needed", key=key, cure="run python -m flax_resnet convert SOURCE DEST"
            )
    if pathlib.Path(source).expanduser().is_dir():
        if model := app.flag(values, "model"):
            raise ConfigError(
                f"SOURCE={source} is a run folder, which knows its own network",
                key="--model",
                value=model,
                cure="leave it out",
            )
        export_run(source, dest, checkpoint=app.flag(values, "checkpoint"))
    else:
        import_weights(source, dest, model=app.flag(values, "model"))


def import_weights(source: str, dest: str, *, model: str = "") -> None:
    """Write pretrained weights as a run folder.

    Args:
      source: weights file, or the name of timm's weights.
      dest: the run folder, new or empty.
      model: the network of a weights file; may include the timm tag that selects the preprocessing.

    Raises:
      UserError: there are no such weights, they do not fit the network, or `dest` holds a run already.
    """
    import jax
    import jax.numpy as jnp

    from flax_resnet.config import freeze
    from flax_resnet.inference.classifier import load_pretrained
    from flax_resnet.training import sharding
    from flax_resnet.training.runs.checkpoint import Checkpoints
    from flax_resnet.training.runs.folder import RunFolder
    from flax_resnet.training.runs.metadata import RunMetadata
    from flax_resnet.training.state import TrainState

    folder = RunFolder.at(dest)
    if folder.read_config() is not None:
        raise WorkdirError("holds a run already", key=folder.path, cure="name a new folder")
    _check_import(source, dest, model)
    classifier = load_pretrained(model or source, weights=source if model else "")
    # With momentum 0 the optimizer has no momentum state, which pretrained weights do not include.
    optimizer = dataclasses.replace(classifier.config.optimizer, momentum=0.0)
    config = freeze(dataclasses.asdict(dataclasses.replace(classifier.config, optimizer=optimizer)))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=classifier.variables["params"],
        batch_stats=classifier.variables["batch_stats"],
        opt_state=_optimizer_state(config, classifier),
        ema={},
    )
    metadata = RunMetadata(
        config=dataclasses.asdict(config),
        class_names=classifier.class_names,
        num_classes=classifier.model.num_classes,
    )
    folder.claim(config, resume="auto")
    checkpoints = Checkpoints(folder.path)
    try:
        everywhere = sharding.replicated(sharding.make_mesh())
        checkpoints.save(0, jax.device_put(state, everywhere), metadata)
    finally:
        checkpoints.close()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{config.model.name}, {count:,} parameters, {len(classifier.class_names)} classes, "
        f'in {folder}\nin Python: flax_resnet.load("{folder}")'
    )


def _check_import(source: str, dest: str, model: str) -> None:
    """Raise for arguments of `import_weights` that are wrong or do not fit together."""
    from flax_resnet.training.pretrained import is_file
    from flax_resnet.weights.opening import SUFFIXES

    if not is_file(source) and "/" in source:
        raise WeightsError("there is no such file or folder", key="SOURCE", value=source)
    if suffix := next((end for end in SUFFIXES if dest.lower().endswith(end)), ""):
        raise ConfigError(
            key="DEST",
            value=dest,
            allowed=f"a new run folder, whose name does not end in {suffix}",
        )
    if is_file(source) and not model:
        raise app.needed("--model", f"the network that {source} holds, such as resnet50")
    if model and not is_file(source):
        raise ConfigError(
            f"SOURCE={source} is not a weights file",
            key="--model",
            value=model,
            cure="leave it out, or name a weights file",
        )


def _optimizer_state(config: Any, classifier: Any) -> Any:
    from flax_resnet.config.plan import Plan, planned_optimizer

    plan = Plan.nominal(classifier.model.num_classes)
    optimizer = planned_optimizer(config, plan, classifier.model)
    return optimizer.init(classifier.variables["params"])


def export_run(source: str, dest: str, *, checkpoint: str = "last") -> None:
    """Write a run's weights as .safetensors in torch's layout, and their network and preprocessing as .json.

    Args:
      source: the run folder.
      dest: the .safetensors file; it must not exist.
      checkpoint: "last", "best" or a step.

    Raises:
      UserError: there is no such run or checkpoint, or `dest` exists or cannot be written.
    """
    from flax_resnet.inference.classifier import load
    from flax_resnet.inference.export.weights_file import write_weights
    from flax_resnet.training.pretrained import described

    file = pathlib.Path(dest).expanduser()
    if file.suffix != ".safetensors":
        raise WeightsError(
            f"SOURCE={source} is a run", key="DEST", value=dest, allowed="a .safetensors file"
        )
    sidecar = file.with_suffix(".json")
    for path in (file, sidecar):
        if path.exists():
            raise WeightsError("exists already", key=path, cure="name another file")
    classifier = load(source, checkpoint)
    written = write_weights(classifier, file)
    about = described(classifier.config, classifier.model, classifier.class_names)
    with writing(sidecar):
        sidecar.write_text(json.dumps(about, indent=2) + "\n")
    options = about["options"]
    print(f"{file}: {written}")
    if options:
        changed = ", ".join(f"{key}={value}" for key, value in options.items())
        print(f"to load the file, create the network with the same options: {changed}")


if __name__ == "__main__":
    sys.exit(main())
