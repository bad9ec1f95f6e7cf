"""Files of tensors: read from every format, refused in one line when malformed, written whole."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT, refused
from flax.serialization import to_bytes
from malicious import Malicious
from safetensors import SafetensorError
from safetensors.numpy import save, save_file

from flax_resnet.errors import OutputError, WeightsError
from flax_resnet.weights import read_tensors, write_safetensors


def test_safetensors_of_every_dtype_are_read(tmp_path):
    draw = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    tensors = {
        "half": draw.astype(np.float16),
        "single": draw,
        "double": draw.astype(np.float64) + 1e-12,
        "count": np.zeros((), np.int64),
    }
    path = tmp_path / "w.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    read = read_tensors(path)
    expected = {**tensors, "half": tensors["half"].astype(np.float32)}
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)
    assert b'"format":"pt"' in path.read_bytes()


def test_bfloat16_safetensors_are_read(tmp_path):
    values = np.array([[1.0, -2.5, 3e38], [1e-40, -0.0, 0.1]]).astype(ml_dtypes.bfloat16)
    data = values.tobytes()
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, len(data)]}}
    ).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    read = read_tensors(path)["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_npz_is_read_and_a_common_prefix_dropped(tmp_path):
    np.savez(tmp_path / "w.npz", **{"module.a": np.float16([1, 2]), "module.b": np.arange(3)})
    read = read_tensors(tmp_path / "w.npz")
    assert {k: (v.dtype, v.tolist()) for k, v in read.items()} == {
        "a": (np.float32, [1, 2]),
        "b": (np.int64, [0, 1, 2]),
    }
    np.savez(tmp_path / "w.npz", **{"module.a": np.zeros(1), "b": np.zeros(1)})
    assert set(read_tensors(tmp_path / "w.npz")) == {"module.a", "b"}


def strangers(folder):
    """The same for what is no file of weights, or a file of torch that no torch needs to be asked about."""
    ran = folder / "ran"

    def text(begin):
        return lambda path: path.write_bytes(begin + bytes(300))

    def tar(path):
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("w.pth"))

    def script(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", pickle.dumps(Malicious(ran)))
            archive.writestr("net/constants.pkl", pickle.dumps(Malicious(ran)))

    def flipped(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", bytes(99))
        content = bytearray(path.read_bytes())
        content[99] ^= 1
        path.write_bytes(content)

    malicious = {protocol: pickle.dumps(Malicious(ran), protocol) for protocol in range(6)}
    return {
        "absent": (lambda p: None, "no such file"),
        "cut.pth": (lambda p: p.write_bytes(b"PK\3\4" + bytes(300)), zipfile.BadZipFile),
        "flipped.pth": (flipped, zipfile.BadZipFile),
        "script.pt": (script, "TorchScript"),
        "lfs.pth": (text(b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
        "gzip.pth.gz": (text(b"\x1f\x8b\x08"), "gzip"),
        "tar.pth.tar": (tar, "tar archive"),
        "w.h5": (text(b"\x89HDF\r\n"), "HDF5"),
        "zero": (lambda p: p.touch(), "empty"),
        **{
            f"pickle{protocol}.pth": (
                lambda p, content=content: p.write_bytes(content),
                "none of its code" if protocol > 1 else "no file of weights",
            )
            for protocol, content in malicious.items()
        },
        "cut.msgpack": (lambda p: p.write_bytes(to_bytes({"w": np.ones(99)})[:50]), ValueError),
        "map.msgpack": (lambda p: p.write_bytes(b"\x81" * 50), Exception),
    }


def malformed(folder):
    """File name -> (how to write it, what caused the error or what its problem names)."""
    ran = folder / "ran"
    safetensors = save({"w": np.arange(100, dtype=np.float32)})
    bad = {"good": np.zeros(2, np.float32), "bad": np.array([1, np.nan], np.float32)}
    infinite = {"bad": np.array([np.inf])}

    def npz(path, **arrays):
        with path.open("wb") as file:
            np.savez(file, **arrays)

    def cut_npz(path):
        npz(path, w=np.random.default_rng(0).normal(size=1000))
        path.write_bytes(path.read_bytes()[:4000])

    def flipped_npz(path):
        npz(path, w=np.random.default_rng(0).normal(size=1000))
        content = bytearray(path.read_bytes())
        content[4000] ^= 1
        path.write_bytes(content)

    def npy(path):
        with path.open("wb") as file:
            np.save(file, np.zeros(3))

    def zipped(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "not an array")

    fp8 = {"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    fp8 = struct.pack("<Q", len(json.dumps(fp8))) + json.dumps(fp8).encode() + b"\0"

    return {
        "cut.safetensors": (lambda p: p.write_bytes(safetensors[:-7]), SafetensorError),
        "head.safetensors": (lambda p: p.write_bytes(safetensors[:20]), SafetensorError),
        "short.safetensors": (lambda p: p.write_bytes(b"abc"), "no file of weights"),
        "zero.safetensors": (lambda p: p.touch(), "empty"),
        "huge.safetensors": (lambda p: p.write_bytes(b"\xff" * 64), "no file of weights"),
        "html.safetensors": (lambda p: p.write_text("<html>" * 20), "HTML"),
        "none.safetensors": (lambda p: p.write_bytes(save({})), "no tensors"),
        "fp8.safetensors": (lambda p: p.write_bytes(fp8), "tensor w is of dtype F8_E4M3"),
        "nan.safetensors": (lambda p: save_file(bad, p), "tensor bad holds"),
        "inf.npz": (lambda p: npz(p, **infinite), "tensor bad holds"),
        "cut.npz": (cut_npz, zipfile.BadZipFile),
        "flipped.npz": (flipped_npz, zipfile.BadZipFile),
        "zero.npz": (lambda p: p.touch(), "empty"),
        "text.npz": (lambda p: p.write_text("hello"), "no file of weights"),
        "object.npz": (lambda p: npz(p, w=np.array([Malicious(ran)])), ValueError),
        "array.npz": (npy, "single array"),
        "zip.npz": (zipped, ValueError),
        "string.npz": (lambda p: npz(p, w=np.array(["a"])), "tensor w is of dtype <U1"),
        "complex.npz": (lambda p: npz(p, w=np.array([1j])), "tensor w is of dtype complex128"),
        "none.npz": (lambda p: npz(p), "no tensors"),
        "folder.npz": (lambda p: p.mkdir(), "folder"),
        "absent.pth": (lambda p: None, "no such file"),
        **strangers(folder),
    }


@pytest.mark.parametrize("name", malformed(ROOT))
def test_a_malformed_file_is_one_line(tmp_path, name):
    write, why = malformed(tmp_path)[name]
    write(tmp_path / name)
    with refused(tmp_path / name, ..., WeightsError) as caught:
        read_tensors(tmp_path / name)
    if isinstance(why, str):
        assert why in caught.value.problem
        assert caught.value.__cause__ is None
    else:
        assert isinstance(caught.value.__cause__, why)
    assert not (tmp_path / "ran").exists()


def test_the_allowed_formats_and_dtypes_are_listed(tmp_path):
    write, _ = malformed(tmp_path)["fp8.safetensors"]
    write(tmp_path / "w.safetensors")
    (tmp_path / "w.h5").write_bytes(b"something else")
    for name, some in (("w.h5", {"safetensors", "torch"}), ("w.safetensors", {"BF16"})):
        with refused(tmp_path / name, ..., WeightsError) as caught:
            read_tensors(tmp_path / name)
        assert all(word in caught.value.allowed for word in some)


def test_the_content_decides_on_the_format(tmp_path):
    for name in ("w.npz", "w.pth.tar", "w.CKPT", "w"):
        write_safetensors(tmp_path / "w.safetensors", {"a": np.arange(3)})
        (tmp_path / "w.safetensors").rename(tmp_path / name)
        assert read_tensors(tmp_path / name)["a"].tolist() == [0, 1, 2]
        with (tmp_path / name).open("wb") as file:
            np.savez(file, b=np.arange(2))
        assert read_tensors(tmp_path / name)["b"].tolist() == [0, 1]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": np.arange(6).reshape(2, 3).T})
    assert read_tensors(path)["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with refused(path, ..., OutputError) as caught:
            write_safetensors(path, {"a": np.zeros(9)})
        assert "No space left" in caught.value.problem
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    os.link(path, tmp_path / "opened")  # whoever has the old file open goes on reading it
    write_safetensors(path, {"a": np.ones(1)})
    assert read_tensors(path)["a"].tolist() == [1]
    assert (tmp_path / "opened").read_bytes() == before
    (tmp_path / "d.safetensors").mkdir()
    for unwritable, array, cause in (
        (tmp_path / "absent" / "w.safetensors", np.zeros(1), FileNotFoundError),
        (tmp_path / "d.safetensors", np.zeros(1), IsADirectoryError),
        (path, np.array([object()]), SafetensorError),
    ):
        with refused(unwritable, ..., OutputError) as caught:
            write_safetensors(unwritable, {"a": array})
        assert type(caught.value.__cause__) is cause
    with refused(tmp_path / "w.npz", ..., WeightsError) as caught:
        write_safetensors(tmp_path / "w.npz", {})
    assert ".safetensors" in caught.value.allowed


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_importing_the_room_is_cheap():
    code = "import sys, flax_resnet.weights; print(sorted(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not re.search(r"'(torch|safetensors|huggingface_hub)'", out.stdout)
