"""Create the images for the input benchmarks on first use, and measure the speed of a pipeline."""

import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

# The first SKIPPED batches of a turn fill the queues, and are not timed.
BATCH, SKIPPED = 64, 6


def pipeline_turn(make: Callable[[], Callable[[int, int], Iterator[int]]], images: int) -> Callable:
    """Return a function that reads one turn of batches from an input pipeline, and returns images per second.

    Args:
      make: builds the pipeline, a function of (images, turn number) that yields the size of each batch it reads.
      images: number of images per turn.
    """
    batches = make()

    def turn(number: int) -> float:
        stream = batches(images, number)
        for _ in range(SKIPPED):
            next(stream)
        began, count = time.perf_counter(), sum(stream)
        return count / (time.perf_counter() - began)

    return turn


def make_photographs(folder: pathlib.Path, count: int) -> None:
    """Write random crops of scikit-learn's two photographs, about 500x375, as JPEG with quality 92.

    Does nothing if the folder exists.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    if folder.is_dir():
        return
    part, draw = folder.with_name(f"part.{folder.name}"), np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        width = int(draw.integers(460, 541))
        height = width * 3 // 4
        left, top = int(draw.integers(0, 641 - width)), int(draw.integers(0, 428 - height))
        image = photographs[number % 2].crop((left, top, left + width, top + height))
        if draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        file = part / ("china", "flower")[number % 2] / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, quality=92)
    part.rename(folder)


def pack(root: pathlib.Path, name: str, path: pathlib.Path, *, max_side: int) -> None:
    """Pack a folder of images into a TFDS dataset, as `flax_resnet prepare --pack` does."""
    from flax_resnet.data.packing import Packing, pack_dataset

    packing = Packing(
        f"{name}_set", path=str(path), data_dir=str(root), max_side=max_side, eval_fraction=0.01
    )
    print(pack_dataset(packing).splitlines()[0], file=sys.stderr)
