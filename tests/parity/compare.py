"""Compares the networks with timm's and torchvision's, on the same weights.

    python tests/parity/compare.py --names 'resnet5*'
    python tests/parity/compare.py --gradients --output docs/parity.md

Needs the extra `parity` (timm, torch, torchvision). Prints a row per comparison and exits with 1 if any
failed. The weights are random, a function of each tensor's torch name and shape.
"""

import argparse
import dataclasses
import fnmatch
import gc
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import timm
import torch
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from golden.pairs import FLOAT32_BOUND, FLOAT64_BOUND
from parity_networks import CIFAR, all_pairs, option_pairs, timm_names
from parity_outputs import OWN_LIMIT, Row, compare_features, compare_logits
from parity_training import LAST_SCALE, LEARNING_RATE, STEPS, compare_gradients, compare_trajectory
from tqdm import tqdm

ROOT = pathlib.Path(__file__).parents[2]
GRADIENTS = (
    *("resnet18", "resnet50", "resnet50d", "resnet26t", "resnet50s", "resnext50_32x4d"),
    *("wide_resnet50_2", "seresnet50", "senet154", "ecaresnet26t", "ecaresnetlight"),
    *("ecaresnet50d_pruned", "resnetblur50", "resnetaa50d", "resnetrs50", "resnet50_gn"),
    *("test_resnet", "resnetv2_18d", "resnetv2_50", "resnetv2_50t", "resnetv2_50d_evos"),
    *("resnetv2_50d_frn", "resnetv2_50d_gn", "resnetv2_50x1_bit", "resnet20, option A"),
    *("preact164", "wrn16_4", "torchvision/alexnet", "torchvision/vgg11", "torchvision/vgg11_bn"),
)
TRAJECTORIES = ("resnet18", "resnet50", "wrn16_4")
FEATURES = ("resnet50", "resnetv2_50")


class Section(NamedTuple):
    """A table of the report: its title, what its columns are, and a comparison per label."""

    title: str
    text: str
    compare: Callable[[Any], Row]
    cases: dict[str, Any]


def sections(names: str, gradients: bool) -> list[Section]:
    """Returns what there is to compare, of the labels that match a shell pattern."""
    pairs = all_pairs()
    timms = {name: pairs[name] for name in timm_names()}
    tvs = {k: v for k, v in pairs.items() if k.startswith("torchvision/")}
    found = [
        Section(
            "Networks of timm",
            "float32: ours against torch's. torch's own: its float32 against its float64. float64: ours "
            "against torch's, where torch's own exceeds 1e-5.",
            compare_logits,
            timms,
        ),
        Section("Networks of torchvision", "The same.", compare_logits, tvs),
        Section(
            "Networks for small images",
            "The same; the torch side is put together from timm's blocks.",
            compare_logits,
            CIFAR,
        ),
        Section("Networks with options", "The same.", compare_logits, option_pairs()),
        Section(
            "Feature maps",
            "float64, against timm's `features_only=True`.",
            compare_features,
            {f"{name}, features": name for name in FEATURES},
        ),
    ]
    if gradients:
        found += [
            Section(
                "Gradients",
                "Four images in training mode, cross-entropy, float64 on both sides. worst gradient: "
                "the largest max|difference| / max(max|g|, 1e-3 of the largest |g| of all) over the "
                "gradients g of all parameters. loss float32: ours against torch's. our own, torch's "
                "own: the loss in float32 against float64 on the same side. All relative.",
                compare_gradients,
                {label: pairs[label] for label in GRADIENTS},
            ),
            Section(
                "Trajectories",
                f"{STEPS} steps of SGD (learning rate {LEARNING_RATE}, four new images each, the last "
                f"normalisation of every residual branch scaled by {LAST_SCALE}), float64 on both "
                "sides. losses: the largest relative difference. running statistics: the largest "
                "max|difference| / max|reference| over all tensors after every step.",
                compare_trajectory,
                {label: pairs[label] for label in TRAJECTORIES},
            ),
        ]
    chosen = []
    for section in found:
        cases = {k: v for k, v in section.cases.items() if fnmatch.fnmatch(k, names)}
        if cases:
            chosen.append(section._replace(cases=cases))
    return chosen


def rows_of(section: Section, progress: Callable[[], Any]) -> Iterator[Row]:
    """Runs the comparisons of a section one by one; what one raises is its failure."""
    for label, case in section.cases.items():
        start = time.perf_counter()
        try:
            row = section.compare(case)
        except Exception as error:  # the others are still to be compared
            row = Row("", {}, f"{type(error).__name__}: {error}")
        jax.clear_caches()
        gc.collect()
        progress()
        yield dataclasses.replace(row, label=label, seconds=time.perf_counter() - start)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _table(rows: list[Row]) -> Iterator[str]:
    columns = next((list(row.figures) for row in rows if row.figures), [])
    yield f"| network | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in rows:
        cells = [_text(row.figures.get(column)) for column in columns]
        mark = f" **failed**: {row.failure}" if row.failure else ""
        yield f"| {row.label}{mark} | {' | '.join(cells)} |"
    largest = ([row.figures.get(column) for row in rows] for column in columns)
    largest = ([value for value in column if isinstance(value, float)] for column in largest)
    cells = [_text(float(np.max(column))) if column else "" for column in largest]
    yield f"| **largest** | {' | '.join(cells)} |"


def report(results: list[tuple[Section, list[Row]]], command: str) -> str:
    """Writes the results as a page of Markdown."""
    agree = [
        f"{sum(not row.failure for row in rows)} of {len(rows)} {section.title[0].lower()}{section.title[1:]}"
        for section, rows in results
        if section.compare is compare_logits
    ]
    lines = [
        "# Parity with timm and torchvision",
        "",
        f"The logits of {', '.join(agree)} are torch's on the same weights: max|difference| / max|reference| is "
        f"at most {FLOAT32_BOUND:.0e} in float32, or, where torch's own float32-float64 distance exceeds "
        f"{OWN_LIMIT:.0e}, at most {FLOAT64_BOUND:.0e} in float64.",
        "",
        "- Weights: random, a function of each tensor's torch name and shape, running statistics and scales too "
        "([weights_by_name.py](../tests/parity/weights_by_name.py)). Each set went from the torch layout to Flax "
        "variables and back, came back bit for bit, and was loaded into the torch network with `strict=True`.",
        "- Images: two, random, 96 px (AlexNet and VGG: 224 px; networks for small images: 32 px).",
        "- float64 on torch's side is float64 throughout: where timm's EvoNorm and filter response normalisation "
        "would take their statistics in float32, they are kept from it.",
        f"- Versions: timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}, torchvision "
        f"{torchvision.__version__.partition('+')[0]}, JAX {jax.__version__}, Flax {flax.__version__}; on CPU.",
        "",
        "This page is what the following wrote; it takes about half an hour on two cores and up to 16 GiB of "
        "memory. `--names 'resnet5*'` compares only those. Where logits fail, the first layer whose outputs differ "
        "is named.",
        "",
        "```bash",
        "pip install -e '.[parity]'",
        command,
        "```",
    ]
    for section, rows in results:
        passed = sum(not row.failure for row in rows)
        lines += ["", f"## {section.title}: {passed} of {len(rows)}", "", section.text, ""]
        lines += _table(rows)
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Compares, prints, and writes the page where asked. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare with timm and torchvision.")
    parser.add_argument("--names", default="*", help="shell pattern of what to compare")
    parser.add_argument("--gradients", action="store_true", help="training too: gradients, SGD")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file to write")
    flags = parser.parse_args(arguments)
    chosen = sections(flags.names, flags.gradients)
    if not chosen:
        parser.error(f"--names={flags.names!r} matches nothing")
    total = sum(len(section.cases) for section in chosen)
    results, failures = [], []
    with tqdm(total=total, file=sys.stderr, unit="network") as bar:
        for section in chosen:
            rows = []
            for row in rows_of(section, bar.update):
                rows.append(row)
                figures = "  ".join(
                    f"{k} {_text(v)}" for k, v in row.figures.items() if v is not None
                )
                tqdm.write(
                    f"{section.title}: {row.label:32} {figures}  {row.failure or 'ok'}  {row.seconds:.1f} s",
                    file=sys.stdout,
                )
                sys.stdout.flush()
                if row.failure:
                    failures.append(f"{section.title}: {row.label}: {row.failure}")
            results.append((section, rows))
    if flags.output:
        switch = " --gradients" if flags.gradients else ""
        names = "" if flags.names == "*" else f" --names '{flags.names}'"
        output = os.path.relpath(flags.output, ROOT)
        command = f"python tests/parity/compare.py{names}{switch} --output {output}"
        flags.output.write_text(report(results, command), encoding="utf-8")
    print(f"{total - len(failures)} of {total} agree")
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
