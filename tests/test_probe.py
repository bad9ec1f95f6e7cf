"""Features of a whole split, the two classifiers on top of them, and the command that reports both."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import flax_resnet
from flax_resnet import create_model, main
from flax_resnet.cli import commands
from flax_resnet.config import freeze
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import ConfigError, DataError, WeightsError
from flax_resnet.inference import feature_classifiers, features
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.probes import measure
from flax_resnet.ops import dispatch
from flax_resnet.weights import to_torch, write_safetensors

SHAPE = {"widths": (4, 8, 16, 32), "depths": (1, 1, 1, 1), "stem": "cifar"}


def initial(model):
    """Variables as before training; drawn by NumPy, since to compile the initialisation takes long."""
    draw = np.random.default_rng(0)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def leaf(path, shape):
        if path[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(shape.shape[:-1]))  # He et al. 2015, equation 10
            return (draw.standard_normal(shape.shape) * scale).astype(np.float32)
        return np.full(shape.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def untrained():
    """A small network before training."""
    model = create_model("resnet18", num_classes=3, **SHAPE)
    config = freeze({"model": {"name": "resnet18", **SHAPE}})
    return Classifier(model, initial(model), tuple("abc"), config, step=0)


def random_source(count, classes=2, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    labels = draw.permutation(np.arange(count) % classes)
    return ArraySource(images, labels, [f"class {c}" for c in range(classes)]), images, labels


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """A tiny network trained on the digits."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert main.main([*tiny, f"--workdir={workdir}", "--config.train.epochs=6"]) == 0
    return workdir


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of timm's smallest network, for three classes."""
    model = create_model("test_resnet", num_classes=3)
    file = tmp_path_factory.mktemp("weights") / "three.safetensors"
    write_safetensors(file, to_torch(initial(model)))
    return file


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (7, 1.0), (101, 5e-4)])
def test_the_vote_is_that_of_scikit_learn_and_of_its_formula(monkeypatch, k, temperature):
    """Over several blocks of either kind, the last ones smaller."""
    monkeypatch.setattr(feature_classifiers, "QUERIES", 16)
    monkeypatch.setattr(feature_classifiers, "KNOWN", 40)
    draw = np.random.default_rng(0)
    known, vectors = (
        draw.standard_normal((n, 12)).astype(np.float32) * draw.uniform(0.1, 10, (n, 1))
        for n in (101, 53)
    )
    known, vectors = known.astype(np.float32), vectors.astype(np.float32)
    labels = draw.integers(0, 4, 101)
    found = feature_classifiers.knn_predict(vectors, known, labels, k=k, temperature=temperature)

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, known)]
    similarity = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    expected = []
    for row in similarity:
        nearest = np.argsort(-row)[:k]
        shares = np.exp((row[nearest] - row.max()) / temperature)
        expected.append(max(range(4), key=lambda c: shares[labels[nearest] == c].sum()))
    np.testing.assert_array_equal(found, expected)

    def weight(distances):  # 1 - similarity
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)

    judge = KNeighborsClassifier(k, weights=weight, metric="cosine", algorithm="brute")
    np.testing.assert_array_equal(found, judge.fit(known, labels).predict(vectors))


def test_of_equally_similar_ones_the_first_comes_first(monkeypatch):
    monkeypatch.setattr(feature_classifiers, "KNOWN", 3)
    known = np.eye(4, dtype=np.float32)[[1, 0, 0, 0, 1, 0, 2]]
    query = np.array([[5, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    similarities, places = feature_classifiers.nearest_neighbours(query, known, 5)
    np.testing.assert_array_equal(places, [[1, 2, 3, 5, 0], [0, 1, 2, 3, 4]])
    np.testing.assert_allclose(similarities, [[1, 1, 1, 1, 0], [0] * 5], atol=1e-7)


def test_similarities_are_held_block_by_block(monkeypatch):
    monkeypatch.setattr(feature_classifiers, "QUERIES", 8)
    monkeypatch.setattr(feature_classifiers, "KNOWN", 16)
    merged, shapes = feature_classifiers._merged, set()

    def watched(*arguments):
        shapes.add((len(arguments[2]), len(arguments[3])))
        return merged(*arguments)

    monkeypatch.setattr(feature_classifiers, "_merged", watched)
    feature_classifiers.nearest_neighbours(
        np.ones((20, 3), np.float32), np.ones((40, 3), np.float32), 4
    )
    assert shapes == {(8, 16), (4, 16), (8, 8), (4, 8)}


@pytest.mark.parametrize(("noise", "dimensions", "best"), [(1.0, 60, 1e-2), (0.05, 2, 1e-1)])
def test_regularisation_is_chosen_on_the_held_out_fifth(noise, dimensions, best):
    """Much of it where most dimensions are noise; of equally good ones the smallest C."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 150).astype(np.int32)
    known = draw.standard_normal((150, dimensions)).astype(np.float32) * noise
    known[:, 0] += labels
    vectors = known[::3] + np.float32(0.01)

    def regression(strength):
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))

    held = feature_classifiers.held_out(labels)
    scores = [
        regression(c).fit(known[~held], labels[~held]).score(known[held], labels[held])
        for c in feature_classifiers.GRID
    ]
    assert feature_classifiers.GRID[int(np.argmax(scores))] == best
    predicted, c = feature_classifiers.linear_predict(vectors, known, labels)
    assert c == best
    np.testing.assert_array_equal(predicted, regression(best).fit(known, labels).predict(vectors))


def test_a_fifth_is_held_out_but_never_the_whole_of_a_class():
    labels = np.random.default_rng(0).integers(0, 4, 1000)
    held = feature_classifiers.held_out(labels)
    assert held.sum() == 200
    for c in range(4):
        assert abs(held[labels == c].mean() - 0.2) < 0.01
    assert (
        len(set(np.flatnonzero(feature_classifiers.held_out(np.zeros(100, int))) % 5)) > 1
    )  # by chance
    np.testing.assert_array_equal(held, feature_classifiers.held_out(labels))
    few = np.array([0] * 4 + [1] + [2] * 5)  # the fifth in order is the only one of its class
    assert set(few[~feature_classifiers.held_out(few)]) == {0, 1, 2}
    # One of each class: none can be spared, and still there is a classifier.
    predicted, _ = feature_classifiers.linear_predict(
        *[np.eye(3, dtype=np.float32)] * 2, np.arange(3)
    )
    np.testing.assert_array_equal(predicted, [0, 1, 2])


def test_features_are_compiled_with_the_options_of_the_platform(untrained, monkeypatch):
    monkeypatch.setattr(dispatch, "compiler_options", lambda: {"no_such_option": "1"})
    source, _, _ = random_source(4, classes=3)
    given = untrained.model, untrained.variables, untrained.config, source
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        features.compute_features(*given, batch_size=4)


def test_features_are_those_of_the_classifier(untrained):
    classifier = untrained
    source, images, labels = random_source(21)  # 8 devices, batches of 16: 11 rows of padding
    found = features.compute_features(
        classifier.model, classifier.variables, classifier.config, source, batch_size=12
    )
    expected = classifier.features(images)["pre_logits"]
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found.labels, labels)
    some = features.compute_features(
        classifier.model, classifier.variables, classifier.config, source, batch_size=8, limit=10
    )
    assert some.vectors.shape == (10, 32)
    matches = np.abs(some.vectors[:, None] - expected[None]).max(axis=2).argmin(axis=1)
    assert (np.diff(matches) > 0).all()  # ten different ones, in order, and not the first ten
    assert list(matches) != list(range(10))
    np.testing.assert_array_equal(some.labels, labels[matches])


def test_features_without_a_label_or_a_number_are_refused(monkeypatch, untrained):
    classifier = untrained
    source, *_ = random_source(8)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, classifier.variables)
    with pytest.raises(WeightsError, match="not finite"):
        features.compute_features(classifier.model, broken, classifier.config, source, batch_size=8)
    monkeypatch.setattr(source, "_labels", np.array([0, -1] * 4, np.int32))
    with pytest.raises(DataError, match="4 of 8 images have no label"):
        features.compute_features(
            classifier.model, classifier.variables, classifier.config, source, batch_size=8
        )


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch, capsys, untrained):
    classifier, (source, *_) = untrained, random_source(8)
    arguments = (classifier.model, classifier.variables, classifier.config, source)
    features.compute_features(*arguments, batch_size=8)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    features.compute_features(*arguments, batch_size=8, description="features of mine")
    assert "features of mine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 13}, "k=13: must be between 1 and the 12 training images"),
        ({"k": 9, "limit": 8}, "the 8 training images"),
        ({"k": 0}, "k=0"),
        ({"k": 1, "temperature": 0.0}, "temperature=0.0"),
        ({"k": 1, "temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_network_runs(
    monkeypatch, untrained, options, words
):
    monkeypatch.setattr(features, "compute_features", lambda *a, **k: 1 / 0)
    train, test = random_source(12)[0], random_source(4)[0]
    with pytest.raises(ConfigError, match=words):
        measure(untrained, train, test, **options)


def test_one_class_only_and_other_classes_are_refused(untrained):
    classifier, test = untrained, random_source(4)[0]
    images = random_source(12)[1]
    with pytest.raises(DataError, match="the only class is 'x'"):
        measure(classifier, *[ArraySource(images, np.zeros(12, int), ["x"])] * 2, k=1)
    with pytest.raises(DataError, match="the one judged on differ"):
        measure(classifier, random_source(12, classes=3)[0], test, k=1)
    train = ArraySource(images, np.zeros(12, int), test.class_names)
    with pytest.raises(DataError, match="all 12 training images are of one class"):
        measure(classifier, train, test, k=1)


def test_a_run_is_probed_and_beats_the_network_before_training(run, cache_dir, capsys):
    options = [f"--workdir={run}", f"--compilation_cache={cache_dir}"]
    capsys.readouterr()
    assert commands.main(["probe", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (line,) = captured.out.splitlines()
    (record,) = map(json.loads, (run / "probes.jsonl").read_text().splitlines())
    assert record["knn_top1"] > 0.85  # 0.914, as the linear one
    assert record["linear_top1"] > 0.85
    assert {k: record[k] for k in ("step", "dataset", "train_split", "split", "k", "temperature")} == {
        "step": 30, "dataset": "digits", "train_split": "train", "split": "test", "k": 20, "temperature": 0.07,
    }  # fmt: skip
    assert (record["train_count"], record["count"]) == (1437, 360)
    assert line == (
        f"top-1 of 20 neighbours {record['knn_top1']:.2%}, of a linear classifier {record['linear_top1']:.2%} "
        f"(C={record['linear_c']:g}) on test (360 images; learnt from 1437), checkpoint 30"
    )

    trained = flax_resnet.load(run)
    from flax_resnet.data.sources.open import open_source

    sources = [open_source(trained.config.data, train=side) for side in (True, False)]
    fresh = dataclasses.replace(trained, variables=initial(trained.model))
    found = measure(fresh, *sources, limit=400, batch_size=360)
    assert found["train_count"] == 400
    assert (
        found["knn_top1"] < record["knn_top1"] - 0.1
    )  # 0.55 to 0.60 with all images, of three draws
    assert found["linear_top1"] < record["linear_top1"] - 0.1  # 0.54 to 0.66

    assert commands.main(["probe", *options, "--split=train[1200:]", "--train_split=train[:200]",
                     "--k=3", "--limit=150", "--checkpoint=25", "--batch_size=64"]) == 0  # fmt: skip
    assert "on train[1200:] (237 images; learnt from 150), checkpoint 25" in capsys.readouterr().out
    assert len((run / "probes.jsonl").read_text().splitlines()) == 2


def test_a_dataset_of_other_classes_in_a_folder_without_splits(
    run, weights, photographs, cache_dir, capsys
):
    """A fixed fifth is monitored, by the features of the others; the head's classes do not matter."""
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.sources.open import open_source

    data = Data(source="folder", path=str(photographs))
    sources = [open_source(data, train=side) for side in (True, False)]
    files = [{source.describe(i) for i in range(len(source))} for source in sources]
    assert not files[0] & files[1]
    counts = f"on test ({len(files[1])} images; learnt from {len(files[0])})"
    assert len(files[0]) + len(files[1]) == 12
    common = ["probe", f"--dataset={photographs}", f"--compilation_cache={cache_dir}", "--k=3"]
    network = ["--model=test_resnet", f"--weights={weights}", "--image_size=32"]
    assert commands.main([*common, *network]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{counts}, test_resnet")
    copy = photographs.parent / "copy"
    shutil.copytree(run, copy)
    (copy / "probes.jsonl").unlink(missing_ok=True)
    assert commands.main([*common, f"--workdir={copy}"]) == 0
    assert counts in capsys.readouterr().out
    assert json.loads((copy / "probes.jsonl").read_text())["dataset"] == str(photographs)
    (copy / "probes.jsonl").unlink()
    (copy / "probes.jsonl").mkdir()
    assert commands.main([*common, f"--workdir={copy}"]) == 5
    assert "cannot be written" in capsys.readouterr().err


# By exit code: a mistake in the command, data that do not fit, no run.
REFUSED = {
    2: [
        ([], "--workdir or --model is needed"),
        (["--model=x", "--workdir=y"], "one only: the run, or the network, to probe"),
        (["--model=test_resnet", "--weights=WEIGHTS"], "--dataset is needed with --model"),
        (["--model=test_resnet", "--checkpoint=best", "--dataset=x"], "goes with --workdir"),
        (["--workdir=RUN", "--weights=x"], "--weights=x: goes with --model"),
        (["--workdir=RUN", "--dataset=TMP/plain", "--split=val"], "--split=val: "),
        (["--workdir=RUN", "--dataset=TMP/plain", "--train_split=x"], "has no splits of its own"),
        (["--workdir=RUN", "--k=many"], "--k=many"),
        (["--workdir=RUN", "--k=0"], "--k=0"),
        (["--workdir=RUN", "--k=1438"], "k=1438: must be between 1 and the 1437 training images"),
        (["--workdir=RUN", "--temperature=warm"], "--temperature=warm"),
        (["--workdir=RUN", "--temperature=-1"], "temperature=-1.0"),
        (["--workdir=RUN", "--limit=-1"], "--limit=-1"),
        (["--workdir=RUN", "--image_size=big"], "--image_size=big"),
    ],
    4: [
        (["--workdir=RUN", "--split=train"], "--split=train: have images in common (1,437)"),
        (
            ["--workdir=RUN", "--train_split=test+train[:80%]", "--split=train[1100:]"],
            "--train_split=test+train[:80%], --split=train[1100:]: have images in common (50)",
        ),
        (["--workdir=RUN", "--dataset=TMP/twice.csv"], "have images in common (1)"),
        (["--workdir=RUN", "--train_split=valid"], "splits: train, test"),
        (["--workdir=RUN", "--dataset=./nowhere"], "neither a folder nor a file"),
        (["--workdir=RUN", "--dataset=TMP/untrained"], "has no train/ (found: test, val)"),
        (["--workdir=RUN", "--dataset=TMP/one"], "found only 'a'"),
        (["--workdir=RUN", "--dataset=TMP/test.csv"], "has no rows of split 'train'"),
    ],
    5: [
        (["--workdir=TMP"], "no run folder"),
    ],
}


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [(code, *row) for code, rows in REFUSED.items() for row in rows],
)
def test_what_the_command_refuses(code, arguments, words, run, weights, tmp_path, capsys):
    for folder in ("untrained/test/a", "untrained/val/a", "one/a", "plain/a", "plain/b"):
        (tmp_path / folder).mkdir(parents=True)
    twice = "path,label,split\na.png,0,train\nb.png,1,train\nc.png,0,test\nb.png,1,test\n"
    (tmp_path / "twice.csv").write_text(twice)
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "test.csv").write_text("path,label,split\na.png,0,test\nb.png,1,test\n")
    places = {"WEIGHTS": weights, "TMP": tmp_path, "RUN": run}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    capsys.readouterr()
    assert commands.main(["probe", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_the_default_split_is_one_that_the_dataset_has(run, data_dir, weights, capsys):
    arguments = ["probe", "--model=test_resnet", f"--weights={weights}", "--dataset=digits"]
    arguments += [f"--data_dir={data_dir}", "--image_size=32", "--limit=60", "--batch_size=120"]
    assert commands.main(arguments) == 0
    assert "on test (360 images; learnt from 60)" in capsys.readouterr().out
