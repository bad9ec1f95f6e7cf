"""The folder of an export, what is refused, and the replay of its test images."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import drawn, refused, saved_run
from jax import export as jax_export
from PIL import Image
from untrained import initial

from flax_resnet import create_model, load_pretrained
from flax_resnet.cli import commands
from flax_resnet.config import Config, freeze
from flax_resnet.errors import ConfigError, ExportError, OutputError
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.export import FORMATS, export, replay
from flax_resnet.inference.export.check_images import check_images
from flax_resnet.inference.export.equations import as_float16
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.readme import wilson
from flax_resnet.inference.export.replaying import checksums_of, refuse_differences
from flax_resnet.inference.export.signature import Signature

SIZE = 16
SHAPE = {"widths": (4, 8), "depths": (1, 1), "stem": "cifar"}
NAMES = ("line\nbreak", "été", "c")


@pytest.fixture(scope="module")
def classifier():
    """A small network with random scales and statistics."""
    model = create_model("resnet18", num_classes=3, **SHAPE)
    augment = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "eval_flip": True}
    config = freeze({"model": {"name": "resnet18", **SHAPE}, "augment": augment})
    return Classifier(model, drawn(initial(model)), NAMES, config, 0)


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    formats = ["stablehlo", "safetensors"]
    return export(classifier, tmp_path_factory.mktemp("exports") / "net", formats, image_size=SIZE)


def logits_of(classifier, images):
    """The logits of the network before folding, averaged over an image and its mirror image."""
    apply = jax.jit(lambda x: classifier.model.apply(classifier.variables, x, train=False))
    return np.asarray((apply(images) + apply(images[:, :, ::-1])) / 2)


def test_stablehlo_gives_the_logits_of_the_network_for_any_batch(classifier, folder):
    exported = jax_export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 3):
        images = np.random.default_rng(count).standard_normal((count, SIZE, SIZE, 3), np.float32)
        expected = logits_of(classifier, images)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(exported.call(images), expected, atol=1e-5)


def test_the_folder_describes_the_model(classifier, folder):
    assert [f.name for f in folder.parent.iterdir()] == ["net"]
    lines = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["line\\nbreak", "été", "c"]
    about = json.loads((folder / "config.json").read_text())
    assert about["label_names"] == [*NAMES]
    entry = about["export"]["formats"]["stablehlo"]
    assert entry["input"] == {
        "name": "images", "shape": ["batch", SIZE, SIZE, 3], "dtype": "float32", "layout": "NHWC",
    }  # fmt: skip
    assert entry["output"]["shape"] == ["batch", 3]
    assert about["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]
    text = (folder / "README.md").read_text(encoding="utf-8")
    for row in (FORMATS["stablehlo"], FORMATS["safetensors"]):
        assert row.file in text
    arrays = np.load(folder / "check" / "expected.npz")
    pictures = [np.asarray(Image.open(f)) for f in sorted(folder.glob("check/*.png"))]
    assert len(pictures) == 4
    normalised = (np.stack(pictures) / 255 - (0.5, 0.4, 0.3)) / np.array((0.2, 0.3, 0.4))
    np.testing.assert_allclose(arrays["inputs"], normalised, atol=1e-5)
    np.testing.assert_allclose(
        arrays["outputs"], logits_of(classifier, arrays["inputs"]), atol=1e-5
    )


def test_the_safetensors_file_loads_with_its_description(folder, classifier):
    loaded = load_pretrained("resnet18", weights=folder / "model.safetensors")
    assert loaded.class_names == NAMES
    assert loaded.config.augment.mean == (0.5, 0.4, 0.3)
    assert loaded.config.data.image_size == SIZE
    images = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3), np.float32)
    expected, again = (logits_of(c, images) for c in (classifier, loaded))
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_bytes_probabilities_fixed_batches_and_float16(classifier, folder, tmp_path):
    options = {"preprocessing": "normalize", "softmax": True, "batch_size": 3}
    half = export(
        classifier, tmp_path / "half", "stablehlo", image_size=SIZE, precision="float16", **options
    )
    (result,) = replay(half)
    assert result.images == 4  # two calls of three images
    assert 0 < result.difference < 1e-2
    size, full = ((path / "model.stablehlo").stat().st_size for path in (half, folder))
    assert size < 0.75 * full
    exported = jax_export.deserialize(bytearray((half / "model.stablehlo").read_bytes()))
    (image,) = exported.in_avals
    assert (image.shape, image.dtype) == ((3, SIZE, SIZE, 3), np.uint8)
    pixels = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    images = (pixels / 255 - (0.5, 0.4, 0.3)) / np.array((0.2, 0.3, 0.4))
    expected = jax.nn.softmax(logits_of(classifier, images.astype(np.float32)))
    np.testing.assert_allclose(exported.call(pixels), expected, atol=1e-2)


def test_kernels_are_stored_in_float16_and_biases_are_not():
    arrays = {1: np.ones((2, 2), np.float32), 2: np.ones(2, np.float32), 3: np.ones((2, 2), int)}
    dtypes = [array.dtype for array in as_float16(arrays).values()]
    assert dtypes == [np.float16, np.float32, int]
    arrays[4] = np.ones((100, 100), np.float32)
    assert as_float16(arrays)[1].dtype == np.float32  # too small to matter
    with refused("precision", "float16", ConfigError):
        as_float16({1: np.full((2, 2), 1e5, np.float32)})


@pytest.mark.parametrize(
    ("format", "options", "key", "value"),
    [
        ("stablehl", {}, "format", "stablehl"),
        ("stablehlo,torch", {}, "format", "torch"),
        ((), {}, "format", ()),
        ("stablehlo", {"preprocessing": "resize"}, "preprocessing", "resize"),
        ("stablehlo", {"preprocessing": "crop"}, "preprocessing", "crop"),
        ("litert,safetensors", {"softmax": True}, "softmax", True),
        ("safetensors", {"precision": "float16"}, "precision", "float16"),
        ("safetensors", {"batch_size": 1}, "batch_size", 1),
        ("stablehlo", {"precision": "bfloat16"}, "precision", "bfloat16"),
        ("stablehlo", {"batch_size": 0}, "batch_size", 0),
        ("stablehlo", {"image_size": 0}, "image_size", 0),
        ("stablehlo", {"image_size": 16.0}, "image_size", 16.0),
    ],
)
def test_an_unsupported_option_is_refused(classifier, tmp_path, format, options, key, value):
    with refused(key, value, ConfigError):
        export(classifier, tmp_path / "net", format, **options)
    assert not any(tmp_path.iterdir())


def test_images_that_are_too_small_are_refused(tmp_path):
    model = create_model("airbench94")
    network = Classifier(model, initial(model), tuple(map(str, range(10))), Config(), 0)
    with refused("image_size", 4, ConfigError):
        export(network, tmp_path / "net", "stablehlo", image_size=4)


def test_a_network_without_a_head_is_refused(classifier, tmp_path):
    headless = dataclasses.replace(classifier, model=classifier.model.clone(num_classes=0))
    with refused("num_classes", 0, ConfigError):
        export(headless, tmp_path / "net", "stablehlo")


def test_nothing_is_overwritten(classifier, folder, tmp_path):
    before = checksums_of(folder)
    with refused(folder, kind=OutputError):
        export(classifier, folder, "stablehlo", image_size=SIZE)
    assert checksums_of(folder) == before
    file = tmp_path / "file"
    file.touch()
    with refused(file, kind=OutputError):
        export(classifier, file, "stablehlo", image_size=SIZE)
    with refused(file / "net", kind=OutputError):
        export(classifier, file / "net", "stablehlo", image_size=SIZE)


def test_outputs_that_differ_leave_no_folder(classifier, tmp_path, monkeypatch):
    expected = Program.expected
    monkeypatch.setattr(Program, "expected", lambda self, pixels: 1.001 * expected(self, pixels))
    with refused(tmp_path / "net", kind=ExportError):
        export(classifier, tmp_path / "net", "stablehlo", image_size=SIZE)
    assert not any(tmp_path.iterdir())


def edited(folder, to, *, checksums=True, **arrays):
    """A copy of an export with other arrays in expected.npz, and its checksum if `checksums`."""
    (to / "check").mkdir(parents=True)
    for name in checksums_of(folder):
        (to / name).write_bytes((folder / name).read_bytes())
    file = to / "check" / "expected.npz"
    np.savez(file, **{**np.load(file), **arrays})
    if checksums:
        about = json.loads((to / "config.json").read_text())
        about["export"]["files"] = {k: checksums_of(to)[k] for k in about["export"]["files"]}
        (to / "config.json").write_text(json.dumps(about))
    return to


def test_the_command_replays_an_export(folder, tmp_path, cache_dir, capsys):
    cache = f"--compilation_cache={cache_dir}"
    assert commands.main(["export", f"--check={folder}", cache]) == 0
    out = capsys.readouterr().out
    assert f"jax {jax.__version__}" in out
    assert "safetensors" in out
    outputs = np.load(folder / "check" / "expected.npz")["outputs"]
    other = edited(folder, tmp_path / "other", outputs=outputs * np.float32(1.001))
    assert commands.main(["export", f"--check={other}", cache]) == 5
    assert capsys.readouterr().out.count("1.0e-03") == 2
    assert commands.main(["export", f"--check={folder}", "--softmax", cache]) == 2


def test_a_damaged_folder_is_one_line(folder, tmp_path):
    with refused(tmp_path, kind=ExportError):
        replay(tmp_path)
    file = edited(folder, tmp_path / "edited", checksums=False, outputs=np.zeros((4, 3)))
    with refused(file / "check" / "expected.npz", kind=ExportError):
        replay(file)
    for name, outputs in {"dtype": np.zeros((4, 3)), "count": np.zeros((3, 3), "f")}.items():
        wrong = edited(folder, tmp_path / name, outputs=outputs)
        with refused(wrong / "check" / "expected.npz", kind=ExportError):
            replay(wrong)
    config = tmp_path / "count" / "config.json"
    about = json.loads(config.read_text())
    about["export"]["signature"]["precision"] = "int8"
    for text in (json.dumps(about), "{", "[]", json.dumps({"export": {"schema": 2}})):
        config.write_text(text)
        with refused(config, kind=ExportError):
            replay(config.parent)


def test_a_missing_runtime_is_said(folder, monkeypatch):
    absent = dataclasses.replace(FORMATS["stablehlo"], runtimes=("no_such_runtime",))
    rows = {**FORMATS, "stablehlo": absent}
    monkeypatch.setattr("flax_resnet.inference.export.replaying.FORMATS", rows)
    unchecked, checked = replay(folder)
    assert unchecked.difference is None
    assert unchecked.runtime == "pip install no-such-runtime"
    refuse_differences([unchecked, checked], folder)
    with refused(folder, kind=ConfigError) as caught:
        refuse_differences([unchecked], folder)
    assert caught.value.cure == unchecked.runtime
    package = dataclasses.replace(FORMATS["stablehlo"], packages=("no_such_package",))
    with refused("format", "stablehlo", ConfigError) as caught:
        package.check(Signature(image_size=SIZE))
    assert caught.value.cure == "pip install no-such-package"


def test_a_run_brings_its_images_and_its_result(photographs, tmp_path, cache_dir, capsys, caplog):
    sections = {
        "data": {"source": "folder", "path": str(photographs), "image_size": SIZE, "eval_fraction": 0.5},
        "model": {"name": "resnet20", "depths": (1, 1, 1)},
    }  # fmt: skip
    run = saved_run(tmp_path / "run", sections, ["china", "flower"], step=3)
    split = freeze(sections).data.eval_split
    record = {"step": 3, "epoch": 1.0, "split": split, "top1": 0.9, "count": 100, "loss": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    arguments = [f"--workdir={run}", "--format=stablehlo", f"--compilation_cache={cache_dir}"]
    net = tmp_path / "net"
    assert commands.main(["export", *arguments, f"--output={net}", "--batch_size=2"]) == 0
    capsys.readouterr()
    text = (net / "README.md").read_text()
    assert "90.00%" in text
    assert "82.56% to 94.48%" in text
    about = json.loads((net / "config.json").read_text())
    assert about["export"]["formats"]["stablehlo"]["input"]["shape"] == [2, SIZE, SIZE, 3]
    assert "run's split" in about["export"]["check"]["images"]
    # Without the images, a line says so, and sample photographs are used.
    photographs.rename(tmp_path / "moved")
    with caplog.at_level("INFO", "flax_resnet"):
        images, source = check_images(freeze(sections), own=True)
    assert str(photographs) in caplog.text
    assert "china.jpg" in source
    assert images[0].size == (640, 427)


def test_wilsons_interval():
    assert wilson(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1), abs=1e-4)
