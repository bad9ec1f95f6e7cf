"""The command that prepares datasets: what it refuses, each in one line."""

import pytest


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ([], ["--name is needed"]),
        (["--path=x"], ["--path needs --pack"]),
        (["--name=digits", "--max_side=100"], ["--max_side needs --pack"]),
        (["--pack=small"], ["needs one of --name", "--path"]),
        (["--pack=small", "--name=digits", "--path=x"], ["needs one of --name", "--path"]),
        (["--pack=Small", "--path=x"], ["--pack='Small'", "lower case"]),
        (["--pack=my-photos", "--path=x"], ["--pack='my-photos'", "lower case"]),
        (["--pack=", "--path=x"], ["--pack=''", "lower case"]),
        (["--pack=cifar10", "--path=x"], ["--pack='cifar10'", "another TFDS dataset"]),
        (["--pack=digits", "--path=x"], ["--pack='digits'", "another TFDS dataset"]),
        (["--pack=small", "--path=x", "--max_side=0"], ["--max_side=0", "between 1 and"]),
        (["--pack=small", "--path=x", "--max_side=many"], ["max_side", "many"]),
        (["--pack=small", "--path=x", "--quality=0"], ["--quality=0", "between 1 and 100"]),
        (["--pack=small", "--path=x", "--quality=101"], ["--quality=101", "between 1 and 100"]),
        (
            ["--pack=small", "--path=x", "--eval_fraction=1"],
            ["--eval_fraction=1", "between 0.01 and 0.99"],
        ),
        (["--pack=small", "--path=x", "--shard_size=0"], ["--shard_size=0"]),
        (["--pack=small", "--path=x", "--threads=-1"], ["--threads=-1", "at least 0"]),
        (["--pack=small", "--path=x", "--max_bad=-1"], ["--max_bad=-1", "at least 0"]),
        (["--pack=small", "--path=x", "--pck=x"], ["--pck is unknown", "did you mean 'pack'"]),
    ],
)
def test_a_wrong_flag_is_one_line(prepare_refuses, tmp_path, call, words):
    prepare_refuses([*call, f"--data_dir={tmp_path / 'data'}"], *words, code=2)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["--pack=small", "--name=digitz"], ["did you mean 'digits'"]),
        (["--pack=small", "--name=cifar10"], ["not prepared", "--name=cifar10"]),
        (["--pack=small", "--path=/nowhere"], ["/nowhere", "is not a folder"]),
        (["--pack=small", "--path=EMPTY"], ["found none"]),
        (["--pack=small", "--path=HOLLOW"], ["holds no images"]),
    ],
)
def test_no_such_images_is_one_line(prepare_refuses, tmp_path, call, words):
    (tmp_path / "empty").mkdir()
    for name in "ab":
        (tmp_path / "hollow" / name).mkdir(parents=True)
    call = [x.replace("EMPTY", str(tmp_path / "empty")) for x in call]
    call = [x.replace("HOLLOW", str(tmp_path / "hollow")) for x in call]
    prepare_refuses([*call, f"--data_dir={tmp_path / 'data'}"], *words)
    assert not (tmp_path / "data").exists()
