"""The model card of an export: what the model takes and returns, and how to load each file."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax_resnet.config import Config
from flax_resnet.inference.export.format_row import FORMATS
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.replaying import Replayed
from flax_resnet.inference.intervals import proportion_interval
from flax_resnet.models.model_section import CHANNELS
from flax_resnet.optim.evaluation_metrics import monitored

SHOWN = 20  # classes that the card lists


class RunResult(NamedTuple):
    """The result of a run at the exported step.

    Attributes:
      top1: top-1 accuracy, 0 to 1.
      images: number of images; 0 if unknown.
      split: the evaluation split.
      size: height and width of the evaluated images.
    """

    top1: float
    images: int
    split: str
    size: int

    def in_words(self) -> str:
        """Return a sentence with Wilson's 95 % interval, of the finite number of images."""
        text = f"Top-1 accuracy on the split `{self.split}` at {self.size} px: {self.top1:.2%}"
        if not self.images:
            return f"{text}."
        low, high = proportion_interval(round(self.top1 * self.images), self.images)
        return f"{text} (95 % interval {low:.2%} to {high:.2%}, {self.images:,} images)."


def run_result(records: Sequence[Mapping[str, Any]], config: Config, step: int) -> RunResult | None:
    """Return the result of a run at a step, or None if the step was not evaluated."""
    data = config.data
    split = data.eval_split
    found = [r for r in records if r.get("split") == split and r.get("step") == step]
    if not found:
        return None
    size = data.eval_size or data.image_size
    return RunResult(monitored(found[-1]), int(found[-1].get("count", 0)), split, size)


def preparation(program: Program) -> dict[str, list[str]]:
    """Return the steps from a stored image to the network, by who does them: "caller" or "model"."""
    data, augment, size = program.config.data, program.config.augment, program.signature.image_size
    read = ["decode the image to 8 bits per channel of RGB"]
    if data.exif:
        read.append("turn it upright by its EXIF orientation")
    resized = f"with Pillow's {data.interpolation} filter"
    if data.eval_crop == "resize":
        resize = [f"resize it to {size} x {size} px {resized}"]
    else:
        short = int(size / data.eval_crop_fraction + 1e-6)
        resize = [f"resize it {resized} so that the shorter side has {short} px"]
        resize.append(f"crop the central {size} x {size} px")
    mean, std = (", ".join(f"{x:.6g}" for x in values) for values in (augment.mean, augment.std))
    normalize = [f"divide by 255, subtract {mean}, and divide by {std}"]
    if program.model.in_channels != CHANNELS:
        normalize.insert(0, "make it grey: 0.299 R + 0.587 G + 0.114 B, rounded")
    parts = {"none": 3, "normalize": 2, "resize": 1}[program.signature.preprocessing]
    stages = [read, resize, normalize]
    caller, model = stages[:parts], stages[parts:]
    views = {
        f"images shifted by {augment.eval_shift} px": augment.eval_shift,
        "mirrored images": augment.eval_flip,
    }
    if also := " and ".join(text for text, used in views.items() if used):
        model = [*model, [f"average the logits over the image and {also} (not in .safetensors)"]]
    return {
        "caller": list(itertools.chain.from_iterable(caller)),
        "model": list(itertools.chain.from_iterable(model)),
    }


def model_card(
    program: Program,
    formats: Mapping[str, Mapping[str, Any]],
    checked: Sequence[Replayed],
    images: str,
    result: RunResult | None,
) -> str:
    """Return the text of README.md.

    Args:
      program: the program.
      formats: {format: its entry in config.json}.
      checked: the results of the test images.
      images: a description of the test images.
      result: the result of the run, if it has one.
    """
    name, signature = program.config.model.name, program.signature
    outputs = "probabilities" if signature.softmax else "logits"
    steps = preparation(program)
    lines = [
        f"# {name}",
        "",
        f"An image classifier with {len(program.class_names):,} classes, exported by flax_resnet "
        f"(weights: {signature.precision}). It returns {outputs}.",
        *(["", result.in_words()] if result else []),
        "",
        "## Preprocessing",
        "",
        "Before the model:",
        "",
        *(f"{n}. {step}" for n, step in enumerate(steps["caller"], 1)),
        *(["", "In the model:", ""] if steps["model"] else []),
        *(f"- {step}" for step in steps["model"]),
        "",
        "## Load",
    ]
    for entry, about in formats.items():
        takes = f"{about['input']['dtype']} {_sides(about['input']['shape'])}"
        load = FORMATS[entry].load.replace("{input}", takes).replace("{network}", name).strip()
        if "{input}" in FORMATS[entry].load:
            lines += ["", f"`{about['file']}` takes {takes} ({about['input']['layout']})."]
        else:
            lines += ["", f"`{about['file']}`: {FORMATS[entry].help}."]
        lines += ["", "```python", load, "```"] if load else []
    lines += ["", "## Classes", ""]
    shown = [_code(label_line(label)) for label in program.class_names[:SHOWN]]
    more = len(program.class_names) - len(shown)
    lines += [", ".join(shown) + (f", and {more:,} more" if more else "") + ". See `labels.txt`."]
    lines += ["", "## Check", "", f"`check/` holds {images}, with the outputs of flax_resnet.", ""]
    lines += ["| format | runtime | images | largest difference |", "|---|---|---|---|"]
    for row in checked:
        difference = "not checked" if row.difference is None else f"{row.difference:.1e}"
        lines.append(f"| {row.format} | {row.runtime} | {row.images} | {difference} |")
    logits = "the logarithms of the probabilities" if signature.softmax else "logits"
    lines += ["", f"Differences are of {logits}, relative to the largest. Repeat the check:", ""]
    lines += ["```", "flax-resnet export --check .", "```", ""]
    return "\n".join(lines)


def label_line(name: str) -> str:
    """Return the name of a class in one line of UTF-8: line breaks and control characters become escapes."""
    return "".join(
        ascii(char)[1:-1]
        if char.splitlines() == [""]
        or ord(char) < 32
        or 127 <= ord(char) < 160
        or 0xD800 <= ord(char) < 0xE000
        else char
        for char in name
    )


def _code(text: str) -> str:
    """Return a text as code in Markdown, whatever backticks it has."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _sides(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"
