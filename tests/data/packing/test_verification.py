"""The verification of a packed dataset names the record that differs, and its file."""

import json

import numpy as np
import pytest
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
    with pytest.raises(DataError, match="class 'flwr' reads as 'flower'"):
        verify(folder, labels, ("china", "flwr"), 2)
    with pytest.raises(DataError, match=r"split test holds \d+ records, not \d+"):
        verify(folder, {**labels, "test": [[0] * 99]}, ("china", "flower"), 2)
    wrong = [list(part) for part in labels["train"]]
    wrong[1][0] ^= 1
    place, second = lengths[0], files[1]
    with pytest.raises(DataError, match=f"record {place} of split train has label .*{second}"):
        verify(folder, {**labels, "train": wrong}, ("china", "flower"), 2)
    damaged = bytearray((folder / second).read_bytes())
    start = damaged.index(b"\xff\xd8\xff") + 1000  # within the first image
    damaged[start : start + 50] = bytes(255 - value for value in damaged[start : start + 50])
    (folder / second).write_bytes(damaged)
    with pytest.raises(
        DataError, match=rf"record {place} of split train cannot be read .*{second}"
    ):
        verify(folder, labels, ("china", "flower"), 2)
