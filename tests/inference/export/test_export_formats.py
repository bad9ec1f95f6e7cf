"""The formats in processes of their own, which import nothing of flax_resnet, and TensorFlow's operations."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.lab.other_formats import TESTED, in_new_process, random_classifier
from flax_resnet.config import Config
from flax_resnet.data.data_section import Data
from flax_resnet.data.images import prepare_image
from flax_resnet.inference.export import FORMATS, export, replay
from flax_resnet.inference.export.check_images import check_images
from flax_resnet.inference.export.program import exact

NETWORKS = {
    "resnet18": {"widths": (8, 16), "depths": (1, 1)},
    "seresnet50": {"widths": (8, 16), "depths": (1, 1)},
    "resnetv2_50x1_bit": {"depths": (1, 1), "widths": (16, 32)},
}
# What the others have besides: groups, blur, dilation, other norms, erf.
MORE = {
    "resnext50_32x4d": {"depths": (1, 1), "widths": (64, 128)},
    "resnetblur50d": {"depths": (1, 1), "widths": (8, 16)},
    "resnetv2_50d_evos": {"depths": (1, 1), "widths": (16, 32)},
    "resnet50": {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "output_stride": 8},
    "airbench94": {},
}
SIZE = 32


def logits_of(classifier, images):
    with exact():
        apply = jax.jit(lambda x: classifier.model.apply(classifier.variables, x, train=False))
        return np.asarray(apply(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_process_gives_the_logits(name, tmp_path):
    classifier = random_classifier(name, SIZE, **NETWORKS[name])
    folder = export(classifier, tmp_path / "net", TESTED, image_size=SIZE)
    images = np.load(folder / "check" / "expected.npz")["inputs"]
    expected = logits_of(classifier, images)
    assert 1 < np.abs(expected).max() < 100
    for entry in TESTED:
        outputs = in_new_process(folder, entry)
        assert np.abs(outputs - expected).max() < 1e-4 * np.abs(expected).max(), entry


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_other_networks_give_their_logits(name, tmp_path):
    classifier = random_classifier(name, SIZE, **MORE[name])
    folder = export(classifier, tmp_path / "net", ["saved_model", "litert"], image_size=SIZE)
    arrays = np.load(folder / "check" / "expected.npz")
    expected = logits_of(classifier, arrays["inputs"])
    assert 1 < np.abs(expected).max() < 100
    np.testing.assert_allclose(arrays["outputs"], expected, atol=1e-5 * np.abs(expected).max())
    assert all(result.difference < 1e-4 for result in replay(folder))


@pytest.mark.slow
def test_float16_probabilities_and_bytes(tmp_path):
    classifier = random_classifier("resnet18", SIZE, **NETWORKS["resnet18"])
    options = {"preprocessing": "normalize", "softmax": True, "precision": "float16"}
    sizes = []
    for precision in ("float32", "float16"):
        options["precision"] = precision
        folder = export(
            classifier, tmp_path / precision, TESTED, image_size=SIZE, batch_size=2, **options
        )
        differences = {result.format: result.difference for result in replay(folder)}
        bound = 1e-4 if precision == "float32" else 1e-2
        assert max(differences.values()) < bound
        assert list(differences) == list(TESTED)
        files = {"litert": "model.tflite", "saved_model": "saved_model/variables"}
        paths = {name: folder / file for name, file in files.items()}
        sizes.append(
            {n: sum(f.stat().st_size for f in (p, *p.rglob("*"))) for n, p in paths.items()}
        )
    for name, size in sizes[1].items():
        assert size < 0.75 * sizes[0][name], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "crop", [{"eval_crop": "resize"}, {"eval_crop": "center", "eval_crop_fraction": 0.875}]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_tensorflow_resizes_as_pillow(crop, interpolation):
    import tensorflow as tf

    from flax_resnet.inference.export.tensorflow_resize import resized

    data = Data(name="imagenet2012", image_size=64, interpolation=interpolation, **crop)
    photo = np.asarray(check_images(Config(), own=False)[0][0])
    for image in (photo, photo[:60, :101], photo[100:301, 50:600], photo[:64, :64]):
        expected = prepare_image(image, data, name="photo").astype(int)
        differences = np.abs(resized(tf.constant(image[None]), data)[0].numpy() - expected)
        assert differences.max() <= 1
        assert (differences > 0).mean() < 0.02


@pytest.mark.slow
def test_images_of_any_size(tmp_path):
    classifier = random_classifier("resnet18", SIZE, **NETWORKS["resnet18"])
    options = {"image_size": SIZE, "preprocessing": "resize"}
    folder = export(classifier, tmp_path / "net", "saved_model", **options)
    assert not {"inputs"} & set(np.load(folder / "check" / "expected.npz"))
    assert replay(folder)[0].difference < 1e-3


@pytest.mark.slow
def test_litert_has_no_operations_but_its_own(tmp_path):
    """A convolution takes its bias and its ReLU into itself, as in a model that was made for LiteRT."""
    classifier = random_classifier("resnet18", SIZE, **NETWORKS["resnet18"])
    folder = export(classifier, tmp_path / "net", "litert", image_size=SIZE)
    code = (
        "import collections, tensorflow as tf; "
        "i = tf.lite.Interpreter('model.tflite', experimental_op_resolver_type="
        "tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES); "
        "print(*sorted({op['op_name'] for op in i._get_ops_details()}))"
    )
    command = [sys.executable, "-I", "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    names = done.stdout.split()
    assert "CONV_2D" in names
    assert set(names) <= {
        "ADD", "CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "MUL", "PAD", "PADV2", "SUM", "MEAN",
        "DIV", "RESHAPE",
    }, names  # fmt: skip
    assert FORMATS["litert"].runtime in ("ai_edge_litert", "tensorflow")
