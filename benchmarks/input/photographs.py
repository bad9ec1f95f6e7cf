"""The images that input pipelines are measured on, made where they are not there yet."""

import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

BATCH, SKIPPED = 64, 6  # the first batches of a turn fill the queues, and are not counted


def pipeline_turn(make: Callable[[], Callable[[int, int], Iterator[int]]], images: int) -> Callable:
    """Makes what takes a turn with an input pipeline: reads `images`, and returns how many a second.

    Args:
      make: returns a function of (images, turn) that yields the sizes of batches.
      images: of a turn.
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
    """Cuts crops of about 500x375 from scikit-learn's two photographs, as JPEG of quality 92."""
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
    """Makes a TFDS dataset of a folder, as `flax_resnet prepare --pack` does."""
    from flax_resnet.data.packing import Packing, pack_dataset

    packing = Packing(
        f"{name}_set", path=str(path), data_dir=str(root), max_side=max_side, eval_fraction=0.01
    )
    print(pack_dataset(packing).splitlines()[0], file=sys.stderr)
