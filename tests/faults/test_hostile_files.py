"""Files and values of an attacker: one line and in time; no code runs, and nothing is written elsewhere."""

import hashlib
import json
import os
import shutil
import signal
import struct
import zlib

import hostile
import pytest
from conftest import refused, saved_run

import flax_resnet
from flax_resnet.cli import commands
from flax_resnet.config import freeze
from flax_resnet.errors import ConfigError, ExportError, UserError
from flax_resnet.inference.export.replaying import CONFIG, replay
from flax_resnet.weights import read_tensors
from flax_resnet.weights.npz_files import read_npz

pytestmark = pytest.mark.faults
SECONDS = 300  # no promise: what never ends fails, and does not stop all tests
SMALL = {"name": "resnet18", "depths": (1, 1, 1, 1), "widths": (4, 8, 16, 32), "stem": "cifar"}


@pytest.fixture(autouse=True)
def ends():
    def fail(number, frame):
        raise AssertionError(f"still runs after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def canary(tmp_path):
    """A path beside the folders of a test that hostile code would make."""
    path = tmp_path / "outer" / "canary"
    path.parent.mkdir()
    yield path
    assert [*path.parent.iterdir()] == []


@pytest.fixture
def refuses(capfd):
    """A function that runs a command, and expects an error of one line."""

    def run(*arguments):
        code = commands.main([*map(str, arguments)])
        err = capfd.readouterr().err
        assert code in (2, 3, 4, 5), (arguments, err)
        *before, last = err.splitlines()
        assert last.startswith("error: "), (arguments, err)
        assert not [line for line in before if line.startswith(("error: ", "Traceback"))], err
        return last

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint, and a record."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    saved_run(folder, {"model": SMALL, "data": {"image_size": 8}}, [*"0123456789"])
    record = {"step": 0, "epoch": 0.0, "split": "test", "loss": 1.0, "top1": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return folder


def test_files_of_weights(tmp_path, canary, refuses):
    files = hostile.write(tmp_path / "weights", hostile.weights(canary))
    for file in files:
        with pytest.raises(UserError) as caught:
            read_tensors(file)
        assert "\n" not in str(caught.value), file
        assert not canary.exists(), file
    for file in files[::6]:
        refuses("convert", file, tmp_path / "converted", "--model=resnet18")
        refuses("evaluate", "--model=resnet18", f"--weights={file}")
    assert not (tmp_path / "converted").exists()


def test_npz_files_that_account_for_their_size_are_read(tmp_path):
    import numpy as np

    file = tmp_path / "arrays.npz"
    wanted = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.ones((2, 3), ">i2"))}
    wanted |= {"c": np.float32(3), "d": np.zeros((0, 2))}
    np.savez_compressed(file, **wanted)
    found = read_npz(file)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("number", range(len(hostile.PATTERNS)))
def test_regular_expressions_that_never_end(number):
    pattern = hostile.PATTERNS[number]
    for key in ("unfreeze_at", "weight_decay_rules", "learning_rate_rules"):
        with refused(f"optimizer.{key}", ..., ConfigError):
            freeze({"optimizer": {key: ((pattern, 1.0),)}})


@pytest.mark.parametrize(
    "pattern", ["kernel$", "", r"layer\d+_\d+/.*conv.*/kernel$", r"(layer3|layer4)/", r"^(?!fc).*$"]
)
def test_ordinary_regular_expressions(pattern):
    freeze({"optimizer": {"unfreeze_at": ((pattern, 1.0),)}})


def test_huge_numbers(refuses):
    for setting in ("data.threads", "train.prefetch", "data.image_size", "train.epochs"):
        line = refuses("train", "--config=resnet18", f"--config.{setting}=1000000000", "--dry_run")
        assert setting in line


def test_long_and_odd_paths(tmp_path, refuses, run):
    for path in ("x" * 5000, str(tmp_path) + "/x" * 2500, "a\0b"):
        refuses("train", "--config=resnet18", f"--workdir={path}")
        refuses("evaluate", f"--workdir={path}")
        refuses("report", f"--workdir={path}")
        refuses("predict", f"--workdir={run}", f"--images={path}")
        refuses("export", f"--workdir={run}", f"--output={path}", "--format=safetensors")
        refuses("convert", path, tmp_path / "out", "--model=resnet18")
        refuses("convert", run, path)
        refuses("prepare", f"--source={path}", f"--data_dir={path}", "--name=new")
        refuses("train", "--config=resnet18", f"--config.data.path={path}", "--dry_run",
                "--config.data.source=folder")  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", hostile.JSON)
def test_files_of_a_run_folder(tmp_path, refuses, run, kind):
    text = hostile.JSON[kind]
    content = text if isinstance(text, bytes) else text.encode()
    step = "checkpoints/0"
    for name in ("config.json", "metrics.jsonl", f"{step}/run/metadata", f"{step}/files.json"):
        copy = tmp_path / name.replace("/", "_")
        shutil.copytree(run, copy)
        # The record of an interrupted write is ignored, so another line follows.
        (copy / name).write_bytes(content + b"\n{}\n" if name == "metrics.jsonl" else content)
        if name == "config.json":
            refuses("train", "--config=resnet18", f"--workdir={copy}")
        else:
            with pytest.raises(UserError) as caught:
                flax_resnet.load(copy, "best")
            assert "\n" not in str(caught.value)


def test_links_and_devices_in_a_run_folder(tmp_path, refuses, run):
    for name in ("config.json", "metrics.jsonl"):
        copy = tmp_path / name
        shutil.copytree(run, copy)
        (copy / name).unlink()
        hostile.link(copy / name, "/dev/zero")
        command = ("train", "--config=resnet18") if name == "config.json" else ("report",)
        refuses(*command, f"--workdir={copy}")
    pipe = tmp_path / "pipe"
    shutil.copytree(run, pipe)
    (pipe / "config.json").unlink()
    os.mkfifo(pipe / "config.json")
    refuses("train", "--config=resnet18", f"--workdir={pipe}")
    for name in ("/dev/zero", "../../../config.json", "x" * 5000, "a\0b"):
        copy = tmp_path / f"files{len(name)}"
        shutil.copytree(run, copy)
        (copy / "checkpoints" / "0" / "files.json").write_text(json.dumps({name: [1, 1]}))
        refuses("evaluate", f"--workdir={copy}")


@pytest.mark.parametrize("kind", hostile.JSON)
def test_descriptions_of_weights_and_exports(tmp_path, kind):
    text = hostile.JSON[kind]
    content = text if isinstance(text, bytes) else text.encode()
    hub = tmp_path / "hub"
    weights = hostile.safetensors({"a": hostile.entry([1], 0, 4)}, bytes(4))
    hostile.write(hub, {"config.json": content, "model.safetensors": weights})
    with pytest.raises(UserError):
        flax_resnet.load_pretrained(str(hub))
    with pytest.raises(UserError):
        flax_resnet.load_pretrained("resnet18", weights=hub / "model.safetensors")
    with pytest.raises(UserError):
        replay(hub)


@pytest.mark.parametrize(
    "name", ["../outer/secret", "/dev/zero", "link", "x" * 5000, "a\0b", 7, None]
)
def test_an_export_that_names_files_elsewhere(tmp_path, name):
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "secret").write_bytes(b"secret")
    folder = tmp_path / "export"
    hostile.link(folder / "link", tmp_path / "outer" / "secret")
    about = {
        "schema": 1,
        "signature": {"image_size": 8, "preprocessing": "normalize"},
        "formats": {"onnx": {"file": name}},
        "files": {str(name): hashlib.sha256(b"secret").hexdigest()},
    }
    hostile.write(folder, {CONFIG: json.dumps({"export": about})})
    # Refused for its description: the file, whose checksum would be right, is not read.
    with refused(folder / CONFIG, ..., ExportError):
        replay(folder)


def test_tables_and_pictures(tmp_path, refuses, run):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    (bomb,) = hostile.write(tmp_path / "images", {"bomb.png": picture})
    refuses("predict", f"--workdir={run}", f"--images={bomb}")
    refuses("predict", f"--workdir={run}", "--images=/dev/zero")
    tables = {
        "long field": "path,label\n" + "x" * 200_000 + ",a\n",
        "device": "path,label\n/dev/zero,a\n/dev/zero,b\n",
        "elsewhere": "path,label\n../../../../etc/passwd,a\n/etc/passwd,b\n",
        "long path": "path,label\n" + "x" * 5000 + ",a\n",
        "many columns": "path,label" + ",x" * 100_000 + "\n" + "," * 100_000,
        "quotes": 'path,label\n"' + "\n" * 100_000,
        "long name": "path,label\na.png," + "x" * 100_000 + "\n",
    }
    for name, text in tables.items():
        (file,) = hostile.write(tmp_path / "tables", {f"{name}.csv": text})
        refuses("train", "--config=resnet18", f"--config.data.path={file}", f"--workdir={tmp_path / 'new'}",
                "--config.data.source=folder")  # fmt: skip
