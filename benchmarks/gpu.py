"""All that a machine with GPUs can measure, in one command: python -m benchmarks.gpu --folder runs/gpu

    --cifar /path/to/cifar10    a folder of images, train/CLASS/* and test/CLASS/*: adds the time to an accuracy,
                                beside PyTorch where it is installed

On one GPU, two, four and so on up to all of them: the parts of a step of several networks in bfloat16
(`model_speed`), and training end to end against the step alone (`train_speed`). On one of them, the step against
PyTorch's and a textbook's (`peers`), and kernel by kernel (`gpu_profile`). Each is a command of its own, which is
printed first; what is finished is kept, and the same command goes on after a stop. Leaves FOLDER/report.md, and a
JSON file and the output of each command beside it. `--rehearse` runs tiny sizes of it on the CPU.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.arguments import count, folder
from benchmarks.input_data import make_photographs
from benchmarks.record import environment
from flax_resnet.errors import ConfigError, UserError

# In bfloat16, of `benchmarks.peers`.
SYSTEMS = ("flax_resnet", "textbook", "torch", "torch.compile")
# Of several GPUs, collectives run beside what does not need them.
XLA_FLAGS = "--xla_gpu_enable_latency_hiding_scheduler=true"


class Part(NamedTuple):
    """A command to be run.

    Attributes:
      name: of its files.
      gpus: how many it sees; 0 for the CPU.
      command: module and arguments, without `--output`.
    """

    name: str
    gpus: int
    command: list[str]


class Sizes(NamedTuple):
    """How large the work is.

    Attributes:
      models: of `model_speed`.
      batches: images a GPU.
      network: of training end to end at 224 px, of `torchvision_v1`.
      batch: images a GPU, of training end to end and beside peers.
      peers: works of `peers`.
      options: more arguments of `model_speed`, of `train_speed` and of `peers`.
    """

    models: tuple[str, ...]
    batches: tuple[int, ...]
    network: str
    batch: int
    peers: tuple[str, ...]
    options: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


FULL = Sizes(
    ("resnet18", "resnet50", "resnet152", "resnext50_32x4d", "seresnet50"),
    (128, 256, 512),
    "resnet50",
    256,
    ("resnet50", "resnet18"),
    ((), ("--steps=200", "--warmup=50"), ()),
)
TINY = Sizes(
    ("resnet20",),
    (8,),
    "resnet34",
    4,
    ("resnet20",),
    (
        ("--rounds=1", "--seconds=0.01"),
        (
            "--steps=6",
            "--rounds=1",
            "--config.model.depths=(1,1,1,1)",
            "--config.model.widths=(4,4,4,4)",
            "--config.data.image_size=32",
        ),
        ("--rounds=1", "--seconds=0.01"),
    ),
)


def main() -> None:
    """Runs what is not finished, and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=folder, required=True, help="where all is kept")
    parser.add_argument("--cifar", default="", help="CIFAR-10 as a folder of images")
    parser.add_argument("--images", type=count, default=20_000, help="photographs to train on")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    args = parser.parse_args()
    try:
        gpus = 0 if args.rehearse else visible_gpus()
        if args.cifar and not pathlib.Path(args.cifar, "train").is_dir():
            raise ConfigError(f"--cifar={args.cifar}: must be a folder with train/ and test/")
        photographs = args.folder.resolve() / "photographs"
        args.folder.mkdir(parents=True, exist_ok=True)
        make_photographs(photographs, 64 if args.rehearse else args.images)
        planned = list(parts(args, TINY if args.rehearse else FULL, gpus, photographs))
        for part in planned:
            run(part, args.folder)
    except UserError as error:
        parser.error(str(error))
    report = written(planned, args.folder)
    print(f"\n{report}\n\n{args.folder / 'report.md'} has this")


def visible_gpus() -> int:
    """Returns the number of GPUs that JAX sees, asked in a process of its own, which leaves them free.

    Raises:
      ConfigError: there are none.
    """
    code = "import jax; print(len(jax.devices('gpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip().isdecimal():
        raise ConfigError(
            "no GPU: JAX sees none; needed: an NVIDIA GPU with its driver and `pip install '.[cuda13]'`; "
            "--rehearse does without"
        )
    return int(done.stdout)


def parts(
    args: argparse.Namespace, sizes: Sizes, gpus: int, photographs: pathlib.Path
) -> Iterator[Part]:
    """Yields what is to be run, on one GPU, two, four ... and all; without GPUs on the CPU."""
    counts = sorted({2**n for n in range(gpus.bit_length()) if 2**n <= gpus} | {gpus})
    speed, training, beside = sizes.options
    for number in counts:
        of = max(1, number)  # the CPU is one device
        yield Part(
            f"model_speed_{number}",
            number,
            [
                "benchmarks.model_speed",
                "--models",
                *sizes.models,
                "--batch_size",
                *(str(of * batch) for batch in sizes.batches),
                *speed,
            ],
        )
        yield Part(
            f"train_speed_{number}",
            number,
            [
                "benchmarks.train_speed",
                f"--config=configs/torchvision_v1.py:{sizes.network}",
                "--config.data.source=folder",
                f"--config.data.path={photographs}",
                f"--config.train.batch_size={of * sizes.batch}",
                f"--profile={args.folder.resolve() / f'profile_{number}'}",
                *training,
            ],
        )
    works = ["--works", *sizes.peers, f"--batch_size={sizes.batch}"]
    systems = ["--systems", *(f"{name}, bfloat16" for name in SYSTEMS)]
    yield Part("peers", min(1, gpus), ["benchmarks.peers", *works, *systems, *beside])
    if gpus:
        work = ["--model", sizes.peers[0], f"--batch_size={sizes.batch}"]
        yield Part("profile", 1, ["benchmarks.gpu_profile", *work])
    if args.cifar:
        experiment = "speedrun" if args.rehearse else "airbench94"
        given = ["--folder", str(args.folder.resolve() / "runs"), "--data", args.cifar]
        less = ["--limit=1000", "--seeds=0"] if args.rehearse else []
        yield Part("accuracy", min(1, gpus), ["benchmarks.accuracy", experiment, *given, *less])


def run(part: Part, place: pathlib.Path) -> None:
    """Runs a command, unless its record is there; ends this one with its exit code where it fails."""
    record, log = place / f"{part.name}.json", place / f"{part.name}.txt"
    if record.exists():
        return
    environment = {**os.environ, "JAX_PLATFORMS": "cuda" if part.gpus else "cpu"}
    if part.gpus:
        own = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(part.gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own.split(",")[: part.gpus])
        environment["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
    unfinished = record.with_suffix(".part")
    command = ["-m", *part.command, f"--output={unfinished.resolve()}"]
    print(f"\n{shlex.join(['python', *command])}", flush=True)
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, *command], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    print(log.read_text().rstrip(), flush=True)
    if done.returncode:
        print(f"error: {part.name} ended with {done.returncode}; {log} says why", file=sys.stderr)
        sys.exit(done.returncode)
    unfinished.rename(record)


def written(planned: list[Part], place: pathlib.Path) -> str:
    """Writes report.md, and returns it: the machine, and what each command found."""
    records = {part.name: json.loads((place / f"{part.name}.json").read_text()) for part in planned}
    devices = {record["device"] for record in records.values() if "device" in record}
    lines = ["# Measured", "", f"On {', '.join(sorted(devices))}.", ""]
    versions = environment()["versions"]
    lines += [", ".join(f"{name} {number}" for name, number in versions.items() if number), ""]
    for part in planned:
        log = (place / f"{part.name}.txt").read_text().rstrip()
        lines += [f"## {part.name}", "", f"`{shlex.join(['python', '-m', *part.command])}`", ""]
        lines += ["```", log, "```", ""]
    report = "\n".join(lines)
    (place / "report.md").write_text(report)
    return report


if __name__ == "__main__":
    main()
