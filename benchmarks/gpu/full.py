"""The stages of --full: hours on any machine with GPUs. Each runs a benchmark's command and reads its record."""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.gpu.machine import first_gpus
from benchmarks.gpu.record import Measurement
from benchmarks.gpu.stage import Stage

HOURS = 3600.0
# With several GPUs, collectives overlap with computation.
XLA_FLAGS = "--xla_gpu_enable_latency_hiding_scheduler=true"
# Systems of `benchmarks.speed.vs_torch`, in bfloat16.
SYSTEMS = ("flax_resnet", "plain_flax", "torch", "torch.compile")
# {experiment of `benchmarks.accuracy`: (seeds, limit in hours on one GPU)}
EXPERIMENTS = {
    "airbench94": ((0, 1, 2), 1),
    "resnet20_full": ((0, 1, 2), 3),
    "resnet56_full": ((0,), 3),
}


class Sizes(NamedTuple):
    """The sizes of all stages.

    Attributes:
      models: networks for `model_speed`.
      batches: batch sizes for `model_speed`, in images per GPU.
      network: network for `train_speed`, from configs/torchvision_v1.py.
      batch: batch size for `train_speed`, in images per GPU.
      works: networks for `vs_torch`.
      speed: further arguments of `model_speed` and `vs_torch`.
      training: further arguments of `train_speed`.
    """

    models: tuple[str, ...]
    batches: tuple[int, ...]
    network: str
    batch: int
    works: tuple[str, ...]
    speed: tuple[str, ...]
    training: tuple[str, ...]


SIZES = Sizes(
    ("resnet18", "resnet50", "resnet152", "resnext50_32x4d", "seresnet50"),
    (128, 256, 512),
    "resnet50",
    256,
    ("resnet50", "resnet18", "resnet152", "resnext50", "seresnet50", "resnet18_cifar"),
    (),
    ("--steps=200", "--warmup=50"),
)
TINY = Sizes(
    ("resnet20",),
    (8,),
    "resnet34",
    4,
    ("resnet20",),
    ("--rounds=1", "--seconds=0.01"),
    (
        "--steps=6",
        "--rounds=1",
        "--config.model.depths=(1,1,1,1)",
        "--config.model.widths=(4,4,4,4)",
        "--config.data.image_size=32",
    ),
)


def stages(
    folder: pathlib.Path, gpus: int, tiny: bool, photographs: pathlib.Path, cifar: str
) -> Iterator[Stage]:
    """Yield the stages on 1, 2, 4, ... and all GPUs, then the stages that use only one GPU.

    Args:
      folder: the folder of the records.
      gpus: number of GPUs; 0 for the CPU.
      tiny: whether to use the sizes of a rehearsal.
      photographs: folder of images for `train_speed`.
      cifar: folder of CIFAR-10 as images; "" for no accuracy stages.
    """
    sizes = TINY if tiny else SIZES
    counts = sorted({2**n for n in range(gpus.bit_length()) if 2**n <= gpus} | {max(1, gpus)})
    for number in counts:
        yield from _on_several(folder.resolve(), number, bool(gpus), sizes, photographs)
    environment = {"CUDA_VISIBLE_DEVICES": first_gpus(1)} if gpus else {}
    yield from _on_one(sizes, environment)
    if cifar:
        yield from _recipes(folder.resolve(), tiny, cifar, environment)


def _on_several(
    folder: pathlib.Path, number: int, gpus: bool, sizes: Sizes, photographs: pathlib.Path
) -> Iterator[Stage]:
    environment = (
        {"CUDA_VISIBLE_DEVICES": first_gpus(number), "XLA_FLAGS": XLA_FLAGS} if gpus else {}
    )
    of = f"{number} GPU{'s' if number > 1 else ''}" if gpus else "the CPU"
    batches = [str(number * batch) for batch in sizes.batches]
    command = ("benchmarks.speed.model_speed", "--models", *sizes.models, "--batch_size", *batches)
    yield Stage(
        f"model_speed_{number}",
        f"How fast are steps and their parts on {of}?",
        2 * HOURS,
        (*command, *sizes.speed),
        environment=environment,
        read=read_model_speed,
    )
    yield Stage(
        f"train_speed_{number}",
        f"How fast is training on photographs, compared with the step alone, on {of}?",
        HOURS,
        (
            "benchmarks.speed.train_speed",
            f"--config=configs/torchvision_v1.py:{sizes.network}",
            "--config.data.source=folder",
            f"--config.data.path={photographs}",
            f"--config.train.batch_size={number * sizes.batch}",
            f"--profile={folder / f'profile_{number}'}",
            *sizes.training,
        ),
        environment=environment,
        read=read_train_speed,
    )


def _on_one(sizes: Sizes, environment: dict[str, str]) -> Iterator[Stage]:
    systems = [f"{name}, bfloat16" for name in SYSTEMS]
    for work in sizes.works:
        yield Stage(
            f"vs_torch_{work}",
            f"How fast is {work}'s step, compared with PyTorch?",
            HOURS,
            ("benchmarks.speed.vs_torch", "--works", work, "--systems", *systems, *sizes.speed),
            environment=environment,
            read=read_vs_torch,
        )
    if environment:
        yield Stage(
            "gpu_profile",
            "Where do the step's milliseconds go?",
            HOURS,
            ("benchmarks.speed.gpu_profile", "--model", sizes.works[0]),
            environment=environment,
            read=read_profile,
        )


def _recipes(
    folder: pathlib.Path, tiny: bool, cifar: str, environment: dict[str, str]
) -> Iterator[Stage]:
    for name, (seeds, hours) in EXPERIMENTS.items():
        where = ("--folder", str(folder / "runs"), "--data", cifar)
        less = ("--limit=2048", "--epochs=1", "--seeds=0") if tiny else ()
        yield Stage(
            name,
            f"Which accuracy does {name} reach, and after which time?",
            hours * HOURS,
            ("benchmarks.accuracy", name, *where, "--seeds", *map(str, seeds), *less),
            environment=environment,
            read=read_accuracy,
        )


def read_model_speed(record: dict[str, Any]) -> list[Measurement]:
    """Return the milliseconds of each part of each network's step."""
    return [
        Measurement(
            f"{row['model']}, {row['batch_size']} images: {part}",
            tuple(1e3 * value for value in (found["spread"][0], found["seconds"], found["spread"][1])),
            "ms",
            larger_is_better=False,
        )
        for row in record["results"]
        for part, found in row["parts"].items()
    ]  # fmt: skip


def read_train_speed(record: dict[str, Any]) -> list[Measurement]:
    """Return the images/s of training end to end and of the training step alone."""
    rates = record["images_per_second"]
    return [Measurement(name, (value,), "images/s") for name, value in rates.items()]


def read_vs_torch(record: dict[str, Any]) -> list[Measurement]:
    """Return the images per second of each system."""
    return [
        Measurement(system, (row["spread"][0], row["median"], row["spread"][1]), "images/s")
        for table in record["images_per_second"].values()
        for system, row in table.items()
    ]


def read_profile(record: dict[str, Any]) -> list[Measurement]:
    """Return the milliseconds of the step."""
    return [Measurement("a step", (1e3 * record["seconds"],), "ms", larger_is_better=False)]


def read_accuracy(record: dict[str, Any]) -> list[Measurement]:
    """Return top-1 and seconds of each row: min, mean and max over its seeds."""
    units = {"top1": ("%", 100.0), "ema_top1": ("%", 100.0), "seconds": ("s", 1.0)}
    return [
        Measurement(
            f"{label}: {key}",
            tuple(scale * row[key][which] for which in ("min", "mean", "max")),
            unit,
            larger_is_better=key != "seconds",
        )
        for label, row in record["rows"].items()
        for key, (unit, scale) in units.items()
        if row.get(key)
    ]
