"""Helpers for tests of packing: arguments of the command, and readers of the packed dataset."""

import io

import numpy as np
from PIL import Image


def arguments(data_dir, *more, path=None, name="small_pictures"):
    source = [f"--path={path}"] if path else []
    return [*source, f"--pack={name}", f"--data_dir={data_dir}", *more]


def examples(data_dir, split, name="small_pictures"):
    """Return the stored bytes and the label of every record, read by TFDS."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(data_dir))
    skip = {"image": tfds.decode.SkipDecoding()}
    return [(e["image"], e["label"]) for e in builder.as_data_source(split, decoders=skip)]


def decoded(encoded):
    return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))


def shards(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.array_record-*"))}
