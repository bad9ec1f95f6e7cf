"""Find the tensors of a network among what a training script saved; list what such a file may hold.

The functions here see nested dictionaries of tensors and of anything else. They need no torch.
"""

import argparse
import collections
import datetime
import logging
import pathlib
import pickle
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from flax_resnet.errors import WeightsError
from flax_resnet.weights.layout_conversion import to_torch
from flax_resnet.weights.layouts import LAYOUTS, STEMS

log = logging.getLogger("flax_resnet")

# Keys under which training scripts store the tensors of a network.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net_state_dict", "net", "network", "module"),
    *("params", "weights", "student"),
)
# Keys of the moving average: `ema` beside any of them, as in model_ema and ema_state_dict.
AVERAGES = (
    "ema",
    *(f"{key}_ema" for key in WRAPPERS),
    *(f"ema_{key}" for key in WRAPPERS),
    *("model_ema_state_dict", "net_ema_state_dict"),
)
DEPTH = 5  # levels of dictionaries in which to look for tensors
# Modules of scripts and of DataParallel around a network: the first parts of its tensors' names.
AROUND = (
    *("module", "model", "net", "network", "backbone", "encoder", "timm_model"),
    *("resnet", "student", "encoder_q", "base_encoder"),
)
AROUND_AVERAGE = ("ema", "ema_model", "model_ema", "ema_net", "net_ema")
# Parts of a name that torch.compile, FSDP and activation checkpointing add, at any place.
INSERTED = r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# Modules beside a network, even where no prefix separates the two.
BESIDE = ("criterion", "loss", "loss_fn", "loss_function", "teacher", "momentum_encoder")
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
# Names of the first convolution in any layout.
STEM_NAMES = tuple(
    {
        counterpart.name
        for layout in LAYOUTS.values()
        for stem in STEMS
        if (counterpart := layout.counterpart(stem, rank=4))
    }
)
# Keys under which scripts that use flax store the variables, {"params", "batch_stats"}.
FLAX_WRAPPERS = ("state", "model", "variables", "target")


class StoredArray:
    """A NumPy array in a pickle. It is built from plain bytes, without NumPy's own unpickling."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        flat = np.frombuffer(_bytes(data), dtype.numpy())
        self.array = flat.reshape(shape, order="F" if is_fortran else "C")


class StoredDtype:
    """A NumPy dtype in a pickle: numbers, text and times, but no Python objects and no records."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufcSUmM]\d*|[?bhilqBHILQefdgFDG]", code):
            raise pickle.UnpicklingError(f"array of dtype {code[:20]!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in "<>" else "="

    def numpy(self) -> np.dtype:
        """Return the dtype."""
        dtype = np.dtype(self.code)
        orders = {">": dtype.newbyteorder(">"), "<": dtype.newbyteorder("<")}
        return orders.get(self.order, dtype)


def _scalar(dtype: StoredDtype, data: Any) -> Any:
    return np.frombuffer(_bytes(data), dtype.numpy())[0]


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))


def harmless_globals() -> list[tuple[Callable, str]]:
    """Return (what is called, name in the file) for `torch.serialization.safe_globals`.

    The names are those of plain values that scripts save beside the tensors. What is called in their place runs no
    code of the file and does not touch the file system. No class among them is changed by `BUILD`.
    """
    builtins = (bool, dict, float, frozenset, int, list, str, tuple)
    times = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone)
    allowed: list[tuple[Callable, str]] = [
        *((kind, f"builtins.{kind.__name__}") for kind in builtins),
        *((kind, f"datetime.{kind.__name__}") for kind in times),
        (argparse.Namespace, "argparse.Namespace"),
        (types.SimpleNamespace, "types.SimpleNamespace"),
        (collections.Counter, "collections.Counter"),
        (lambda: b"", "builtins.bytes"),  # other bytes are encoded text
        # torch fills plain dictionaries and lists only.
        (lambda *_: {}, "collections.defaultdict"),
        (lambda *_: [], "collections.deque"),
        (StoredDtype, "numpy.dtype"),
        (StoredArray, "numpy.ndarray"),
    ]
    for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        allowed.append((_scalar, f"{core}.multiarray.scalar"))
        allowed.append((lambda *_: StoredArray(), f"{core}.multiarray._reconstruct"))
    # A pure path can be made on any system. Python 3.13 names another module.
    for module in ("pathlib", "pathlib._local"):
        for system, kind in (
            ("Posix", pathlib.PurePosixPath),
            ("Windows", pathlib.PureWindowsPath),
        ):
            allowed += [(kind, f"{module}.{system}Path"), (kind, f"{module}.Pure{system}Path")]
    return allowed


def network_tensors(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """Return the tensors of the network that a file holds, by their names without prefixes.

    Looks into the dictionaries of `WRAPPERS` and `AVERAGES`; the moving average is preferred. Modules around the
    network (`AROUND`) are removed from the names, in any nesting. The log names the moving average that is read,
    and the tensors that do not belong to the network and are left out.

    Args:
      path: the file, for messages.
      content: tensors by name, or what a training script saved. A tensor has a shape and a dtype.

    Raises:
      WeightsError: there are no named tensors, or those of several networks.
    """
    named = _unwrapped(path, content)
    prefix = _prefix(path, named)
    if prefix is None:  # no known network: whoever fills one says what is wrong
        for name, value in named.items():
            if not _is_tensor(value):
                raise WeightsError(f"{name} is a {type(value).__name__}, not a tensor", key=path)
        prefix = _shared_prefix(named)
    own, left = {}, []
    for name, value in named.items():
        rest = name.removeprefix(prefix)
        is_own = name.startswith(prefix) and rest.partition(".")[0] not in BESIDE
        if is_own and _is_tensor(value):
            own[rest] = value
        elif name != COUNTER:
            left.append(name)
    if left:
        log.warning("%s: left out %s, not of the network", path.name, _grouped(left, prefix))
    return own


def variables_as_tensors(path: pathlib.Path, tree: Any) -> dict[str, np.ndarray]:
    """Return the tensors, with torch's names, of a tree of variables that flax.serialization restored.

    Args:
      path: the file, for messages.
      tree: {"params": ..., "batch_stats": ...}, a train state with these keys, or the parameters alone, with the
        names of this package's networks. A moving average ("ema", "ema_params" or "params_ema") is preferred.

    Raises:
      WeightsError: the tree is not of a network of this package.
    """
    from flax_resnet.models.stacking import unstack_blocks

    def refusal(problem: str) -> WeightsError:
        allowed = "params and batch_stats of a network of flax_resnet"
        return WeightsError(problem, key=path, allowed=allowed)

    variables = _variables(path, tree)
    kinds = {kind: variables[kind] for kind in ("params", "batch_stats") if variables.get(kind)}
    if not kinds or not all(_is_tree_of_arrays(kind) for kind in kinds.values()):
        raise refusal("holds no tree of arrays")
    try:
        return to_torch(unstack_blocks(kinds))
    except WeightsError as error:
        raise refusal(f"is of another package: {error.problem}") from error


def _variables(path: pathlib.Path, tree: Any) -> dict[str, Any]:
    for _ in range(DEPTH):
        if not isinstance(tree, dict):
            break
        averages = [tree[k] for k in ("ema", "ema_params", "params_ema") if _is_tree(tree.get(k))]
        if averages:
            log.info("%s: reading the moving average", path.name)
            whole = "params" in averages[0]
            stats = tree.get("ema_batch_stats") or tree.get("batch_stats")
            return averages[0] if whole else {"params": averages[0], "batch_stats": stats}
        if _is_tree(tree.get("params")):
            # TrainState.create(params=variables) nests the two.
            return tree["params"] if _is_tree(tree["params"].get("params")) else tree
        inner = [tree[key] for key in FLAX_WRAPPERS if _is_tree(tree.get(key))]
        if len(inner) != 1:
            break
        tree = inner[0]
    return {"params": tree}


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _is_tree_of_arrays(value: Any) -> bool:
    if isinstance(value, dict):
        parts = value.items()
        return bool(value) and all(isinstance(k, str) and _is_tree_of_arrays(v) for k, v in parts)
    return isinstance(value, np.ndarray)


def _is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor or array of any library; NumPy's scalars are not."""
    if isinstance(value, StoredArray):
        return value.array is not None
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def _unwrapped(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """Return the innermost dictionary of the network's tensors."""
    average = ""
    for _ in range(DEPTH):
        if not isinstance(content, Mapping):
            break
        found = {key: content[key] for key in AVERAGES + WRAPPERS if any(_names(content.get(key)))}
        stems = {k: v for k, v in found.items() if _has_stem(_names(v))} or found
        if unnamed := [key for key in found if key in AVERAGES and key not in stems]:
            log.warning("%s: %r does not name a network's tensors", path.name, unnamed[0])
        found = stems
        averages = {key: value for key, value in found.items() if key in AVERAGES}
        if len(chosen := averages or found) > 1:
            raise _several(path, chosen)
        if not chosen:
            break
        [(key, content)] = chosen.items()
        average = key if averages else average
    if average:
        log.info("%s: reading the moving average, %r", path.name, average)
    if not isinstance(content, Mapping):
        raise WeightsError(f"holds a {type(content).__name__}, not named tensors", key=path)
    named = {re.sub(INSERTED, "", str(name)): value for name, value in content.items()}
    if len(named) < len(content):
        raise _several(path, [name for name in map(str, content) if name not in named][:3])
    if not any(map(_is_tensor, named.values())):
        raise WeightsError(
            f"holds no named tensors; its keys: {_grouped(named, '') or '(none)'}",
            key=path,
            cure="save model.state_dict() instead",
        )
    return named


def _names(content: Any, depth: int = DEPTH) -> Iterator[str]:
    """Yield the names of the tensors in nested dictionaries."""
    if isinstance(content, Mapping) and depth:
        for name, value in content.items():
            if _is_tensor(value):
                yield str(name)
            else:
                yield from _names(value, depth - 1)


def _has_stem(names: Iterable[str]) -> bool:
    return any(name.endswith(STEM_NAMES) for name in names)


def _prefix(path: pathlib.Path, names: Iterable[str]) -> str | None:
    """Return what stands before the names of the network's tensors; None if no first convolution is found."""
    around = "|".join(map(re.escape, AROUND + AROUND_AVERAGE))
    stems = "|".join(map(re.escape, STEM_NAMES))
    matches = (re.fullmatch(rf"((?:(?:{around})\.)*)(?:{stems})", name) for name in names)
    found = dict.fromkeys(match[1] for match in matches if match)
    averages = [prefix for prefix in found if {*prefix.split(".")} & {*AROUND_AVERAGE}]
    chosen = averages or [*found]
    if len(chosen) > 1:
        raise _several(path, chosen)
    if averages:
        log.info("%s: reading the moving average, %s*", path.name, averages[0])
    return chosen[0] if chosen else None


def _shared_prefix(named: Iterable[str]) -> str:
    """Return the modules around the network that all names share."""
    names = [name for name in named if name != COUNTER]
    around = "|".join(map(re.escape, AROUND))
    match = re.match(rf"(?:(?:{around})\.)*", names[0])
    first = match[0] if match else ""
    while not all(name.startswith(first) for name in names):
        first = first[:-1].rpartition(".")[0]
        first = first and f"{first}."
    return first


def _several(path: pathlib.Path, keys: Iterable[str]) -> WeightsError:
    names = ", ".join(repr(key) for key in keys)
    return WeightsError(
        f"holds the tensors of several networks: {names}", key=path, cure="save one of them alone"
    )


def _grouped(names: Iterable[str], prefix: str) -> str:
    """Join names for a message; those with the same first part are one."""
    groups = collections.defaultdict(list)
    for name in names:
        shared = prefix if name.startswith(prefix) else ""
        groups[shared + name.removeprefix(shared).partition(".")[0]].append(name)
    texts = [f"{g}.* ({len(n)} tensors)" if len(n) > 1 else n[0] for g, n in groups.items()]
    rest = len(texts) - 10
    return ", ".join(texts[:10]) + (f" and {rest} more" if rest > 0 else "")
