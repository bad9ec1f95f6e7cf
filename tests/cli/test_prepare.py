"""Errors of the command `prepare`, each in one line."""

import pytest


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ([], ["--name: "]),
        (["--path=x"], ["--path=x: ", "--pack"]),
        (["--name=digits", "--max_side=100"], ["--max_side=100: ", "--pack"]),
        (["--pack=small"], ["--pack=small: ", "--name", "--path"]),
        (["--pack=small", "--name=digits", "--path=x"], ["--pack=small: ", "--name", "--path"]),
        (["--pack=Small", "--path=x"], ["--pack=Small: ", "lower case"]),
        (["--pack=my-photos", "--path=x"], ["--pack=my-photos: ", "lower case"]),
        (["--pack=", "--path=x"], ["--pack=: ", "lower case"]),
        (["--pack=cifar10", "--path=x"], ["--pack=cifar10: ", "TFDS dataset"]),
        (["--pack=digits", "--path=x"], ["--pack=digits: ", "TFDS dataset"]),
        (["--pack=small", "--path=x", "--max_side=0"], ["--max_side=0: ", "65535"]),
        (["--pack=small", "--path=x", "--max_side=many"], ["--max_side=many: "]),
        (["--pack=small", "--path=x", "--quality=0"], ["--quality=0: ", "1 and 100"]),
        (["--pack=small", "--path=x", "--quality=101"], ["--quality=101: ", "1 and 100"]),
        (
            ["--pack=small", "--path=x", "--eval_fraction=1"],
            ["--eval_fraction=1: ", "0.01 and 0.99"],
        ),
        (["--pack=small", "--path=x", "--shard_size=0"], ["--shard_size=0: "]),
        (["--pack=small", "--path=x", "--threads=-1"], ["--threads=-1: ", "0"]),
        (["--pack=small", "--path=x", "--max_bad=-1"], ["--max_bad=-1: ", "0"]),
        (["--pack=small", "--path=x", "--pck=x"], ["--pck: ", "'--pack'"]),
    ],
)
def test_an_invalid_flag_is_one_line(prepare_refuses, tmp_path, call, names):
    prepare_refuses([*call, f"--data_dir={tmp_path / 'data'}"], *names, code=2)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (["--pack=small", "--name=digitz"], ["'digitz'", "'digits'"]),
        (["--pack=small", "--name=cifar10"], ["'cifar10'", "prepare --name=cifar10"]),
        (["--pack=small", "--path=/nowhere"], ["'/nowhere'"]),
        (["--pack=small", "--path=EMPTY"], ["EMPTY: "]),
        (["--pack=small", "--path=HOLLOW"], ["HOLLOW/a: "]),
    ],
)
def test_missing_images_are_one_line(prepare_refuses, tmp_path, call, names):
    (tmp_path / "empty").mkdir()
    for name in "ab":
        (tmp_path / "hollow" / name).mkdir(parents=True)

    def filled(texts):
        for name in ("empty", "hollow"):
            texts = [x.replace(name.upper(), str(tmp_path / name)) for x in texts]
        return texts

    prepare_refuses([*filled(call), f"--data_dir={tmp_path / 'data'}"], *filled(names))
    assert not (tmp_path / "data").exists()
