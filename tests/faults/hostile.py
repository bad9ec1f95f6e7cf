"""Hostile files: each maker writes one below a folder and returns its path."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np

DEEP = 100_000  # levels of nested lists or maps


class Malicious:
    """An object whose pickle makes a folder when it is read as pickles usually are."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def npy(descr, shape, data=b""):
    """Return the bytes of an .npy file with any header."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def bomb():
    """Return an npz file of 0.3 MB with an array of 256 MB."""
    buffer, size = io.BytesIO(), 2**28
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("conv1.weight.npy", "w") as member,
    ):
        member.write(npy("<f4", (size // 4,)))
        for _ in range(size // 2**22):
            member.write(bytes(2**22))
    return buffer.getvalue()


def object_array(canary):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Malicious(canary)], object), allow_pickle=True)
    return zipped({"conv1.weight.npy": buffer.getvalue()})


def tar(canary):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(f"../../{canary.name}")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    return buffer.getvalue()


def weights(canary):
    """Return {file name: content} of hostile files of weights.

    Args:
      canary: a path that code in the files would make.
    """
    huge = 2**40
    return {
        "header_of_8_EiB.safetensors": safetensors({}, length=2**63),
        "header_of_99_MB.safetensors": safetensors({}, length=99_000_000),
        "nested_header.safetensors": safetensors(b'{"a":' * DEEP),
        "overlapping.safetensors": safetensors(
            {"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, bytes(16)
        ),
        "overflow.safetensors": safetensors({"a": entry([2**32, 2**32], 0, 16)}, bytes(16)),
        "overflow_to_4.safetensors": safetensors({"a": entry([2**62, 4, 1], 0, 16)}, bytes(16)),
        "beyond.safetensors": safetensors({"a": entry([4], 0, 2**60)}, bytes(16)),
        "negative.safetensors": safetensors({"a": entry([-4], 0, 16)}, bytes(16)),
        "huge_empty.safetensors": safetensors({"a": entry([0, 2**62, 2**62], 0, 0)}),
        "pickled.npz": object_array(canary),
        "header_of_code.npz": zipped({"a.npy": npy("__import__('os')", (1,), bytes(4))}),
        "huge_shape.npz": zipped({"a.npy": npy("<f4", (huge,), bytes(16))}),
        "overflow.npz": zipped({"a.npy": npy("<f4", (2**33, 2**33), bytes(16))}),
        "overflow_to_0.npz": zipped({"a.npy": npy("<f4", (2**32, 2**32), b"")}),
        "negative.npz": zipped({"a.npy": npy("<f4", (-1,), bytes(16))}),
        "nested_header.npz": zipped({"a.npy": npy("<f4", "(" * 5000, b"")}),
        "subarray.npz": zipped({"a.npy": npy(("<f4", (2**20, 2**20)), (1,), bytes(16))}),
        "climbing.npz": zipped({f"../../{canary.name}.npy": b"evil", "/etc/evil.npy": b"evil"}),
        "bomb.npz": bomb(),
        "plain.pth": pickle.dumps(Malicious(canary)),
        "zipped.pth": zipped({"archive/data.pkl": pickle.dumps(Malicious(canary), 2)}),
        "climbing.pth": zipped({"../../data.pkl": pickle.dumps(Malicious(canary), 2)}),
        "script.pth": zipped(
            {"archive/data.pkl": b"\x80\x02.", "archive/constants.pkl": b"\x80\x02."}
        ),
        "climbing.tar": tar(canary),
        "long_map.msgpack": b"\xdf\xff\xff\xff\xff",
        "nested.msgpack": b"\x81\xa1a" * DEEP,
        "huge_array.msgpack": b"\x81\xa1a\xc7\x0f\x01\x93\x92\xce\xff\xff\xff\xff\xce\xff\xff",
        "random.pth": np.random.default_rng(0).bytes(4096),
    }


def write(folder, files):
    """Write {name: content}, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [folder / name for name in files]


# Texts that stand for a JSON file.
JSON = {
    "deep": "[" * DEEP,
    "deep object": '{"a":' * DEEP,
    "digits": f'{{"schema": {"9" * 5000}}}',
    "infinite": '{"schema": 1e999}',
    "list": "[]",
    "null": "null",
    "zero byte": "\0",
    "not UTF-8": b"\xff\xfe{}",
    "duplicate": '{"schema": 1, "schema": []}',
}
# Patterns that match in a time that grows exponentially, or with a high power, with the length of a name.
PATTERNS = (
    r"(\w+)+!", r"(\w|\w\w)*!", r"(\w*)*!", r"(?:(?:\w+)+)+!", r"\w*\w*\w*\w*\w*\w*\w*!", r"(\w?){40}\w{40}!",
    r"((\w{1,9}){1,9}){1,9}!",  r"(?=(\w+)+!)", r"(?<=a)(\w+)+!", r"(\w+?)+?!",
    "(" * 5000 + ")" * 5000, "a" * 10**6, r"x{4294967296}", "(?i)" + r"(\w+\s?)*!",
)  # fmt: skip


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)
    return path
