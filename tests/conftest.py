"""Settings and fixtures for all tests: a CPU with eight virtual devices; rank promotion and warnings are errors."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
# Compile without optimization, which takes a fifth of the time, because tests run a program only a few times. Set
# TEST_COMPILER="" to compile as users do. jaxlib 0.11 removed the flag for emitters, and aborts on an unknown flag.
os.environ.setdefault(
    "TEST_COMPILER",
    "--xla_backend_optimization_level=0"
    if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 11)
    else "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ['TEST_COMPILER']}"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no banner

import contextlib
import dataclasses
import json
import pathlib
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType
from PIL import Image

jax.config.update("jax_numpy_rank_promotion", "raise")

# A job that a shell starts in the background ignores Ctrl-C, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).parent.parent
# `compiler_options` for programs that must give the same bits as for users, or that run long.
AS_USERS = {"xla_backend_optimization_level": 3}
if "emitters" in os.environ["TEST_COMPILER"]:
    AS_USERS["xla_cpu_use_fusion_emitters"] = True

# Set here, not in setup.cfg, so that these filters apply only to our tests. Each exception has a date.
WARNINGS = [
    "error",
    # 2026-11: libraries call deprecated functions of other libraries; our own code must not
    "ignore::DeprecationWarning:(?!flax_resnet)",
    "ignore::PendingDeprecationWarning:(?!flax_resnet)",
    # 2026-11: Orbax and etils leave event loops and files to the garbage collector
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
]


# Prefixes of the tests with the mark `quick`: some of every folder, and one run from the command to a prediction.
QUICK = (
    *(
        "test_house.py",
        "configs/",
        "config/",
        "augment/",
        "optim/test_losses",
        "optim/test_schedules",
    ),
    *("optim/test_optimizers", "data/test_sources", "data/test_sampling", "data/test_decode"),
    *("data/test_tfds", "data/test_array_source", "data/packing/test_jpeg", "weights/test_layout"),
    *("weights/test_tensor_files", "weights/test_catalog", "models/test_models"),
    *("ops/test_batch_norm", "ops/test_compiler_options", "training/test_checkpoint"),
    *("training/test_precision", "inference/test_feature_classifiers", "cli/test_prepare"),
    *(
        "cli/test_convert",
        "benchmarks/test_gpu_re",
        "benchmarks/test_gpu_pro",
        "benchmarks/test_accuracy.",
    ),
    "training/test_runs.py::test_evaluate_and_predict_agree",
    "trackers/test_trackers.py::test_a_wrong_setting",
    # What depends on the version of Pillow.
    "data/test_images.py::test_sixteen_bits",
    "data/test_images.py::test_every_way_in",
)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items):
    for item in items:
        for rule in reversed(WARNINGS):
            item.add_marker(pytest.mark.filterwarnings(rule), append=False)
        is_heavy = any(map(item.get_closest_marker, ("slow", "faults", "parity")))
        if item.nodeid.removeprefix("tests/").startswith(QUICK) and not is_heavy:
            item.add_marker("quick")


@contextlib.contextmanager
def refused(key, value=..., kind=None):
    """Expect a UserError with this key and a message of one line; check `value` unless it is `...`."""
    from flax_resnet.errors import UserError

    with pytest.raises(kind or UserError) as caught:
        yield caught
    error = caught.value
    assert error.key == str(key), error
    assert value is ... or error.value == value, error
    assert "\n" not in str(error)


def records_of(workdir, split):
    """Return the records of a split in the metrics.jsonl of a run."""
    from flax_resnet.training.runs.folder import RunFolder

    return [r for r in RunFolder.at(workdir).read_records() if r["split"] == split]


def saved(workdir, step):
    """Return the metadata of a checkpoint."""
    return json.loads((workdir / "checkpoints" / str(step) / "run" / "metadata").read_text())


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS data folder that holds the prepared digits."""
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.open import open_source

    folder = tmp_path_factory.mktemp("tfds")
    open_source(Data(data_dir=str(folder)), train=True)
    return str(folder)


def drawn(shapes, seed=0):
    """Fill a tree of shapes with random values. It saves seconds: compiling the initialization is slow."""
    draw = np.random.default_rng(seed)

    def fill(leaf):
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        if len(leaf.shape) < 2:  # may be a variance, which must be above 0
            return draw.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return (draw.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5).astype(leaf.dtype)

    return jax.tree.map(fill, shapes)


def farthest_leaf(got, wanted):
    """Return the largest relative distance |a - b| / |b| of the leaves of two trees, with the Euclidean norm."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    norms = ((np.linalg.norm(np.subtract(a, b)), np.linalg.norm(b)) for a, b in pairs)
    return max(difference / (norm + 1e-9) for difference, norm in norms)


def saved_run(folder, sections, class_names, *, step=0, **more):
    """Write a run folder with a checkpoint at `step` and random weights, without training or compiling."""
    from flax_resnet.config import freeze
    from flax_resnet.config.plan import Plan, planned_optimizer
    from flax_resnet.training import sharding
    from flax_resnet.training.runs.checkpoint import Checkpoints
    from flax_resnet.training.runs.folder import RunFolder
    from flax_resnet.training.runs.metadata import RunMetadata
    from flax_resnet.training.state import abstract_state, build_model

    config, classes = freeze(sections), len(class_names)
    model = build_model(config, classes)
    optimizer = planned_optimizer(config, Plan.nominal(classes), model)
    mesh = sharding.make_mesh()
    state = drawn(abstract_state(config, model, optimizer, mesh), seed=step)
    RunFolder.at(folder).claim(config, resume="auto")
    checkpoints = Checkpoints(folder)
    metadata = RunMetadata(dataclasses.asdict(config), tuple(class_names), classes, **more)
    placed = jax.device_put(state, sharding.replicated(mesh))
    checkpoints.save(step, placed, metadata)
    checkpoints.close()
    return folder


def one_device():
    """Return a mesh of one device, for which JAX compiles as on a machine with one device."""
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """A compilation cache shared by the commands that the tests run."""
    return str(tmp_path_factory.mktemp("xla"))


@pytest.fixture(autouse=True)
def same_compilation_cache():
    """Benchmarks that run in the process of the tests turn JAX's compilation cache off."""
    enabled = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)


@pytest.fixture
def own_cache(tmp_path):
    """A compilation cache for one test. A process uses its first cache until `reset_cache` is called."""
    compilation_cache.reset_cache()
    yield tmp_path / "xla"
    compilation_cache.reset_cache()


@pytest.fixture
def photographs(tmp_path):
    """A folder of photographs: two classes, six crops each of scikit-learn's sample images, as JPEG."""
    from sklearn.datasets import load_sample_images

    root = tmp_path / "photographs"
    draw = np.random.default_rng(0)
    for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(6):
            height, width = draw.integers(90, 200, 2)
            top, left = draw.integers(0, 427 - height), draw.integers(0, 640 - width)
            crop = Image.fromarray(image[top : top + height, left : left + width])
            crop.save(root / name / f"{number}.jpg", quality=92)
    return root


@pytest.fixture
def pictures(photographs):
    """Three of the photographs."""
    return sorted(photographs.rglob("*.jpg"))[:3]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file with the weights of a network with two classes."""
    from weights_by_name import SMALLEST, tensors_for

    from flax_resnet.weights import write_safetensors

    file = tmp_path_factory.mktemp("weights") / "two.safetensors"
    write_safetensors(file, tensors_for(SMALLEST, num_classes=2))
    return file


@pytest.fixture(scope="module")
def untrained():
    """A small network before training."""
    from untrained import initial

    from flax_resnet import create_model
    from flax_resnet.config import freeze
    from flax_resnet.inference.classifier import Classifier

    shape = {"widths": (4, 8, 16, 32), "depths": (1, 1, 1, 1), "stem": "cifar"}
    model = create_model("resnet18", num_classes=3, **shape)
    config = freeze({"model": {"name": "resnet18", **shape}})
    return Classifier(model, initial(model), tuple("abc"), config, step=0)


@pytest.fixture
def prepare_refuses(capsys):
    """A function that runs the command `prepare`, and expects an exit code and one error line with these words."""
    from flax_resnet.cli import prepare

    def run(call, *words, code=4):
        capsys.readouterr()
        assert prepare.main(call) == code
        *before, line = capsys.readouterr().err.splitlines()
        assert all(x.startswith(("warning: cannot decode", "going on: ")) for x in before)
        assert line.startswith("error: ")
        for word in words:
            assert word in line

    return run


@pytest.fixture(scope="session")
def tiny(data_dir, cache_dir):
    """Arguments that train a very small network on the digits in a few seconds."""
    return [
        "--config=resnet18",
        "--noreport",  # it takes longer than the training
        "--config.model.widths=(4,8,16,32)",
        "--config.model.depths=(1,1,1,1)",
        "--config.train.batch_size=240",
        "--config.train.eval_batch_size=360",
        "--config.train.epochs=2",
        "--config.schedule.warmup=0",
        f"--data_dir={data_dir}",
        f"--compilation_cache={cache_dir}",
    ]
