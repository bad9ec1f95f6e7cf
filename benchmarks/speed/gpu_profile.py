"""Measure the time of each kernel of a training step on a GPU: python -m benchmarks.speed.gpu_profile

    --model resnet50 --batch_size 256 --output profile.json --plot profile.png
    --read profile.json --plot profile.png                      print and draw an earlier record; needs no GPU

Profiles the training step of `flax_resnet.main`. The table has the time of each kernel and the bytes that it must
move, counted as in `benchmarks.lab.gpu_program`. The bandwidth of a plain copy is measured too: look first at the
kernels far below it. Identical kernels share a name and a line. Needs exactly one GPU.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks import app
from benchmarks.arguments import count, existing, output, picture
from benchmarks.lab import hlo, kernels
from benchmarks.record import write_record
from benchmarks.speed import roofline
from benchmarks.speed.model_speed import device
from benchmarks.speed.workloads import Work, training
from flax_resnet.errors import ConfigError, one_line, writing
from flax_resnet.models.summary import summarize

STEPS, PROFILED = 20, 5
# {platform: prefix of the names of the profile's lines that contain kernels}
LINES = {"gpu": "Stream", "cpu": "tf_XLA"}
MOST = 1e15  # limit of any number in a record
# Kernels that are not in the program, such as copies by the driver.
OTHER = "not of the program"


class Run(NamedTuple):
    """A kernel in a profile.

    Attributes:
      of: name of the instruction that launched it. For kernels that are launched together, as a CUDA graph, it is
        one of their instructions, or "command_buffer" and a number.
      name: name of the kernel, such as "loop_convert_fusion_5" for the instruction loop_convert_fusion.5.
      nanoseconds: time per step.
      runs: number of runs per step.
    """

    of: str
    name: str
    nanoseconds: float
    runs: float


class Row(NamedTuple):
    """Identical kernels of a step.

    Attributes:
      name: name of the first kernel.
      kind: one of `kernels.KINDS`, or `OTHER`.
      what: position of the first kernel in the network.
      runs: number of kernels.
      seconds: their total time.
      bytes: their total bytes to move.
    """

    name: str
    kind: str
    what: str
    runs: int
    seconds: float
    bytes: int

    def behind(self, bandwidth: float) -> float:
        """Return their time minus the time of a copy of as many bytes, in seconds."""
        return self.seconds - self.bytes / bandwidth


class Profile(NamedTuple):
    """The profile of a training step.

    Attributes:
      device: number and kind of the devices.
      model: a name of `flax_resnet.list_models()`.
      image_size: in pixels.
      batch_size: images per step.
      dtype: compute dtype.
      seconds: time of a step, without the profiler.
      bandwidth: bytes per second that a copy reads and writes.
      kernels: the kernels of a step.
    """

    device: str
    model: str
    image_size: int
    batch_size: int
    dtype: str
    seconds: float
    bandwidth: float
    kernels: list[Row]


def rows(runs: list[Run], program: hlo.Program) -> list[Row]:
    """Return times and bytes of the kernels of one step, grouped by identical kernels, slowest group first.

    Args:
      runs: the kernels of one step in a profile.
      program: the profiled program.
    """
    known = {kernel.instruction.name: kernel for kernel in kernels.kernels(program)}
    by_kernel = {re.sub(r"[.-]", "_", name): name for name in known}
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, float] = defaultdict(float)
    times: dict[str, float] = {}
    for run in runs:
        # XLA compiles identical kernels once, under the name of the first.
        compiled = by_kernel.get(run.name)
        name = compiled or (run.of if run.of in known else run.name)
        seconds[name] += run.nanoseconds / 1e9
        counts[name] += run.runs
        # A library call may launch several kernels, but moves its arrays once.
        times[name] = known[name].times if name in known and not compiled else counts[name]
    found = []
    for name, total in sorted(seconds.items(), key=lambda item: -item[1]):
        kernel, many = known.get(name), round(counts[name])
        if not kernel:
            found.append(Row(name, OTHER, "", many, total, 0))
            continue
        what = kernel.instruction.attribute(
            r'op_name="(?:[^"]*(?:eval_jaxpr|closed_call)/)?([^"]*)"'
        )
        moved = round(times[name] * kernel.bytes)
        found.append(Row(name, kernel.kind, what, many, total, moved))
    return found


class Step(NamedTuple):
    """A compiled training step.

    Attributes:
      program: the compiled program.
      run: runs the step a number of times; returns the seconds per step.
    """

    program: hlo.Program
    run: Callable[[int], float]


def compiled(work: Work) -> Step:
    """Compile the step of a workload, and run it twice to warm up."""
    step, state, data, steps = training(work)
    program = step.lower(state, data, steps).compile()
    held = [state]

    def run(number: int) -> float:
        began = time.perf_counter()
        for _ in range(number):
            held[0], metrics = program(held[0], data, steps)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / number

    run(2)
    return Step(hlo.parse(program.as_text()), run)


def profiled(step: Step) -> list[Run]:
    """Profile a step; return the kernels of one step. On a CPU, each instruction counts as a kernel."""
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place):
            step.run(PROFILED)
        files = pathlib.Path(place).rglob("*.xplane.pb")
        planes = [
            plane
            for file in files
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        ]
        return [
            Run(str(dict(event.stats).get("hlo_op", "")), event.name, event.duration_ns / PROFILED, 1 / PROFILED)
            for plane in planes
            for line in plane.lines
            if line.name.startswith(LINES[jax.default_backend()])
            for event in line.events
            if plane.name.startswith("/device:GPU:") or "hlo_op" in dict(event.stats)
        ]  # fmt: skip


def measure(args: argparse.Namespace) -> Profile:
    """Profile the training step that the arguments describe.

    Raises:
      ConfigError: the model is unknown, or there is not exactly one GPU.
    """
    summary = summarize(args.model, args.image_size, args.batch_size, dtype=args.dtype)
    if jax.default_backend() != "gpu":
        raise ConfigError(key="device", value=jax.default_backend(), allowed="a GPU")
    if jax.device_count() > 1:
        raise ConfigError(
            f"{jax.device_count()} GPUs are visible",
            key="CUDA_VISIBLE_DEVICES",
            value=os.environ.get("CUDA_VISIBLE_DEVICES", ...),
            allowed="one GPU, such as 0",
        )
    classes = summary.layers[-1].output_shape[-1]
    work = Work(args.model, summary.input_shape[1], args.batch_size, classes, dtype=args.dtype)
    bandwidth = roofline.limits(args.dtype).bandwidth
    step = compiled(work)
    seconds = step.run(STEPS)
    found = rows(profiled(step), step.program)
    size = work.image_size, work.batch_size
    return Profile(device(), work.model, *size, work.dtype, seconds, bandwidth, found)


def read(file: str | pathlib.Path) -> Profile:
    """Read the record of a profile.

    Raises:
      ConfigError: the file is not such a record.
    """
    try:
        record = json.loads(pathlib.Path(file).read_text())
        fields = {name: record[name] for name in Profile._fields}
        fields["kernels"] = [Row(**row) for row in record["kernels"]]
        profile = Profile(**fields)
        _check_types(profile)
        for row in profile.kernels:
            _check_types(row)
        if profile.bandwidth <= 0:
            raise ValueError(f"bandwidth is {profile.bandwidth:g}")
        return profile
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"is no record of a profile: {type(error).__name__}: {one_line(error)}",
            key="--read",
            value=str(file),
            cure="name a file that --output wrote",
        ) from None


def _check_types(part: Profile | Row) -> None:
    """Raise TypeError if a field has another type, or a number is too large or not finite."""
    for name, kind in type(part).__annotations__.items():
        value = getattr(part, name)
        if kind is str and not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}")
        if kind in (int, float) and not (type(value) in (int, float) and abs(value) < MOST):
            raise TypeError(f"{name} is {value!r}")


def by_kind(found: list[Row]) -> dict[str, tuple[int, float, int]]:
    """Return {kind: (runs, seconds, bytes)} for the kinds that occur."""
    kinds = {}
    for kind in (*kernels.KINDS, OTHER):
        if some := [row for row in found if row.kind == kind]:
            runs, moved = sum(row.runs for row in some), sum(row.bytes for row in some)
            kinds[kind] = runs, sum(row.seconds for row in some), moved
    return kinds


def headline(profile: Profile) -> str:
    """Return a one-line description of the measured step."""
    size = f"{profile.image_size} px, batch {profile.batch_size}, {profile.dtype}"
    return f"{profile.model}, {size}, {profile.device}"


def table(profile: Profile, most: int = 12) -> str:
    """Return a table of the kinds of kernels, and of the kernels that lose the most time against a copy."""
    found, bandwidth = profile.kernels, profile.bandwidth
    total = sum(row.seconds for row in found)
    step = f"{1e3 * profile.seconds:.2f} ms a step"
    lines = [f"{step}; {1e3 * total:.2f} ms of kernels, under the profiler"]
    lines += ["", f"{'':22}{'kernels':>9}{'ms':>9}{'share':>8}{'GB':>8}{'TB/s':>7}"]
    for kind, (many, took, moved) in by_kind(found).items():
        rate = f"{moved / took / 1e12:7.2f}" if moved else ""
        lines.append(
            f"{kind:22}{many:9}{1e3 * took:9.2f}{took / total:8.1%}{moved / 1e9:8.2f}{rate}"
        )
    lines += [
        "",
        f"kernels furthest behind a copy of as many bytes, which moves {bandwidth / 1e12:.2f} TB/s",
    ]
    lines += [f"{'behind ms':>10}{'ms':>8}{'kernels':>9}{'GB':>7}  what"]
    late = sorted(found, key=lambda row: -row.behind(bandwidth))
    lines += [
        f"{1e3 * row.behind(bandwidth):10.2f}{1e3 * row.seconds:8.2f}{row.runs:9}{row.bytes / 1e9:7.2f}  "
        f"{row.name} {row.what[-60:]}"
        for row in late[:most]
    ]
    return "\n".join(lines)


def draw(profile: Profile, file: pathlib.Path) -> None:
    """Draw the time of each kind of kernel, next to the time of a copy of as many bytes."""
    from matplotlib.figure import Figure

    kinds = by_kind(profile.kernels)
    figure = Figure((9, 0.8 + 0.5 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    took = [1e3 * seconds for _, seconds, _ in kinds.values()]
    copied = [1e3 * moved / profile.bandwidth for *_, moved in kinds.values()]
    places = range(len(kinds))
    bars = axes.barh([n - 0.2 for n in places], took, 0.4, label="measured")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    copy = f"a copy of as many bytes, {profile.bandwidth / 1e12:.2f} TB/s"
    axes.barh([n + 0.2 for n in places], copied, 0.4, color="lightgray", label=copy)
    axes.set_yticks(places, list(kinds))
    axes.invert_yaxis()
    step = f"{1e3 * profile.seconds:.1f} ms a step"
    axes.set(xlabel="ms", title=f"{headline(profile)}: {step}")
    axes.margins(x=0.1)  # room for the numbers
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend()
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110)


@app.command
def main() -> None:
    """Profile a training step or read a record, then print and draw it."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image_size", type=count, default=0,
                        help="pixels (default: the network's own)")  # fmt: skip
    parser.add_argument("--batch_size", type=count, default=256, help="images")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--read", type=existing, help="print this record instead of measuring")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    parser.add_argument("--plot", type=picture, help="file for a picture, such as profile.png")
    args = parser.parse_args()
    profile = read(args.read) if args.read else measure(args)
    print(headline(profile), table(profile), sep="\n")
    if args.plot:
        draw(profile, pathlib.Path(args.plot))
    if not args.read:
        found = [row._asdict() for row in profile.kernels]
        write_record(args.output, {**profile._asdict(), "kernels": found})


if __name__ == "__main__":
    sys.exit(main())
