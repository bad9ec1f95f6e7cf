"""Compile the training step for GPUs without having one, and count kernels: python -m benchmarks.lab.gpu_program

    --models resnet50 --targets h100 a100 --gpus 1 8 2x8 --settings model.norm_scope=local --output program.json
    --check                compile the cases in expected/gpu_program.json; fail if a figure got worse
    --store                add the compiled programs to expected/gpu_program.json

The step is the training step of `flax_resnet.main`, with the optimizer and the normalisation of the images. It is
compiled ahead of time. `--plain_flax` also compiles the step of a ResNet in plain linen. This needs XLA's compiler
for GPUs, but no GPU: pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt, in the version of the installed jax.

No kernel is run: XLA does not autotune here, and the time of a kernel is unknown. Use the figures to compare two
programs and to catch regressions. The bounds are lower bounds of the step time, one from the memory bandwidth of
the GPU and one from its peak FLOP/s.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
from typing import Any

import jax

from benchmarks import app
from benchmarks.arguments import absent, count, output
from benchmarks.lab.gpu_specs import TARGETS
from benchmarks.lab.kernels import KINDS
from benchmarks.lab.program_figures import Case, figures
from benchmarks.record import write_record
from benchmarks.speed.plain_flax import PLAIN_FLAX
from benchmarks.speed.workloads import configured
from flax_resnet.errors import ConfigError, one_line, writing
from flax_resnet.models.summary import summarize
from flax_resnet.ops import dispatch

EXPECTED = pathlib.Path(__file__).parents[1] / "expected" / "gpu_program.json"
LABEL = "The compiler's program, not measured time."
# Figures that --check compares, and the fraction by which each may exceed the expected value.
LIMITS = {
    "float32_convolutions": 0.0,
    "convolutions_not_nhwc": 0.0,
    "convolutions_without_cudnn": 0.0,
    "convolutions": 0.0,
    "activation_copies": 0.0,
    "kernels": 0.02,
    "bytes": 0.01,
    "temporary_bytes": 0.01,
    "collectives": 0.0,
    "collective_bytes": 0.01,
    "exposed_collectives": 0.0,
}


def table(case: Case, measured: dict[str, Any]) -> str:
    """Return the figures of a program as a readable table."""
    target = TARGETS[case.target]
    lines = [f"{case}. {LABEL}", f"{'':22}{'kernels':>9}{'GB':>9}{'share':>8}"]
    for kind in KINDS:
        number, moved = measured["kernels_by_kind"][kind], measured["bytes_by_kind"][kind]
        if number:
            share = moved / measured["bytes"]
            lines.append(f"{kind:22}{number:9}{moved / 1e9:9.2f}{share:8.1%}")
    lines.append(f"{'all':22}{measured['kernels']:9}{measured['bytes'] / 1e9:9.2f}")
    lines.append(
        f"convolutions: {measured['convolutions']}; float32 {measured['float32_convolutions']}, not NHWC "
        f"{measured['convolutions_not_nhwc']}, not by cuDNN {measured['convolutions_without_cudnn']}; "
        f"copies of activations: {measured['activation_copies']}"
    )
    if measured["collectives"]:
        dtypes = measured["collective_bytes_by_dtype"].items()
        by_dtype = ", ".join(f"{moved / 1e6:.1f} MB {dtype}" for dtype, moved in dtypes)
        lines.append(
            f"collectives: {measured['collectives']} ({by_dtype}); exposed: {measured['exposed_collectives']} "
            f"({measured['exposed_bytes'] / 1e6:.1f} MB); moved by kernels during collectives: "
            f"{measured['bytes_beside_collectives'] / 1e9:.2f} GB"
        )
    lines.append(
        f"temporary {measured['temporary_bytes'] / 1e9:.2f} GB, "
        f"arguments {measured['argument_bytes'] / 1e9:.2f} GB; "
        f"traced in {measured['trace_seconds']:.1f} s, compiled in {measured['compile_seconds']:.1f} s"
    )
    lines.append(
        f"lower bounds of the step time: {1e3 * measured['bytes'] / target.bandwidth:.1f} ms to move the bytes, "
        f"{1e3 * measured['flops'] / target.flops:.1f} ms for arithmetic in bfloat16"
    )
    return "\n".join(lines)


def slips(case: Case, measured: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return a line for each figure that is worse than expected."""
    return [
        f"{case}: {name.replace('_', ' ')}: {measured[name]:,}, expected at most {expected[name]:,}"
        + (f" and {share:.0%}" if share else "")
        for name, share in LIMITS.items()
        if measured[name] > expected[name] * (1 + share)
    ]


def check(cases: dict[Case, dict[str, Any]]) -> int:
    """Compile the expected cases, print the figures that got worse, and return their number."""
    number = 0
    for case, expected in cases.items():
        measured = figures(case)
        worse = slips(case, measured, expected)
        print(
            "\n".join(worse) or f"{case}: {measured['bytes'] / 1e9:.1f} GB, as expected", flush=True
        )
        number += len(worse)
    return number


def load_expected() -> dict[Case, dict[str, Any]]:
    """Return the expected figures of each case.

    Raises:
      ConfigError: the file is damaged, or was written with another version of jax, which compiles other programs.
    """
    if not EXPECTED.exists():
        return {}
    try:
        stored = json.loads(EXPECTED.read_text())
        of, rows = stored["jax"], stored["programs"]
        expected = {
            Case(**row["case"] | {"settings": tuple(row["case"]["settings"])}): row["figures"]
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"holds no expected figures: {one_line(error)}",
            key=EXPECTED,
            cure="restore the file, or remove it and run with --store",
        ) from error
    if of != jax.__version__:
        raise ConfigError(
            f"was written with jax {of}, but jax {jax.__version__} is installed",
            key=EXPECTED,
            cure="pip install that version, or remove the file and run with --store",
        )
    return expected


def expected_of(models: list[str] | None) -> dict[Case, dict[str, Any]]:
    """Return the expected figures of each case of these models; of all models for None.

    Raises:
      ConfigError: a model has no expected figures.
    """
    expected = load_expected()
    known = {case.model for case in expected}
    for model in models or known:
        if model not in known:
            raise ConfigError("has no expected figures", key="--models", value=model, allowed=known)
    return {
        case: measured for case, measured in expected.items() if case.model in (models or known)
    }


def store(measured: dict[Case, dict[str, Any]]) -> None:
    """Add the figures of programs to the expected figures."""
    names = (*LIMITS, "bytes_by_kind", "collective_bytes_by_dtype")
    programs = load_expected() | {
        case: {name: figure[name] for name in names} for case, figure in measured.items()
    }
    rows = [{"case": case._asdict(), "figures": programs[case]} for case in sorted(programs)]
    unfinished = EXPECTED.with_suffix(".part")
    with writing(EXPECTED):
        EXPECTED.parent.mkdir(exist_ok=True)
        unfinished.write_text(
            json.dumps({"jax": jax.__version__, "programs": rows}, indent=1) + "\n"
        )
        os.replace(unfinished, EXPECTED)


def gpus(text: str) -> str:
    """Read a number of GPUs, or HOSTSxGPUS: the number of hosts and of GPUs per host."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 1 <= int(part) <= 64 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text}: must be a number of GPUs, 1 to 64, or hosts x GPUs per host, such as 2x8"
        )
    return text


@app.command
def main() -> int:
    """Parse the arguments, compile the programs, print their figures, and return the exit code."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+",
                        help="default: resnet50; with --check: all models in the expected file")  # fmt: skip
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["h100"])
    parser.add_argument("--gpus", nargs="+", type=gpus, default=["1"],
                        help="number of GPUs, such as 8; 2x8 for two hosts with 8 GPUs each")  # fmt: skip
    parser.add_argument("--batch_size", type=count, default=256, help="images per GPU")
    parser.add_argument(
        "--image_size", type=count, default=0, help="pixels; 0: default of the model"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--settings", nargs="+", default=[], help="such as model.norm_scope=local")
    parser.add_argument("--plain_flax", action="store_true",
                        help="also compile a ResNet in plain linen")  # fmt: skip
    parser.add_argument("--check", action="store_true", help="compare with the expected figures")
    parser.add_argument("--store", action="store_true", help="store as the expected figures")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    args = parser.parse_args()
    prepare()
    if args.check:
        return 1 if check(expected_of(args.models)) else 0
    run(args)
    return 0


def prepare() -> None:
    """Let this process compile for GPUs, with the package's operations for GPUs.

    Raises:
      ConfigError: XLA's compiler for GPUs is not installed.
    """
    if absent("jax_cuda12_plugin"):
        version = jax.__version__
        raise ConfigError(
            "not installed",
            key="XLA's compiler for GPUs",
            cure=f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}",
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    # Otherwise, the backend (CPU) would choose the operations.
    os.environ[dispatch.SWITCH] = "gpu"


def run(args: argparse.Namespace) -> None:
    """Compile all combinations; print, store and write each result as soon as it is ready.

    Raises:
      ConfigError: a name or a setting is invalid; raised before the first compilation.
    """
    cases = []
    kinds = [False, True] if args.plain_flax else [False]
    for model, target, many, plain_flax in itertools.product(
        args.models or ["resnet50"], args.targets, args.gpus, kinds
    ):
        if plain_flax and model not in PLAIN_FLAX:
            raise ConfigError(
                "--plain_flax has no such network", key="--models", value=model, allowed=PLAIN_FLAX
            )
        settings = () if plain_flax else tuple(args.settings)
        case = Case(
            model, target, many, args.batch_size, args.image_size, args.dtype, settings, plain_flax
        )
        summarize(model, image_size=args.image_size)
        configured(model, 224, args.batch_size, dtype=args.dtype, settings=settings)
        cases.append(case)
    results = []
    for case in cases:
        measured = figures(case)
        print(table(case, measured), end="\n\n", flush=True)
        results.append({"case": case._asdict(), **measured})
        write_record(args.output, {"what": LABEL, "programs": results})
        if args.store:
            store({case: measured})


if __name__ == "__main__":
    sys.exit(main())
