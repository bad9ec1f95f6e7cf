"""Verification of a packed dataset: the error names the record that differs, and its file."""

import json

import numpy as np
from conftest import refused
from packed_dataset import arguments, examples, shards

from flax_resnet.cli import prepare
from flax_resnet.data.packing.verification import verify
from flax_resnet.errors import DataError


def test_verification_names_the_record_and_its_file(photographs, tmp_path):
    call = arguments(tmp_path, "--shard_size=3", path=photographs)
    assert prepare.main(call) == 0
    folder = tmp_path / "small_pictures" / "1.0.0"
    files = [s for s in shards(folder) if "-train" in s]
    labels = {
        split: [[int(label) for _, label in examples(tmp_path, split)]]
        for split in ("train", "test")
    }
    infos = json.loads((folder / "dataset_info.json").read_text())["splits"]
    lengths = [int(n) for s in infos if s["name"] == "train" for n in s["shardLengths"]]
    ends = np.cumsum(lengths)[:-1]
    labels["train"] = [part.tolist() for part in np.split(np.array(labels["train"][0]), ends)]
    verify(folder, labels, ("china", "flower"), 2)
    with refused(folder, kind=DataError) as caught:
        verify(folder, labels, ("china", "flwr"), 2)
    assert all(name in caught.value.problem for name in ("'flwr'", "'flower'"))
    with refused(folder, kind=DataError) as caught:
        verify(folder, {**labels, "test": [[0] * 99]}, ("china", "flower"), 2)
    held = len(labels["test"][0])
    assert all(part in caught.value.problem for part in ("split test", f"{held} records", "99"))
    wrong = [list(part) for part in labels["train"]]
    wrong[1][0] ^= 1
    place, second = lengths[0], files[1]
    with refused(folder / second, kind=DataError) as caught:
        verify(folder, {**labels, "train": wrong}, ("china", "flower"), 2)
    assert f"record {place} of split train" in caught.value.problem
    assert f"label {labels['train'][1][0]}, not {wrong[1][0]}" in caught.value.problem
    damaged = bytearray((folder / second).read_bytes())
    start = damaged.index(b"\xff\xd8\xff") + 1000  # within the first image
    damaged[start : start + 50] = bytes(255 - value for value in damaged[start : start + 50])
    (folder / second).write_bytes(damaged)
    with refused(folder / second, kind=DataError) as caught:
        verify(folder, labels, ("china", "flower"), 2)
    assert f"record {place} of split train" in caught.value.problem
    assert (
        "label" not in caught.value.problem
    )  # the message is about the image, which cannot be read
