"""The command `predict`: the same answers as Python and `evaluate`, for all kinds of input and output."""

import csv
import dataclasses
import io
import json
import os

import numpy as np
import pyarrow.parquet
import pytest
from conftest import refused, saved, saved_run

import flax_resnet
from flax_resnet.cli import commands
from flax_resnet.data.image_paths import image_paths
from flax_resnet.errors import DataError
from flax_resnet.inference import file_predictions
from flax_resnet.training.runs.file_checksums import write_file_checksums
from flax_resnet.training.runs.metadata import RunMetadata


@pytest.fixture
def run(photographs, tmp_path):
    sections = {
        "data": {
            "source": "folder", "path": str(photographs), "image_size": 24, "eval_fraction": 0.3,
            "eval_crop": "center",
        },
        "model": {"name": "resnet20", "depths": (1, 1, 1)},
    }  # fmt: skip
    return saved_run(tmp_path / "run", sections, ["china", "flower"], step=3)


@pytest.fixture
def photos(photographs):
    """The photographs, with a sub-folder and a broken file between them."""
    (photographs / "china" / "more").mkdir()
    (photographs / "china" / "5.jpg").rename(photographs / "china" / "more" / "5.jpg")
    (photographs / "flower" / "2b.jpg").write_bytes(b"\xff\xd8\xff broken")
    return photographs


def predicted(capsys, *arguments, code=0):
    """Run `predict` and return the rows that it prints as CSV, and its messages."""
    assert commands.main(["predict", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(out))), err


def test_every_row_equals_the_prediction_of_python(run, photos, capsys, monkeypatch):
    """In the order of the input, also where chunks end, and around an unreadable file."""
    monkeypatch.setattr(file_predictions, "CHUNK", 5)
    files = list(image_paths([str(photos)]))
    assert len(files) == 13
    assert files == sorted(files)
    rows, err = predicted(
        capsys, photos, f"--workdir={run}", "--top_k=2", "--probabilities", code=4
    )
    assert [row["path"] for row in rows] == files
    classifier = flax_resnet.load(run)
    wanted = classifier.predict(files, skip_unreadable=True)
    for row, label, probabilities in zip(rows, wanted.labels, wanted.probabilities, strict=True):
        if label < 0:
            assert set(row.values()) == {row["path"], ""}
            continue
        order = np.argsort(-probabilities)
        assert [row["label"], row["label_2"]] == [classifier.class_names[i] for i in order]
        numbers = [float(row[f"probability of {name}"]) for name in classifier.class_names]
        # Pixels of the two decoders differ by at most 3 levels.
        np.testing.assert_allclose(numbers, probabilities, atol=0.02)
        assert float(row["probability"]) == max(numbers)
    bad = str(photos / "flower" / "2b.jpg")
    assert next(line for line in err.splitlines() if bad in line).startswith("warning: ")
    assert "1 of 13" in err.splitlines()[-1]
    rows, err = predicted(capsys, photos, f"--workdir={run}", "--skip_bad")
    assert [row["path"] for row in rows] == [file for file in files if file != bad]


def test_the_accuracy_of_the_rows_is_that_of_evaluate(run, photos, capsys):
    (photos / "flower" / "2b.jpg").unlink()
    assert commands.main(["evaluate", f"--workdir={run}", f"--dataset={photos}"]) == 0
    capsys.readouterr()
    record = json.loads((run / "evaluations.jsonl").read_text())
    rows, _ = predicted(capsys, photos, f"--workdir={run}")
    hits = sum(f"/{row['label']}/" in row["path"] for row in rows)
    assert record["count"] == len(rows) == 12
    assert record["top1"] == pytest.approx(hits / 12)


def test_all_kinds_of_input(photos, tmp_path, monkeypatch):
    china, flower = photos / "china", photos / "flower"
    table = photos / "list.csv"
    table.write_text("label, path\na,china/0.jpg\n\nb,flower/1.jpg\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{flower / '4.jpg'}\n\n{china / '2.jpg'}\n"))
    monkeypatch.chdir(photos)
    texts = [str(flower / "3.jpg"), str(china / "*.jpg"), "china/more", str(table), "-"]
    assert list(image_paths(texts)) == [
        str(flower / "3.jpg"),
        *(str(china / f"{number}.jpg") for number in range(5)),
        "china/more/5.jpg",
        str(china / "0.jpg"),
        str(flower / "1.jpg"),
        str(flower / "4.jpg"),
        str(china / "2.jpg"),
    ]
    assert list(image_paths(["**/5.jpg"])) == ["china/more/5.jpg", "flower/5.jpg"]
    inside = [os.path.relpath(file, photos) for file in image_paths([str(photos)])]
    assert list(image_paths(["."])) == [f"./{file}" for file in inside]
    monkeypatch.chdir(china)
    assert list(image_paths([".."])) == [f"../{file}" for file in inside]
    raw = io.TextIOWrapper(io.BytesIO(b"caf\xe9.jpg\nnul\0.jpg\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", raw)
    assert list(image_paths(["-"])) == ["caf\udce9.jpg", "nul\0.jpg"]
    (tmp_path / "empty").mkdir()
    for text in ("nothing.jpg", "*.nothing", str(tmp_path / "empty")):
        with refused("PHOTOS", text, DataError):
            list(image_paths([text]))
    table.write_text("path,label\nchina/0.jpg,a\n\n,b\n")
    with refused(table, kind=DataError) as error:
        list(image_paths([str(table)]))
    assert "line 4" in error.value.problem
    table.write_text("file,label\na,b\n")
    with refused("PHOTOS", str(table), DataError):
        list(image_paths([str(table)]))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_interrupted_output_is_continued(run, photos, tmp_path, capsys, suffix):
    """Cut at any byte: the rows of an undisturbed output, but for rounding. Complete rows stay as they are."""

    def values(text):
        """Return the path, label and probability of each row."""
        reader = csv.DictReader(io.StringIO(text)) if suffix == "csv" else text.splitlines()
        rows = [row if suffix == "csv" else json.loads(row) for row in reader]
        paths, labels, probabilities = zip(*(row.values() for row in rows), strict=True)
        return paths, labels, [float(p or 0) for p in probabilities]

    file = tmp_path / "out" / f"rows.{suffix}"
    command = ["predict", str(photos), f"--workdir={run}", f"--output={file}"]
    assert commands.main(command) == 4
    whole = file.read_bytes()
    for cut in (0, 3, len(whole) // 2, whole.rfind(b"\n", 0, -1) + 1, len(whole) - 1, len(whole)):
        file.write_bytes(whole[:cut])
        capsys.readouterr()
        assert commands.main([*command, "--append"]) in (0, 4)
        kept = whole[: whole.rfind(b"\n", 0, cut) + 1]
        assert file.read_bytes().startswith(kept)
        *names, numbers = values(file.read_text())
        *wanted, exact = values(whole.decode())
        assert names == wanted
        np.testing.assert_allclose(numbers, exact, rtol=1e-5)
    for content in (whole, whole[: whole.find(b"\n") + 1]):  # in CSV, the second is only the header
        file.write_bytes(content)
        capsys.readouterr()
        assert commands.main([*command, "--append", "--top_k=2"]) == 2
        assert capsys.readouterr().err.startswith(f"error: --output={file}: ")
        assert file.read_bytes() == content
    file.write_bytes(whole)
    assert commands.main(["predict", str(photos / "china"), *command[2:], "--append"]) == 2
    assert file.read_bytes() == whole
    for foreign in (b"name,age\nx,1\ny,2", b"my only copy", b"3\n4\n"):
        file.write_bytes(foreign)
        assert commands.main([*command, "--append"]) in (2, 4)
        assert file.read_bytes() == foreign


def test_an_output_that_is_an_input_is_refused(run, photos, capsys):
    table = photos / "list.csv"
    table.write_text("path,label\nchina/0.jpg,a\n")
    before = table.read_bytes()
    assert commands.main(["predict", str(table), f"--workdir={run}", f"--output={table}"]) == 2
    assert table.read_bytes() == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --output=")


def test_a_run_with_more_logits_than_classes(photographs, tmp_path, capsys):
    sections = {
        "data": {"source": "folder", "path": str(photographs), "image_size": 24},
        "model": {"name": "resnet20", "depths": (1, 1, 1), "num_classes": 5},
    }
    run = saved_run(tmp_path / "run", sections, ["china", "flower", "c", "d", "e"], step=3)
    metadata = RunMetadata.from_json(saved(run, 3))
    two = dataclasses.replace(metadata, class_names=("china", "flower")).to_json()
    (run / "checkpoints" / "3" / "run" / "metadata").write_text(json.dumps(two))
    write_file_checksums(run / "checkpoints" / "3")
    rows, _ = predicted(capsys, photographs, f"--workdir={run}", "--top_k=9", "--probabilities")
    assert {rows[0][f"label_{place}"] for place in range(2, 6)} | {rows[0]["label"]} == {
        "china", "flower", "class 2", "class 3", "class 4",
    }  # fmt: skip


def test_a_table_without_a_readable_image(run, photos, tmp_path, capsys):
    bad = photos / "flower" / "2b.jpg"
    table = tmp_path / "rows.parquet"
    predicted(capsys, bad, f"--workdir={run}", f"--output={table}", code=4)
    assert pyarrow.parquet.read_table(table).to_pydict()["label"] == [None]
    predicted(capsys, bad, f"--workdir={run}", f"--output={table}", "--skip_bad")
    assert pyarrow.parquet.read_table(table).num_rows == 0


def test_features_as_a_table_and_as_an_array(run, photos, tmp_path, capsys):
    files = list(image_paths([str(photos)]))
    good = [file for file in files if "2b" not in file]
    wanted = flax_resnet.load(run).features(good)["pre_logits"]
    array, table = tmp_path / "features.npy", tmp_path / "features.parquet"
    command = [photos, f"--workdir={run}", "--features=pre_logits", "--skip_bad"]
    rows, _ = predicted(capsys, *command, f"--output={array}")
    assert [row["path"] for row in rows] == good
    found = np.load(array)
    assert (found.dtype, found.shape) == (np.float32, wanted.shape)
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
    predicted(capsys, *command, f"--output={table}")
    read = pyarrow.parquet.read_table(table).to_pydict()
    assert list(read) == ["path", "label", "probability", "pre_logits"]
    assert read["path"] == good
    np.testing.assert_array_equal(np.array(read["pre_logits"], np.float32), found)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["{photos}"], "--workdir"),
        (["--workdir={run}"], "PHOTOS"),
        (["{photos}", "--workdir={run}", "--model=resnet18"], "--model"),
        (["{photos}", "--workdir={run}", "--output=rows.txt"], "--output"),
        (["{photos}", "--workdir={run}", "--format=parquet"], "--format"),
        (["{photos}", "--workdir={run}", "--append"], "--append"),
        (["{photos}", "--workdir={run}", "--append", "--output={photos}/x.parquet"], "--append"),
        (["{photos}", "--workdir={run}", "--features=pre_logits"], "--output"),
        (["{photos}", "--workdir={run}", "--features=x", "--output={photos}/x.npy"], "--features"),
        (["{photos}", "nope.jpg", "--workdir={run}", "--output={photos}/x.csv"], "PHOTOS=nope.jpg"),
        (["{photos}", "--workdir={run}", "--top_k=0"], "--top_k"),
        (["{photos}", "--workdir={photos}"], "{photos}"),
        (["{photos}/nothing", "--workdir={run}"], "PHOTOS"),
    ],
)
def test_mistakes_are_one_line(run, photos, capsys, flags, key):
    places = {"run": run, "photos": photos}
    code = commands.main(["predict", *(flag.format(**places) for flag in flags)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code in (2, 4, 5)
    assert line.startswith(f"error: {key.format(**places)}")
    assert not list(photos.glob("x.*"))
