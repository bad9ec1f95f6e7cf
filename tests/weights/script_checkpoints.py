"""What training scripts save, with NumPy's arrays in place of tensors: one small network, in many wrappings."""

import argparse
import collections
import datetime
import pathlib
import types

import numpy as np

DRAW = np.random.default_rng(0)
SHAPES = {
    "conv1.weight": (2, 3, 3, 3),
    "bn1.weight": (2,),
    "bn1.running_mean": (2,),
    "layer1.0.conv1.weight": (2, 2, 3, 3),
    "fc.weight": (5, 2),
}
WEIGHTS = {name: DRAW.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
WEIGHTS["bn1.num_batches_tracked"] = np.array(7)
# Read instead of the wanted weights, they would fail a test.
OTHER = {name: np.zeros_like(array) for name, array in WEIGHTS.items()}
ARGUMENTS = argparse.Namespace(lr=0.1, model="resnet10t", output=pathlib.Path("runs"))
SGD = {"state": {0: {"momentum_buffer": np.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def prefixed(prefix, weights=WEIGHTS):
    return {prefix + name: array for name, array in weights.items()}


# By the name under which the scripts save them.
CHECKPOINTS = {
    "plain.pth": WEIGHTS,
    "model_best.pth.tar": {
        "epoch": 3,
        "arch": "resnet10t",
        "state_dict": prefixed("module."),
        "best_acc1": np.array(3.0),
        "optimizer": SGD,
    },
    "tutorial.pth": {"epoch": 3, "model_state_dict": WEIGHTS, "optimizer_state_dict": SGD},
    "cifar_net.pth": {"net": WEIGHTS, "acc": 93.1, "epoch": 7},
    "timm_script.pth.tar": {
        "epoch": 3,
        "state_dict": OTHER,
        "state_dict_ema": WEIGHTS,
        "args": ARGUMENTS,
        "version": 2,
    },
    "references.pth": {"model": WEIGHTS, "optimizer": SGD, "lr_scheduler": {}, "args": ARGUMENTS},
    "lightning.ckpt": {
        "state_dict": prefixed("model."),
        "global_step": 10,
        "hyper_parameters": {"lr": 0.1},
    },
    "backbone.pth": prefixed("backbone."),
    "wrapper.pth": prefixed("timm_model."),
    "extra_tensor.pth": {"state_dict": {**prefixed("module."), "center": np.zeros(1)}},
    "numpy_scalar.pth": {"state_dict": WEIGHTS, "best_acc": np.float64(91.2)},
    "UPPER.PTH": WEIGHTS,
    "half.th": {
        name: array.astype(np.float16) if array.dtype.kind == "f" else array
        for name, array in WEIGHTS.items()
    },
    # Other scripts.
    "compiled.pt": {"model": prefixed("_orig_mod.module.")},
    "compiled_blocks.pt": {
        "model": {
            name.replace("layer1.0.", "layer1._orig_mod.0._fsdp_wrapped_module."): array
            for name, array in WEIGHTS.items()
        }
    },
    "nested.bin": {"network": prefixed("module.model.encoder.")},
    "deep.pkl": {"model": {"state_dict": prefixed("module.")}},
    "deepspeed.pt": {"module": WEIGHTS, "optimizer": SGD},
    "dino.pth": {"student": prefixed("module.backbone."), "teacher": prefixed("backbone.", OTHER)},
    "restored.pth": {"params": OTHER, "params_ema": WEIGHTS},
    "swa.pth": {"model": OTHER, "model_ema": prefixed("module.") | {"n_averaged": np.array(5)}},
    "ema.pt": {"model": OTHER, "ema": {"state_dict": WEIGHTS}, "updates": 3},
    "ema_state.pt": {"net": OTHER, "ema_state_dict": WEIGHTS},
    "no_ema.pt": {"model": WEIGHTS, "ema": None, "model_ema": {}, "ema_decay": 0.99},
    "averages_of_losses.pt": {"model": WEIGHTS, "ema": {"loss": np.array(0.3), "decay": 0.9}},
    "ema_prefix.ckpt": {"state_dict": prefixed("model.", OTHER) | prefixed("ema_model.module.")},
    "distilled.ckpt": {
        "state_dict": prefixed("model.")
        | prefixed("teacher.", OTHER)
        | {"criterion.weight": np.ones(5)}
    },
    "inside.ckpt": prefixed("module.") | {"module.criterion.weight": np.ones(5)},
    "moco.pth": prefixed("module.encoder_q.") | {"module.queue": np.ones(5)},
    "flat.pth": {**WEIGHTS, "epoch": 3},
    "hyperparameters.pth": {"model": {"name": "resnet10t"}, "weights": WEIGHTS},
}
# Names in the log: what is left out, and the moving average.
LOGGED = {
    "extra_tensor.pth": ["center"],
    "timm_script.pth.tar": ["state_dict_ema"],
    "ema_prefix.ckpt": ["ema_model", "model.*"],
    "distilled.ckpt": ["criterion.weight", "teacher.*"],
    "inside.ckpt": ["module.criterion.weight"],
    "moco.pth": ["module.queue"],
    "flat.pth": ["epoch"],
    "averages_of_losses.pt": ["ema"],
    "swa.pth": ["model_ema"],
    "plain.pth": [],
    "compiled.pt": [],
    "compiled_blocks.pt": [],
    "no_ema.pt": [],
}
SEVERAL = {
    "gan.pth": {"model": WEIGHTS, "net": OTHER},
    "averages.pth": {"ema": WEIGHTS, "model_ema": OTHER},
    "pair.ckpt": prefixed("model.") | prefixed("encoder.", OTHER),
    "both_names.pth": WEIGHTS | prefixed("_orig_mod.", OTHER),
    "beside.pth": WEIGHTS | prefixed("backbone.", OTHER),
}
NO_NETWORK = {
    "list.pth": [WEIGHTS],
    "number.pth": 3,
    "optimizer.pth": {"optimizer": SGD, "epoch": 3},
    "unknown_key.pth": {"my_network": WEIGHTS},
    "count.pth": {"a": np.zeros(1), "epoch": 3},
}
# Beside the tensors.
VALUES = {
    "args": ARGUMENTS,
    "when": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(1)],
    "day": [datetime.date(2026, 1, 2), datetime.time(3)],
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:/d")],
    "meters": collections.defaultdict(list, {"loss": [0.1]}),
    "window": collections.deque([1.0, 2.0], maxlen=3),
    "counts": collections.Counter("aab"),
    "ordered": collections.OrderedDict(a=1),
    "plain": [{1, 2}, frozenset({3}), 1j, b"bytes", bytearray(b"a"), None, (True, 2**70)],
    "space": types.SimpleNamespace(a=1),
    "scalars": [np.float64(1.5), np.float32(2), np.int64(3), np.bool_(True), np.str_("a")],
    "arrays": [np.arange(3), np.ones((2, 2), ">f4"), np.array(["a", "bc"]), np.zeros((0, 3))],
    "random": np.random.RandomState(0).get_state(),
    "time": np.datetime64("2026-01-02"),
}


def assert_weights(read):
    assert read.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        close = np.testing.assert_allclose if read[name].dtype.kind == "f" else assert_equal
        close(read[name], array, rtol=1e-3)


def assert_equal(read, expected, **_):
    np.testing.assert_array_equal(read, expected)
