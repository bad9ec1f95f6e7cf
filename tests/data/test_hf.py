"""Hugging Face datasets from local Parquet files."""

import io
import itertools

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import refused
from PIL import Image

import flax_resnet
from flax_resnet import main
from flax_resnet.config import freeze
from flax_resnet.data.data_section import Data
from flax_resnet.data.fingerprint import change, fingerprint_of
from flax_resnet.data.named import DatasetChoice, data_section
from flax_resnet.data.open import open_source
from flax_resnet.errors import DataError
from flax_resnet.training.experiment import make_sampler


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The library copies Parquet files to its cache, which is read when the library is imported."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def files_of(photographs):
    files = sorted(photographs.rglob("*.jpg"))
    return files, [file.parent.name for file in files]


def written(photographs, folder, **splits):
    """Write splits, {name: numbers of the photographs}, as Parquet files with the types of the library."""
    files, classes = files_of(photographs)
    names = sorted(set(classes))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    for split, numbers in splits.items():
        rows = {
            "image": [{"bytes": files[i].read_bytes(), "path": None} for i in numbers],
            "label": [classes[i] for i in numbers],
        }
        dataset = datasets.Dataset.from_dict(rows, features=features)
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return Data(source="hf", path=str(folder))


def test_images_and_labels_are_those_of_the_files(photographs, tmp_path):
    config = written(photographs, tmp_path / "set", train=range(2, 12), test=range(2))
    files, classes = files_of(photographs)
    train, test = (open_source(config, train=side) for side in (True, False))
    assert (len(train), len(test), train.class_names) == (10, 2, ("china", "flower"))
    read = train.read([7, 0, 7])
    assert read.images == [files[i].read_bytes() for i in (9, 2, 9)]
    assert [train.class_names[label] for label in read.labels] == [classes[i] for i in (9, 2, 9)]
    np.testing.assert_array_equal(train.labels(), [classes[i] == "flower" for i in range(2, 12)])
    assert train.shared(test) == 0
    assert "7" in train.describe(7)


def test_the_fingerprint_is_of_labels_and_sizes(photographs, tmp_path):
    config = written(photographs, tmp_path / "set", train=range(2, 12), test=range(2))
    before = fingerprint_of(open_source(config, train=True))
    other = written(photographs, tmp_path / "moved", train=range(2, 12), test=range(2))
    assert change(before, fingerprint_of(open_source(other, train=True))) is None
    files, _ = files_of(photographs)
    files[5].write_bytes(files[5].read_bytes() + b"\0")
    other = written(photographs, tmp_path / "grown", train=range(2, 12), test=range(2))
    assert change(before, fingerprint_of(open_source(other, train=True))) == ("sizes", 3)


def test_slices_and_sums_of_splits(photographs, tmp_path):
    config = written(photographs, tmp_path / "set", train=range(2, 12), test=range(2))
    first, rest, both = (
        open_source(config, train=True, split=split)
        for split in ("train[:60%]", "train[4:]", "train[5:]+test")
    )
    assert (len(first), len(rest), len(both)) == (6, 6, 7)
    assert (first.shared(rest), first.shared(both), rest.shared(both)) == (2, 1, 5)
    files, _ = files_of(photographs)
    assert both.read([5]).images == [files[0].read_bytes()]


def test_the_stream_is_that_of_the_same_files_in_a_folder(photographs, tmp_path):
    from flax_resnet.data.pipeline import training_batches

    config = written(photographs, tmp_path / "set", train=range(12))
    section = {"image_size": 16, "train_crop": "random_resized"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train").symlink_to(photographs)
    folder = Data(source="folder", path=str(tmp_path / "folder"), **section)
    sources = [open_source(one, train=True) for one in (config.but(**section), folder)]
    assert len(sources[1]) == 12

    def stream(source, data):
        sampler = make_sampler(source, freeze({"data": {"source": "python"}}))
        steps = {"batch_size": 4, "start_step": 1, "total_steps": 6, "rows": slice(0, 4), "bad": {}}
        return list(training_batches(source, sampler, data, **steps))

    for ours, theirs in zip(stream(sources[0], folder), stream(sources[1], folder), strict=True):
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(ours[key], theirs[key])


def plain(photographs, folder, **splits):
    """Write splits, {name: labels}, as Parquet files with plain columns."""
    files, _ = files_of(photographs)
    folder.mkdir()
    for split, rows in splits.items():
        images = [{"bytes": files[i].read_bytes(), "path": ""} for i in range(len(rows))]
        table = pyarrow.table({"picture": images, "kind": rows})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return Data(source="hf", path=str(folder))


def test_a_blank_label_is_no_class(photographs, tmp_path):
    for number, blank in enumerate(("", "  ")):
        data = plain(photographs, tmp_path / str(number), train=["a", "b", blank])
        with refused("data.train_split", "train", DataError) as caught:
            open_source(data, train=True)
        assert caught.value.problem.startswith("1 ")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["cafe\u0301", "a", " caf\u00e9"], ("a", "caf\u00e9")),
        ([10, 2, 10], ("2", "10")),
        (["b", "a", "b"], ("a", "b")),
        ([True, False, True], ("False", "True")),
    ],
)
def test_labels_without_names_have_those_of_their_values(values, names, photographs, tmp_path):
    """Parquet files of other programs: plain columns, found by their types. The test split lacks a class."""
    data = plain(photographs, tmp_path / "set", train=values, test=values[:1])
    train, test = (open_source(data, train=t) for t in (True, False))
    assert train.class_names == test.class_names == names
    np.testing.assert_array_equal(train.labels(), [1, 0, 1])
    np.testing.assert_array_equal(test.labels(), [1])


def test_photographs_are_turned_upright(photographs, tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(files_of(photographs)[0][0]).save(buffer, "JPEG", exif=exif)
    table = pyarrow.table(
        {"image": [{"bytes": buffer.getvalue(), "path": ""}] * 2, "label": [0, 1]}
    )
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    config = Data(source="hf", path=str(tmp_path / "set"))
    assert open_source(config, train=True).read([0]).orientations.tolist() == [6]
    assert open_source(config.but(exif=False), train=True).read([0]).orientations is None


def test_mistakes_are_one_line(photographs, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    with refused("data.path", nowhere, DataError):
        open_source(Data(source="hf", path=nowhere), train=True)
    config = written(photographs, tmp_path / "set", train=range(12))
    with refused("data.eval_split", "test", DataError) as caught:
        open_source(config, train=False)
    assert "train" in caught.value.allowed
    with refused("data.train_split", "train[:", DataError):
        open_source(config.but(train_split="train[:"), train=True)
    with refused("data.train_split", "train[:0]", DataError):
        open_source(config.but(train_split="train[:0]"), train=True)
    with refused("data.label_feature", "image", DataError) as caught:
        open_source(config.but(label_feature="image"), train=True)
    assert caught.value.allowed == ("label",)
    numbers = pyarrow.table({"number": [1, 2]})
    (tmp_path / "numbers").mkdir()
    pyarrow.parquet.write_table(numbers, tmp_path / "numbers" / "train.parquet")
    plain = str(tmp_path / "numbers")
    with refused("data.path", plain, DataError) as caught:
        open_source(Data(source="hf", path=plain), train=True)
    assert "number" in caught.value.problem


@pytest.mark.parametrize("missing", [None, -1])
def test_examples_without_a_label_are_refused(missing, photographs, tmp_path):
    files, _ = files_of(photographs)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [{"bytes": files[0].read_bytes(), "path": None}] * 3, "label": [0, missing, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        tmp_path / "set" / "train.parquet"
    )
    with refused("data.train_split", "train", DataError) as caught:
        open_source(Data(source="hf", path=str(tmp_path / "set")), train=True)
    assert "1 of its 3" in caught.value.problem


def test_a_dataset_named_on_the_command_line(photographs, tmp_path):
    written(photographs, tmp_path / "set", train=range(6), validation=range(6, 12))
    data = data_section(Data(), DatasetChoice(f"hf:{tmp_path / 'set'}"))
    assert (data.source, data.dataset, data.eval_split) == (
        "hf",
        str(tmp_path / "set"),
        "validation",
    )
    assert len(open_source(data, train=False)) == 6


@pytest.mark.slow
def test_a_run_trains_evaluates_and_predicts(photographs, tmp_path):
    written(photographs, tmp_path / "set", train=[0, 1, 2, 3, 6, 7, 8, 9], test=[4, 5, 10, 11])
    code = main.main([
        "--config=configs/resnet18.py", f"--workdir={tmp_path / 'run'}", "--config.data.source=hf",
        f"--config.data.path={tmp_path / 'set'}", "--config.data.image_size=16", "--config.train.epochs=2",
        "--config.train.batch_size=8", "--config.model.depths=(1,1,1,1)", "--config.model.widths=(4,4,4,4)",
    ])  # fmt: skip
    assert code == 0
    classifier = flax_resnet.load(tmp_path / "run")
    assert classifier.class_names == ("china", "flower")
    files, _ = files_of(photographs)
    assert len(classifier.predict([str(file) for file in itertools.islice(files, 3)]).labels) == 3
