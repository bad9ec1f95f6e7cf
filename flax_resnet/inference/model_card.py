"""The model card of a run: README.md for a repository of the Hugging Face hub."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax_resnet.config import Config, flatten, freeze, settings
from flax_resnet.data.data_section import SOURCES
from flax_resnet.inference.intervals import proportion_interval
from flax_resnet.optim.evaluation_metrics import monitored, shown
from flax_resnet.settings import UNSET

MOST_NAMES = 20  # class names in the text; config.json lists all
# The licences that the hub knows by an identifier. Source: huggingface.co/docs/hub/repositories-licenses.
LICENSES = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m"),
    *(
        "bigscience-bloom-rail-1.0",
        "bigcode-openrail-m",
        "afl-3.0",
        "artistic-2.0",
        "bsl-1.0",
        "bsd",
    ),
    *("bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0"),
    *("cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0"),
    *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0"),
    *(
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "agpl-3.0",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
    ),
    *("lgpl-2.1", "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl"),
    *(
        "apple-ascl",
        "apple-amlr",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "openmdw-1.0",
        "openrail++",
        "osl-3.0",
    ),
    *("postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr"),
    *("deepfloyd-if-license", "fair-noncommercial-research-license", "unknown", "other"),
)


class CardFacts(NamedTuple):
    """What a model card says.

    Attributes:
      repository: USER/NAME, for the lines that load the weights.
      license: one of LICENSES.
      config: the configuration of the run.
      class_names: names of the classes.
      num_examples: number of training images; 0 if unknown.
      step: number of updates made.
      parameters: number of parameters.
      record: the evaluation of these weights on `data.eval_split`; {} without one.
      chosen: whether the checkpoint was chosen by that split.
      versions: {package: version} of the training.
      lacking: options that timm lacks; the network itself, if timm lacks it. Empty if timm loads the weights.
    """

    repository: str
    license: str
    config: Config
    class_names: tuple[str, ...]
    num_examples: int
    step: int
    parameters: int
    record: Mapping[str, Any]
    chosen: bool
    versions: Mapping[str, str]
    lacking: Sequence[str]


def model_card(facts: CardFacts) -> str:
    """Return the text of README.md: the front matter in YAML, then data, result, recipe, versions and loading."""
    average = ""
    if facts.config.averages_weights:
        average = " These are the moving averages of the weights."
    parts = (
        f"# {facts.repository.rpartition('/')[2]}",
        f"{facts.config.model.name}, {facts.parameters:,} parameters, {len(facts.class_names)} classes, trained "
        f"with flax_resnet for {facts.step:,} steps.{average}",
        _loading(facts),
        _data(facts),
        _result(facts),
        _recipe(facts),
        "## Versions\n\n" + ", ".join(f"{name} {text}" for name, text in facts.versions.items()),
        f"## License\n\n{facts.license}",
    )
    return f"---\n{_front_matter(facts)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if facts.record:
        name = _data_name(facts.config)
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=name,
                dataset_name=name,
                dataset_split=facts.config.data.eval_split,
                metric_type="accuracy",
                metric_value=round(monitored(facts.record), 6),
                metric_name="top-1",
            )
        ]
    library = "flax_resnet" if facts.lacking else "timm"
    card = ModelCardData(
        license=facts.license,
        library_name=library,
        pipeline_tag="image-classification",
        tags=[
            "image-classification",
            "resnet",
            "jax",
            "flax",
            *([] if facts.lacking else ["timm"]),
        ],
        model_name=facts.repository.rpartition("/")[2] if results else None,
        eval_results=results,
    )
    return card.to_yaml().strip()


def _loading(facts: CardFacts) -> str:
    name = facts.repository
    ours = (
        "```python\nimport flax_resnet\n\n"
        f'classifier = flax_resnet.load_pretrained("{name}")\n'
        'labels, probabilities, _ = classifier.predict("photo.jpg")\n'
        "print(classifier.class_names[labels[0]])\n```"
    )
    if facts.lacking:
        lacking = ", ".join(facts.lacking)
        return (
            f"## Load\n\n{ours}\n\n**Only flax_resnet loads these weights**: timm lacks {lacking}."
        )
    theirs = (
        "```python\nimport timm\n\n"
        f'model = timm.create_model("hf_hub:{name}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```"
    )
    return f"## Load\n\n{ours}\n\n{theirs}"


def _data(facts: CardFacts) -> str:
    data, names = facts.config.data, facts.class_names
    listed = ", ".join(" ".join(name.split()) for name in names[:MOST_NAMES])
    rest = f" and {len(names) - MOST_NAMES} more (config.json)" if len(names) > MOST_NAMES else ""
    images = f", {facts.num_examples:,} images" if facts.num_examples else ""
    size = data.eval_size or data.image_size
    return (
        f"## Data\n\n- dataset: {_data_name(facts.config)}\n- training split: {data.train_split}{images}\n"
        f"- classes: {listed}{rest}\n- images: {size} x {size} px, mean {list(facts.config.augment.mean)}, "
        f"std {list(facts.config.augment.std)}"
    )


def _result(facts: CardFacts) -> str:
    if not facts.record:
        return "## Result\n\nThe run holds no evaluation of these weights."
    count, top1 = int(facts.record["count"]), monitored(facts.record)
    low, high = proportion_interval(round(top1 * count), count)
    split = facts.config.data.eval_split
    chosen = (
        "\n\nThe checkpoint was chosen by this split, so the figure is optimistic."
        if facts.chosen
        else ""
    )
    prefix = "ema_" if "ema_top1" in facts.record else ""
    return (
        f"## Result\n\ntop-1 accuracy **{top1:.2%}** on {split} ({count:,} images); 95 % interval "
        f"{low:.2%} to {high:.2%} (Wilson)\n\n{shown(facts.record, prefix)}{chosen}"
    )


def _recipe(facts: CardFacts) -> str:
    default, found = flatten(freeze({})), flatten(facts.config)
    location = f"data.{SOURCES[facts.config.data.source].location}"
    told = {
        key: value
        for key, value in found.items()
        if value != default[key] and value is not UNSET
        if settings()[key].metadata["changes_result"] or key == location
    }
    text = "\n".join(f"    config.{key} = {_public(value)!r}" for key, value in told.items())
    shortened = any(_public(value) != value for value in told.values())
    note = " Set the paths, of which only the last part is told." if shortened else ""
    return (
        f"## Recipe\n\nThe settings that differ from the defaults, as `recipe.py`.{note}\n\n"
        "```python\nfrom flax_resnet.config import default_config\n\n\ndef get_config():\n"
        f"    config = default_config()\n{text}\n    return config\n```\n\n"
        "```\npython -m flax_resnet train --config recipe.py --workdir runs/new\n```"
    )


def _data_name(config: Config) -> str:
    """Return the name of the dataset; of a path only its last part, which says nothing about the machine."""
    location = SOURCES[config.data.source].location
    return str(_public(config.data.dataset)) if location else "arrays"


def _public(value: Any) -> Any:
    """Return a setting without the folders of an absolute path."""
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(os.path.normpath(value))
    return value
