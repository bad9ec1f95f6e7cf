"""Files of torch.save, as scripts write them: read with a safe torch only; nothing in a file is run."""

import importlib
import importlib.util
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from conftest import refused
from malicious import Malicious
from script_checkpoints import CHECKPOINTS, VALUES, WEIGHTS, assert_weights

from flax_resnet.errors import WeightsError
from flax_resnet.weights import read_tensors

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


def torch_file(path, *, legacy):
    """Write what begins as a file of torch.save, and would run code."""
    malicious = pickle.dumps(Malicious(path.with_name("ran")))
    if legacy:
        magic = 0x1950A86A20F9469CFC6C
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (magic, 1001)) + malicious)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", malicious)
            archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_need_a_safe_torch_that_imports(tmp_path, monkeypatch, legacy):
    path = torch_file(tmp_path / "w", legacy=legacy)

    def refusal():
        with refused(path, ..., WeightsError) as caught:
            read_tensors(path)
        assert not (tmp_path / "ran").exists()
        return caught.value

    monkeypatch.setitem(sys.modules, "torch", None)
    error = refusal()
    assert "not installed" in error.problem
    assert "flax_resnet[torch]" in error.cure
    for version in ("2.9.1+cu128", "1.13", "2.0", ""):
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
        error = refusal()
        assert version in error.problem
        assert "2.10" in error.cure
    monkeypatch.delitem(sys.modules, "torch")
    (tmp_path / "torch").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for raised in ("OSError('libcudart.so.12')", "ImportError('libcudart.so.12')", "import none12"):
        code = raised if raised.startswith("import") else f"raise {raised}"
        (tmp_path / "torch" / "__init__.py").write_text(code)
        importlib.invalidate_caches()
        error = refusal()
        assert "is installed" in error.problem
        assert "12" in error.problem
        assert "flax_resnet[torch]" not in error.cure


@needs_torch
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_files_of_torch_are_unwrapped(tmp_path, suffix):
    import torch

    path = tmp_path / f"w{suffix}"
    state = {"a": torch.arange(3.0), "n": torch.zeros((), dtype=torch.int64)}
    average = {"n_averaged": torch.tensor(5), "module.a": torch.full((3,), 9.0)}
    for saved, expected in [
        (state, [0, 1, 2]),
        ({"state_dict": state, "epoch": 3}, [0, 1, 2]),
        ({"model": {f"module.{k}": v for k, v in state.items()}}, [0, 1, 2]),
        ({"model": state, "model_ema": average}, [9, 9, 9]),
        ({"state_dict": state, "state_dict_ema": {"a": state["a"].bfloat16() + 8}}, [8, 9, 10]),
        ({"a": state["a"].half().requires_grad_()}, [0, 1, 2]),
    ]:
        torch.save(saved, path)
        read = read_tensors(path)
        assert set(read) <= {"a", "n"}
        assert read["a"].dtype == np.float32
        assert read["a"].tolist() == expected


@needs_torch
def test_malformed_files_of_torch_are_one_line_and_run_nothing(tmp_path):
    import torch

    ran, path = tmp_path / "ran", tmp_path / "w.pth"

    def refusal():
        with refused(path, ..., WeightsError) as caught:
            read_tensors(path)
        assert not ran.exists()
        return caught.value

    for legacy in (False, True):
        torch.save({"a": Malicious(ran)}, path, _use_new_zipfile_serialization=not legacy)
        assert type(refusal().__cause__) is pickle.UnpicklingError
        assert "mkdir" in refusal().problem
        assert "state_dict" in refusal().cure
    path.write_bytes(pickle.dumps(Malicious(ran)))
    assert "state_dict" in refusal().cure
    pickle.loads(path.read_bytes())
    assert ran.exists()  # it would have run
    ran.rmdir()
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert not isinstance(refusal().__cause__, pickle.UnpicklingError | None)
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:2000])
    assert refusal().__cause__ is not None
    for saved, names in (
        ([1, 2], "a list"),
        ({"a": torch.zeros(1), "epoch": 3}, "epoch is a int"),
        ({"a": torch.tensor([float("nan")])}, "tensor a holds"),
    ):
        torch.save(saved, path)
        error = refusal()
        assert names in error.problem
        assert error.__cause__ is None
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, path)
    assert "tensor a " in refusal().problem


def as_torch(content):
    """Copy nested dictionaries, with tensors for arrays."""
    import torch

    if isinstance(content, dict):
        return type(content)((key, as_torch(value)) for key, value in content.items())
    return torch.from_numpy(content.copy()) if isinstance(content, np.ndarray) else content


@needs_torch
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_checkpoints_of_scripts_are_read(tmp_path, name, legacy):
    import torch

    content = as_torch(CHECKPOINTS[name])
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    read = read_tensors(tmp_path / name)
    assert_weights(read)
    assert all(type(array) is np.ndarray for array in read.values())
    assert {array.dtype.name for array in read.values()} == {"float32", "int64"}


@needs_torch
def test_plain_values_beside_the_tensors_are_read_and_torch_is_left_as_it_was(tmp_path):
    import torch

    before = torch.serialization.get_safe_globals()
    for key, value in VALUES.items():
        torch.save({"model": as_torch(WEIGHTS), key: value}, tmp_path / key)
        assert_weights(read_tensors(tmp_path / key))
    assert torch.serialization.get_safe_globals() == before
    for value in (np.array([None]), np.zeros(1, "i4,f4"), torch.nn.Linear(1, 1), np.load):
        torch.save({"model": as_torch(WEIGHTS), "value": value}, tmp_path / "w")
        with refused(tmp_path / "w", ..., WeightsError) as caught:
            read_tensors(tmp_path / "w")
        assert "state_dict" in caught.value.cure


@needs_torch
def test_arrays_of_numpy_may_stand_for_tensors(tmp_path):
    import torch

    weights = {k: v.astype(v.dtype.newbyteorder(">"), order="F") for k, v in WEIGHTS.items()}
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    assert_weights(read_tensors(tmp_path / "w.pth"))
