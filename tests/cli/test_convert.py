"""The commands `convert` and `evaluate` on weights from other sources."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from weights_by_name import SMALLEST

import flax_resnet
from flax_resnet import load_pretrained, main
from flax_resnet.cli import commands
from flax_resnet.weights import read_tensors, write_safetensors


def test_weights_are_converted_from_pytorch_to_a_run_and_back(weights, pictures, tmp_path, capsys):
    run, back = tmp_path / "run", tmp_path / "back.safetensors"
    assert commands.main(["convert", str(weights), str(run), "--model", SMALLEST]) == 0
    assert f'flax_resnet.load("{run}")' in capsys.readouterr().out
    classifier = flax_resnet.load(run)
    expected = load_pretrained(SMALLEST, weights=weights).predict(pictures).probabilities
    np.testing.assert_allclose(classifier.predict(pictures).probabilities, expected, atol=1e-6)
    assert classifier.config.data.image_size == 160

    assert commands.main(["convert", str(run), str(back)]) == 0
    assert "tensors of test_resnet" in capsys.readouterr().out
    ours, theirs = read_tensors(back), read_tensors(weights)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)
    # The JSON file next to the weights sets the preprocessing and the class names.
    sidecar = tmp_path / "back.json"
    about = json.loads(sidecar.read_text())
    about["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    about["label_names"] = ["no", "yes"]
    sidecar.write_text(json.dumps(about))
    again = load_pretrained(SMALLEST, weights=back)
    assert again.config.augment.mean == (0.1, 0.2, 0.3)
    assert again.class_names == ("no", "yes")


@pytest.mark.slow
def test_a_trained_run_is_converted_to_pytorch(data_dir, cache_dir, tmp_path, capsys):
    """With non-default depths and scanned blocks. The command prints the options that timm needs."""
    run, file = tmp_path / "run", tmp_path / "run.safetensors"
    arguments = [
        "--config=resnet18", "--config.model.widths=(4,8,8,8)", "--config.model.depths=(1,3,1,1)",
        "--config.model.scan_blocks=True", "--config.train.batch_size=240", "--config.train.epochs=1",
        "--config.schedule.warmup=0", "--config.train.eval_batch_size=360",
        f"--data_dir={data_dir}", f"--compilation_cache={cache_dir}", f"--workdir={run}",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    assert commands.main(["convert", str(run), str(file)]) == 0
    assert "depths=(1, 3, 1, 1)" in capsys.readouterr().out
    # The JSON file next to the weights sets the options and the crop.
    again = load_pretrained("resnet18", weights=file)
    assert again.config.model.depths == (1, 3, 1, 1)
    assert again.config.data.eval_crop == "resize"
    image = np.random.RandomState(0).randint(0, 256, (2, 8, 12, 3)).astype(np.uint8)
    expected = flax_resnet.load(run).predict(image).probabilities
    np.testing.assert_allclose(again.predict(image).probabilities, expected, atol=1e-5)
    tensors = read_tensors(file)
    assert tensors["layer2.2.conv1.weight"].shape == (8, 8, 3, 3)
    assert not any("rest" in name for name in tensors)
    classifier = flax_resnet.load(run)
    stacked = classifier.variables["params"]["layer2_rest"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        stacked[1], tensors["layer2.2.conv1.weight"].transpose(2, 3, 1, 0)
    )


def test_evaluate_a_model_on_a_folder(weights, photographs, cache_dir, capsys):
    arguments = [
        "evaluate", "--model", SMALLEST, "--weights", str(weights), "--dataset", str(photographs),
        "--image_size=32", f"--compilation_cache={cache_dir}",
    ]  # fmt: skip
    assert commands.main(arguments) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "top-5 100.00%" in line
    assert line.endswith(", test_resnet")
    # Compute the accuracy with `predict` on every image of the folder.
    classifier = load_pretrained(SMALLEST, weights=weights)
    data = dataclasses.replace(classifier.config.data, image_size=32)
    config = dataclasses.replace(classifier.config, data=data)
    small = dataclasses.replace(classifier, config=config)
    files = sorted(photographs.rglob("*.jpg"))
    labels = np.array([file.parent.name == "flower" for file in files])
    top1 = (small.predict(files).labels == labels).mean()
    assert f"top-1 {top1:.2%}," in line
    assert "(12 images)" in line
    assert commands.main([*arguments, "--split=train"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: --split=train: {photographs}")


def test_class_names_of_the_weights_must_match_the_data(weights, photographs, tmp_path, capsys):
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.read_bytes())
    about = {"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bilinear",
             "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    config = {"architecture": SMALLEST, "num_classes": 2, "pretrained_cfg": about}
    sidecar = tmp_path / "w.json"
    arguments = [
        "evaluate",
        "--model",
        SMALLEST,
        "--weights",
        str(file),
        "--dataset",
        str(photographs),
    ]
    sidecar.write_text(json.dumps({**config, "label_names": ["china", "zebra"]}))
    assert commands.main(arguments) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "'flower'" in line
    sidecar.write_text(json.dumps({**config, "id2label": {"1": "china", "0": "flower"}}))
    assert commands.main(arguments) == 0
    assert "classes are matched by name" in capsys.readouterr().err
    for key, value in (
        ("interpolation", "lanczos"),
        ("crop_pct", 1.3),
        ("mean", []),
        ("crop_mode", "x"),
    ):
        sidecar.write_text(json.dumps({**config, "pretrained_cfg": {**about, key: value}}))
        assert (
            commands.main(["convert", str(file), str(tmp_path / "run"), "--model", SMALLEST]) == 2
        )
        assert key in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


DATA, FOLDER = 4, 5  # exit codes; 2 is for an error in the command


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["evaluate"], 2, ["--workdir: ", "--model"]),
        (["evaluate", "--model=x", "--workdir=y"], 2, ["--model=x: ", "--workdir=y"]),
        (["evaluate", "--model=test_resnet"], 2, ["--dataset: "]),
        (["evaluate", "--model=test_resnet", "--weights=WEIGHTS", "--dataset=./nowhere"], DATA, ["./nowhere: "]),
        (["evaluate", "--model=test_resnet", "--weights=WEIGHTS", "--dataset=digits", "--data_dir=TMP",
          "--split=test"], DATA, ["digits", "10 classes", "2"]),
        (["evaluate", "--model=resnet18", "--weights=WEIGHTS", "--dataset=digits"], 2, ["missing: layer1."]),
        (["evaluate", "--model=test_resnet", "--weights=gone.safetensors", "--dataset=digits",
          "--data_dir=TMP"], 2, ["gone.safetensors"]),
        (["convert"], 2, ["SOURCE: "]),
        (["convert", "WEIGHTS"], 2, ["DEST: "]),
        (["convert", "WEIGHTS", "TMP/run", "stray"], 2, ["stray: "]),
        (["convert", "WEIGHTS", "TMP/run"], 2, ["--model: ", "WEIGHTS"]),
        (["convert", "WEIGHTS", "TMP/run", "--model=resnet18"], 2, ["missing: layer1."]),
        (["convert", "WEIGHTS", "TMP/run", "--model=test_resnot"], 2, ["'test_resnot'", "'test_resnet'"]),
        (["convert", "WEIGHTS", "TMP/taken", "--model=test_resnet"], FOLDER, ["TMP/taken: "]),
        (["convert", "resnet50", "TMP/run", "--model=resnet50"], 2, ["--model=resnet50: ", "SOURCE=resnet50"]),
        (["convert", "TMP/taken", "TMP/w.safetensors"], FOLDER, ["TMP/taken: "]),
        (["convert", "TMP/taken", "TMP/w.safetensors", "--model=x"], 2, ["--model=x: ", "SOURCE=TMP/taken"]),
        (["convert", "WEIGHTS", "TMP/w.pth.tar", "--model=test_resnet"], 2, ["DEST=TMP/w.pth.tar: "]),
        (["convert", "TMP/w.CKPT", "TMP/run", "--model=test_resnet"], 2, ["TMP/w.CKPT: no such file"]),
        (["convert", "TMP/taken/thesis.tex", "TMP/run", "--model=test_resnet"], 2, ["TMP/taken/thesis.tex: "]),
        (["convert", "TMP/taken", "TMP/w.pth"], 2, ["DEST=TMP/w.pth: ", ".safetensors"]),
        (["convert", "WEIGHTS", "TMP/b.safetensors", "--model=test_resnet"], 2, ["DEST=TMP/b.safetensors: "]),
        (["convert", "TMP/typo", "TMP/w.safetensors"], 2, ["SOURCE=TMP/typo: "]),
        (["convert", "TMP/typo", "TMP/w"], 2, ["SOURCE=TMP/typo: "]),
        (["evaluate", "--model=test_resnet", "--checkpoint=best", "--dataset=x"], 2, ["--checkpoint=best: "]),
    ],
)  # fmt: skip
def test_errors_of_convert_and_evaluate(arguments, code, names, weights, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")

    def filled(texts):
        return [x.replace("WEIGHTS", str(weights)).replace("TMP", str(tmp_path)) for x in texts]

    assert commands.main(filled(arguments)) == code
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    for name in filled(names):
        assert name in line
    assert {p.name for p in tmp_path.iterdir()} <= {"taken", "digits", "downloads"}


def test_existing_runs_and_files_are_not_overwritten(weights, tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "w.safetensors"
    assert commands.main(["convert", str(weights), str(run), "--model", SMALLEST]) == 0
    digest = hashlib.sha256(
        b"".join(sorted(p.read_bytes() for p in run.rglob("*") if p.is_file()))
    ).digest()
    assert commands.main(["convert", str(weights), str(run), "--model", SMALLEST]) == 5
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {run}: ")
    assert (
        hashlib.sha256(
            b"".join(sorted(p.read_bytes() for p in run.rglob("*") if p.is_file()))
        ).digest()
        == digest
    )
    file.write_text("dear")
    assert commands.main(["convert", str(run), str(file)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {file}: ")
    assert file.read_text() == "dear"


def damaged(kind, good, tmp_path):
    """Write a malformed file of weights, and return its path."""
    file = tmp_path / f"{kind}.safetensors"
    if kind == "truncated":
        file.write_bytes(good.read_bytes()[:-1000])
    elif kind == "of another kind":
        file.write_bytes(b"PK\x03\x04 no safetensors")
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        tensors = read_tensors(good)
        tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = np.nan
        write_safetensors(file, tensors)
    return file


@pytest.mark.parametrize("kind", ["truncated", "of another kind", "empty", "not finite"])
def test_malformed_weights_are_one_line_and_load_nothing(kind, weights, tmp_path, capsys, tiny):
    file = damaged(kind, weights, tmp_path)
    for arguments in (
        ["convert", str(file), str(tmp_path / "run"), "--model", SMALLEST],
        ["main", *tiny, f"--config.model.pretrained={file}", f"--workdir={tmp_path / 'run'}"],
    ):
        assert commands.main(arguments) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert str(file) in line
        assert not (tmp_path / "run").exists()
