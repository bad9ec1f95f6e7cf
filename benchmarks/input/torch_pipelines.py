"""Input pipelines of torchvision and of the flax ImageNet example, for comparison."""

import os
import pathlib
from collections.abc import Callable, Iterator

from benchmarks.input.photographs import BATCH, SKIPPED

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def flax_example(root: pathlib.Path, size: int) -> Callable:
    """Return the pipeline of flax's examples/imagenet/input_pipeline.py.

    It crops, resizes (bicubic), mirrors and normalises the images to float32.
    """
    import tensorflow as tf

    files = sorted(map(str, (root / "photos").rglob("*.jpg")))
    record = root / "photos.tfrecord"
    if not record.exists():
        with tf.io.TFRecordWriter(str(record)) as writer:
            for file in files:
                writer.write(pathlib.Path(file).read_bytes())
    mean = tf.constant([0.485 * 255, 0.456 * 255, 0.406 * 255], shape=[1, 1, 3])
    std = tf.constant([0.229 * 255, 0.224 * 255, 0.225 * 255], shape=[1, 1, 3])

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            bounding_boxes=tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
            min_object_covered=0.1,
            aspect_ratio_range=ASPECT,
            area_range=AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], axis=0)
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize([image], [size, size], method="bicubic")[0]
        image = tf.image.random_flip_left_right(tf.reshape(image, [size, size, 3]))
        return (image - mean) / std

    def batches(images: int, turn: int) -> Iterator[int]:
        options = tf.data.Options()
        # The example uses 48 threads and prefetches ten batches, which is slower on two cores.
        options.threading.private_threadpool_size = os.cpu_count()
        stream = tf.data.TFRecordDataset(str(record)).with_options(options)
        stream = stream.repeat().shuffle(16 * BATCH, seed=turn)
        stream = stream.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        stream = stream.batch(BATCH, drop_remainder=True).prefetch(2)
        for batch in stream.take(images // BATCH + SKIPPED).as_numpy_iterator():
            yield len(batch)

    return batches


class Photographs:
    """A PyTorch dataset that decodes whole files, then crops and resizes the images to uint8 [3, S, S].

    `kind` is "tensors" (decoded by torchvision), "PIL" (decoded by Pillow), or "PIL as its references": as "PIL",
    and also mirrored and normalised to float32, like torchvision's references/classification.
    """

    def __init__(self, files: list[str], size: int, kind: str):
        self.files, self.size, self.kind = files, size, kind

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> object:
        import torch
        from torchvision.transforms import v2

        if self.kind == "tensors":
            from torchvision.io import ImageReadMode, decode_image, read_file

            image = decode_image(read_file(self.files[index]), mode=ImageReadMode.RGB)
            return v2.RandomResizedCrop(self.size, antialias=True)(image)
        from PIL import Image

        with Image.open(self.files[index]) as opened:
            image = opened.convert("RGB")
        image = v2.RandomResizedCrop(self.size)(image)
        if self.kind == "PIL":
            return v2.functional.pil_to_tensor(image)
        image = v2.functional.pil_to_tensor(v2.RandomHorizontalFlip()(image))
        image = v2.functional.to_dtype(image, torch.float32, scale=True)
        return v2.functional.normalize(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def torchvision(folder: pathlib.Path, size: int, kind: str, images: int) -> Callable:
    """Return a pipeline with PyTorch's DataLoader and two workers."""
    import torch

    dataset = Photographs(sorted(map(str, folder.rglob("*.jpg"))), size, kind)
    count = (images // BATCH + SKIPPED) * BATCH
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=count),
        num_workers=2,
        persistent_workers=True,
    )

    def batches(images: int, turn: int) -> Iterator[int]:
        del images, turn
        return (len(batch) for batch in loader)

    return batches
