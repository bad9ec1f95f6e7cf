"""The tensors of a network among what a training script saved; no torch is needed to find them."""

import io
import logging
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from conftest import refused
from flax.serialization import to_bytes
from layout_trees import BASIC, TREES, tree
from malicious import Malicious
from script_checkpoints import (
    CHECKPOINTS,
    LOGGED,
    NO_NETWORK,
    OTHER,
    SEVERAL,
    VALUES,
    WEIGHTS,
    assert_weights,
    prefixed,
)

from flax_resnet.errors import WeightsError
from flax_resnet.weights import read_tensors, to_torch, write_safetensors
from flax_resnet.weights.checkpoint_contents import harmless_globals, network_tensors


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_network_is_found_in_the_checkpoint_of_a_script(name, caplog):
    caplog.set_level(logging.INFO, "flax_resnet")
    assert_weights(network_tensors(pathlib.Path(name), CHECKPOINTS[name]))
    logged = LOGGED.get(name, [])
    assert all(text in caplog.text and name in caplog.text for text in logged)
    assert bool(caplog.text) == bool(logged) or name not in LOGGED


@pytest.mark.parametrize("name", [*SEVERAL, *NO_NETWORK])
def test_several_networks_or_none_are_refused(name):
    with refused(name, ..., WeightsError):
        network_tensors(pathlib.Path(name), {**SEVERAL, **NO_NETWORK}[name])


def test_a_tensor_that_may_belong_to_the_network_is_never_left_out():
    """Without a prefix, only well-known neighbours are left out; the network refuses the rest."""
    beside = {"pool.weight": np.ones(3), "layer5.0.conv1.weight": np.ones(3)}
    for prefix in ("", "module."):
        content = prefixed(prefix) | prefixed(prefix, beside)
        assert network_tensors(pathlib.Path("w.pth"), content).keys() >= beside.keys()


@pytest.mark.parametrize("layout", TREES)
def test_prefixes_are_removed_in_every_layout(tmp_path, layout):
    kind, shapes = TREES[layout]
    tensors = to_torch(tree(shapes), kind)
    content = prefixed("model.module.", tensors) | {"criterion.weight": np.ones(2)}
    assert network_tensors(pathlib.Path("w.pth"), content).keys() == tensors.keys()
    write_safetensors(tmp_path / "w.safetensors", content)
    np.savez(tmp_path / "w.npz", **content)
    for file in tmp_path.iterdir():
        read = read_tensors(file)
        assert read.keys() == tensors.keys()
        assert all(np.array_equal(read[name], tensors[name]) for name in tensors)


class Restricted(pickle.Unpickler):
    """Reads a pickle with the names of `harmless_globals` alone, and torch's own."""

    def find_class(self, module, name):
        allowed = {full: call for call, full in harmless_globals()}
        own = ("collections.OrderedDict", "_codecs.encode")
        own += tuple(f"builtins.{kind}" for kind in ("set", "complex", "bytearray"))
        module = module.replace("__builtin__", "builtins")
        if (full := f"{module}.{name}") in own:
            return super().find_class(module, name)
        if full not in allowed:
            raise pickle.UnpicklingError(full)
        return allowed[full]


@pytest.mark.parametrize("key", VALUES)
def test_plain_values_are_read(key):
    read = Restricted(io.BytesIO(pickle.dumps(VALUES[key], protocol=2))).load()
    if key == "arrays":
        read = [array.array for array in read]
        assert [a.dtype for a in read] == [a.dtype for a in VALUES[key]]
        assert all(np.array_equal(a, b) for a, b in zip(read, VALUES[key], strict=True))
    elif key == "window":
        assert read == [1.0, 2.0]
    elif key == "paths":
        assert [*map(str, read)] == [*map(str, VALUES[key])]
    elif key == "args":
        assert (read.lr, str(read.output)) == (0.1, "runs")
    elif key != "random":
        assert read == VALUES[key]


def test_other_values_are_not_read(tmp_path):
    values = (
        *(Malicious(tmp_path / "ran"), np.array([Malicious(tmp_path / "ran")]), pathlib.Path.home),
        *(np.zeros(1, "i4,f4"), np.array([None]), np.load, zipfile.ZipFile),
    )
    for value in values:
        with pytest.raises(pickle.UnpicklingError):
            Restricted(io.BytesIO(pickle.dumps(value, protocol=2))).load()
    assert not (tmp_path / "ran").exists()


def test_files_of_flax_are_read(tmp_path):
    variables, other = tree(BASIC), tree(BASIC, np.float16)
    expected = to_torch(variables)
    for content in (
        variables,
        {"step": 3, "opt_state": {"0": other["params"]}, **variables},
        {"step": 3, **other, "ema": variables},
        {"params": other["params"], "ema_params": variables["params"]}
        | {"batch_stats": variables["batch_stats"]},
        {"params": variables},
        {"state": {"step": 3, **variables}},
    ):
        (tmp_path / "w").write_bytes(to_bytes(content))
        read = read_tensors(tmp_path / "w")
        assert read.keys() == expected.keys()
        assert all(np.array_equal(read[name], expected[name]) for name in expected)
    (tmp_path / "w").write_bytes(to_bytes(variables["params"]))
    assert read_tensors(tmp_path / "w").keys() == to_torch({"params": variables["params"]}).keys()
    (tmp_path / "w").write_bytes(to_bytes(tree(BASIC, ml_dtypes.bfloat16)))
    read = read_tensors(tmp_path / "w")["conv1.weight"]
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, expected["conv1.weight"], rtol=1e-2)


@pytest.mark.parametrize(
    "content",
    [
        {"params": {"Conv_0": {"kernel": np.ones((3, 3, 3, 4))}}},
        {"params": {"conv1": {"kernel": np.ones((3, 3, 3, 4))}, "step": 3}},
        {"params": {}},
        {"opt_state": {"0": np.ones(3)}},
        {"params": {"conv1": {"kernel": np.ones(3)}}},
        {"params": {"layer1_rest": {"conv1": {"kernel": np.float32(3)}}}},
        WEIGHTS,
        {"a": OTHER, "b": 3},
    ],
)
def test_a_file_of_flax_with_another_tree_is_refused(tmp_path, content):
    (tmp_path / "w.msgpack").write_bytes(to_bytes(content))
    with refused(tmp_path / "w.msgpack", ..., WeightsError) as caught:
        read_tensors(tmp_path / "w.msgpack")
    assert "flax_resnet" in caught.value.allowed
