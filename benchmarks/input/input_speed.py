"""Compare the speed of the input pipeline with those of PyTorch and of the flax ImageNet example.

python -m benchmarks.input.input_speed photos --folder /tmp/input_speed --output
benchmarks/results/input_photos.json
    Random-resized crops of 224, 160 and 128 px from a TFDS dataset of 480 JPEGs of about 500x375. Also from the
    same images packed to 400 px, and from ten times as many images. Includes torchvision if it is installed.
python -m benchmarks.input.input_speed cifar --archive cifar10_jpeg.zip --folder /tmp/input_speed --output ...
    CIFAR-10 with the streaming feed, from a folder of JPEGs and from a packed dataset; and with the resident feed,
    from the packed dataset. Also the time from the start of Python to the first batch.

`benchmarks.speed.train_speed` measures how long training waits for its input.

The systems take turns within one run; results are medians and ratios of medians. Run nothing else on the machine.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import app
from benchmarks.arguments import absent, count, folder, output, place
from benchmarks.input.photographs import BATCH, SKIPPED, make_photographs, pack, pipeline_turn
from benchmarks.input.torch_pipelines import flax_example, torchvision
from benchmarks.record import write_record
from benchmarks.speed.interleave import measure
from flax_resnet.errors import DataError, one_line, writing

if TYPE_CHECKING:  # the measured time and memory include imports
    from flax_resnet.config import Config
    from flax_resnet.training.input.feeds import Feed

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@app.command
def main() -> None:
    """Run one part and write its result."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--folder", type=folder, required=True, help="folder for the data; created once, then kept"
    )
    parser.add_argument(
        "--archive", type=place, help="CIFAR-10: zip of train/CLASS/*.jpg, test/CLASS/*.jpg"
    )
    parser.add_argument("--rounds", type=count, default=7, help="timed turns per system")
    parser.add_argument("--images", type=count, default=1920, help="images per turn (cifar: x 20)")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    args = parser.parse_args()
    write_record(args.output, PARTS[args.part](args))


def compared(systems: Mapping[str, Callable], rounds: int, images: int) -> dict:
    """Let the input pipelines take turns; a turn has `images` images."""
    turns = {name: partial(pipeline_turn, make, images) for name, make in systems.items()}
    return measure(turns, rounds=rounds)


# --- photographs ---


def photos(args: argparse.Namespace) -> dict:
    """Compare pipelines on photographs."""
    root = args.folder
    names = {"photos": 480, "photos_tenfold": 4800}
    for name, images in names.items():
        with writing(root):
            make_photographs(root / name, images)
        pack(
            root, name, root / name, max_side=4096
        )  # no image is larger: files are stored unchanged
    pack(root, "photos_400", root / "photos", max_side=400)
    tables = {}
    has_torch = not absent("torchvision")
    for size in (224, 160, 128):
        systems = {"flax_resnet": partial(ours, root, "photos", size)}
        if size == 224:
            systems |= {
                "flax_resnet, antialiased": partial(
                    ours, root, "photos", size, train_antialias=True
                ),
                "flax_resnet, ten times as many": partial(ours, root, "photos_tenfold", size),
            }
        systems["flax_resnet, packed to 400"] = partial(ours, root, "photos_400", size)
        systems["flax ImageNet example"] = partial(flax_example, root, size)
        for kind in ("tensors", "PIL", "PIL as its references") if has_torch else ():
            load = partial(torchvision, root / "photos", size, kind, args.images)
            systems[f"torchvision v2, {kind}"] = load
        print(f"{size} px")
        tables[f"{size} px"] = compared(systems, args.rounds, args.images)
    held = {name: memory(root, name) for name in names}
    print(
        f"anonymous memory: {held['photos']} MiB; with ten times as many images: {held['photos_tenfold']} MiB"
    )
    spent = {name: reading(root, name) for name in ("photos", "photos_400")}
    print("one thread reads and parses a record in", spent, "us")
    return {"images_per_second": tables, "anonymous_memory_MiB": held, "reading_us": spent}


def ours(root: pathlib.Path, name: str, size: int, **options: Any) -> Callable:
    """Return a function that yields the sizes of the training batches of a packed dataset."""
    from flax_resnet.data import pipeline
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.open import open_source
    from flax_resnet.data.sampling import EpochSampler

    data = Data(
        name=f"{name}_set", data_dir=str(root), image_size=size, train_crop="random_resized", **options
    )  # fmt: skip
    source = open_source(data, train=True)

    def batches(images: int, turn: int) -> Iterator[int]:
        start, count = turn * 1000, images // BATCH + SKIPPED
        stream = pipeline.training_batches(
            source, EpochSampler(len(source), seed=0), data, batch_size=BATCH, start_step=start,
            total_steps=start + count, rows=slice(0, BATCH), bad={},
        )  # fmt: skip
        return (len(batch["image"]) for batch in stream)

    return batches


def reading(root: pathlib.Path, name: str) -> float:
    """Return the microseconds that a Python thread takes to read a record (median of 20)."""
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.decodable import decodable
    from flax_resnet.data.open import open_source

    source = open_source(Data(name=f"{name}_set", data_dir=str(root)), train=True)
    draw, spent = np.random.default_rng(0), []
    for _ in range(20):
        indices = draw.integers(0, len(source), 256)
        began = time.perf_counter()
        images = np.array([decodable(image) for image in source.read(indices).images], object)
        spent.append((time.perf_counter() - began) / len(images) * 1e6)
    return round(statistics.median(spent), 1)


def memory(root: pathlib.Path, name: str) -> int:
    """Return the anonymous memory of a new process after streaming 1,920 images, in MiB."""
    code = (
        "import pathlib, sys; from benchmarks.input.input_speed import anonymous_memory, ours\n"
        "stream = ours(pathlib.Path(sys.argv[1]), sys.argv[2], 224)(1920, 0)\n"
        "sum(stream); print(anonymous_memory())"
    )
    command = [sys.executable, "-c", code, str(root), name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def anonymous_memory() -> int:
    """Return the anonymous memory of this process (not backed by files), in MiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024


# --- CIFAR-10 ---


def cifar(args: argparse.Namespace) -> dict:
    """Measure both feeds on small images, and the time to the first batch."""
    pack(args.folder, "cifar", unpacked(args), max_side=4096)
    kinds = ("folder, streaming", "packed, streaming", "packed, resident")
    systems = {kind: partial(cifar_batches, args.folder, kind) for kind in kinds}
    images = 20 * args.images  # the images are small
    speeds = compared(systems, args.rounds, images)
    seconds = {kind: [cold_start(args, kind) for _ in range(5)] for kind in kinds}
    rows = {
        k: {"seconds": statistics.median(v), "spread": [min(v), max(v)]} for k, v in seconds.items()
    }
    for kind, row in rows.items():
        print(f"{kind:34}{row['seconds']:8.1f} s from the start of Python to the first batch")
    return {"images_per_second": speeds, "cold_start": rows}


def unpacked(args: argparse.Namespace) -> pathlib.Path:
    """Unpack the archive, unless it is already unpacked; return its folder.

    Raises:
      DataError: the archive cannot be read, or has no train/ or test/.
      OutputError: the folder cannot be written.
    """
    images = args.folder / "cifar"
    if images.is_dir():
        return images

    def refused(problem: str) -> DataError:
        allowed = "a zip of train/CLASS/*.jpg and test/CLASS/*.jpg"
        return DataError(problem, key="--archive", value=args.archive or ..., allowed=allowed)

    if not args.archive:
        raise refused("is needed")
    part = images.with_name("part.cifar")
    shutil.rmtree(part, ignore_errors=True)
    try:
        archive = zipfile.ZipFile(args.archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise refused(one_line(error)) from error
    with archive, writing(part):
        try:
            archive.extractall(part)
        # BadZipFile, zlib.error: damaged. RuntimeError: encrypted, or an unsupported compression.
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise refused(one_line(error)) from error
        if lacking := [name for name in ("train", "test") if not (part / name).is_dir()]:
            raise refused(f"holds no {lacking[0]}/")
        part.rename(images)
    return images


def cifar_config(root: pathlib.Path, kind: str) -> "Config":
    """Return the configuration for CIFAR-10, from a folder or from the packed dataset."""
    from flax_resnet.config import freeze

    packed = {"name": "cifar_set", "data_dir": str(root)}
    place = (
        {"source": "folder", "path": str(root / "cifar")} if kind.startswith("folder") else packed
    )
    return freeze({
        "data": {**place, "image_size": 32},
        "augment": {"pad_crop": 4, "flip": "horizontal"},
        "model": {"name": "resnet20"},
        "train": {
            "batch_size": BATCH, "feed": "resident" if "resident" in kind else "streaming"
        },
    })  # fmt: skip


def feed_of(config: "Config") -> "Feed":
    """Return the feed of the training split."""
    from flax_resnet.data.open import open_source
    from flax_resnet.training import sharding
    from flax_resnet.training.experiment import make_sampler
    from flax_resnet.training.input.feeds import make_feed

    source = open_source(config.data, train=True)
    mesh, stream = sharding.make_mesh(), make_sampler(source, config)
    return make_feed(source, stream, config, mesh, crop=config.data.train_crop)


def cifar_batches(folder: pathlib.Path, kind: str) -> Callable:
    """Return a function that yields the size of each batch when it is ready on the device."""
    import jax

    feed = feed_of(cifar_config(folder, kind))
    make = jax.jit(
        lambda data, calls: feed.training_batch(data, jax.tree.map(lambda x: x[0], calls))
    )

    def batches(images: int, turn: int) -> Iterator[int]:
        start, count = turn * 20, images // BATCH + SKIPPED
        for call in feed.training(start, start + count):
            yield len(jax.block_until_ready(make(feed.data, call))["image"])

    return batches


def cold_start(args: argparse.Namespace, kind: str) -> float:
    """Return the seconds from the start of Python to the first batch on the device."""
    code = (
        "import pathlib, sys; from benchmarks.input.input_speed import cifar_batches\n"
        "next(cifar_batches(pathlib.Path(sys.argv[1]), sys.argv[2])(640, 0))"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, args.folder, kind], check=True, capture_output=True)
    return time.perf_counter() - began


PARTS = {"photos": photos, "cifar": cifar}

if __name__ == "__main__":
    sys.exit(main())
