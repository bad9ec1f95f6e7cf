"""The command that packs a dataset, and what it wrote, as read by TFDS and by Pillow."""

import io

import numpy as np
from PIL import Image


def arguments(data_dir, *more, path=None, name="small_pictures"):
    source = [f"--path={path}"] if path else []
    return [*source, f"--pack={name}", f"--data_dir={data_dir}", *more]


def examples(data_dir, split, name="small_pictures"):
    """What any TFDS user reads: the stored bytes and the label of every record."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(data_dir))
    skip = {"image": tfds.decode.SkipDecoding()}
    return [(e["image"], e["label"]) for e in builder.as_data_source(split, decoders=skip)]


def decoded(encoded):
    return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))


def shards(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.array_record-*"))}
