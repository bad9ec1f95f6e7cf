"""Convert named tensors to Flax variables and back, leaf by leaf. An unused tensor is an error."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flax_resnet.errors import WeightsError
from flax_resnet.weights.layouts import HEAD, HEAD_KERNELS, LAYOUTS, STEMS, Counterpart, Layout

EXPORTED = ("torch", "timm_v2")  # one layout per family of networks
NAMED = 10  # largest number of names in a message, for each kind of mismatch


def detect(names: Iterable[str]) -> str:
    """Detect the layout of a file by the name of its first convolution.

    Args:
      names: names of all tensors of the file.

    Returns:
      "torch", "timm_v2", "huggingface" or "bit".

    Raises:
      WeightsError: no layout matches.
    """
    names = set(names)
    for name, layout in LAYOUTS.items():
        counterparts = (layout.counterpart(stem, rank=4) for stem in STEMS)
        if any(counterpart and counterpart.name in names for counterpart in counterparts):
            return name
    raise WeightsError(
        f"the {len(names)} tensors named {_some(sorted(names), 3) or '(none)'} are in no known layout",
        key="weights",
        allowed=LAYOUTS,
    )


def layout_of(tree: Any) -> str:
    """Return the layout for the export of a network's variables.

    Args:
      tree: variables, or their shapes.

    Returns:
      "timm_v2" for pre-activation networks, "torch" for all others.

    Raises:
      WeightsError: each of the two layouts lacks a counterpart of some leaf.
    """
    leaves = dict(_leaves(tree))
    unmatched = {name: _without_counterpart(leaves, LAYOUTS[name]) for name in EXPORTED}
    for name in EXPORTED:
        if not unmatched[name]:
            return name
    fewest = min(unmatched.values(), key=len)
    raise WeightsError(f"no layout has a counterpart of {_some(fewest)}", key="variables")


def classes_of(tensors: Mapping[str, np.ndarray]) -> int:
    """Return the number of classes of a file's classifier; 0 if there is no classifier.

    Raises:
      WeightsError: the tensors are in no known layout.
    """
    table = LAYOUTS[detect(tensors)]
    counterparts = (table.counterpart(head, rank=2) for head in HEAD_KERNELS)
    return max(
        (_classes(tensors, counterpart) for counterpart in counterparts if counterpart), default=0
    )


def channels_of(tensors: Mapping[str, np.ndarray]) -> int:
    """Return the number of input channels of a file's first convolution; 3 if its kernel is not 4-dimensional.

    Raises:
      WeightsError: the tensors are in no known layout.
    """
    table = LAYOUTS[detect(tensors)]
    for counterpart in (table.counterpart(stem, rank=4) for stem in STEMS):
        if counterpart and counterpart.name in tensors and tensors[counterpart.name].ndim == 4:
            return counterpart.transform.from_source(tensors[counterpart.name]).shape[2]
    return 3


def from_torch(
    tensors: Mapping[str, np.ndarray],
    abstract: Any,
    *,
    layout: str | None = None,
    initial: Any = None,
    adapt_stem: bool = False,
) -> Any:
    """Fill a Flax tree from the tensors of a file: each leaf from one tensor, each tensor used once.

    Args:
      tensors: name -> array, from `read_tensors`.
      abstract: {"params": ..., "batch_stats": ...} of arrays or ``jax.ShapeDtypeStruct``.
      layout: a key of `LAYOUTS`; None calls `detect`.
      initial: variables whose classifier is used, as the same arrays, if the file has another number of classes or
        no classifier. If `initial` has no classifier, the classifier of the file is ignored. If None, any such
        mismatch is an error.
      adapt_stem: whether to adapt the first convolution if the file has another number of input channels: sum them
        to one channel, or repeat them to any other number. If False, the mismatch is an error.

    Returns:
      A tree of NumPy arrays with the structure and dtypes of `abstract`. It shares no memory with `tensors`.

    Raises:
      WeightsError: tensors are missing, unused or of another shape (the message lists up to 10 of each kind), or
        the layout is unknown.
    """
    table = _layout(layout or detect(tensors))
    leaves = dict(_leaves(abstract))
    if unmatched := _without_counterpart(leaves, table):
        raise WeightsError(
            f"are of {table.title}, which has no counterpart of {_some(unmatched)}: they belong to another family "
            "of networks",
            key="weights",
        )
    counterparts = _counterparts(leaves, table)
    tensors = {k: v for k, v in tensors.items() if not re.fullmatch(table.ignored, k)}
    fresh, hints = {}, []

    head = next((path for path in leaves if re.fullmatch(HEAD, path)), None)
    if head and (count := _classes(tensors, counterparts[head])) != (
        wanted := leaves[head].shape[-1]
    ):
        if initial is not None:
            fresh = {path: leaf for path, leaf in _leaves(initial) if re.fullmatch(HEAD, path)}
        else:
            hints.append(f"set num_classes={wanted} for a fresh head instead of {count} classes")
    elif not head and initial is not None:
        for path in HEAD_KERNELS:
            own = table.counterpart(path, rank=2)
            tensors = {k: v for k, v in tensors.items() if not own or own.module != _module(k)}

    stem = next((path for path in leaves if path in STEMS), None)
    if stem and (kernel := _stem(tensors, counterparts[stem], leaves[stem])) is not None:
        wanted = leaves[stem].shape[2]
        if adapt_stem:
            kernel = adapt_channels(kernel, wanted)
            tensors[counterparts[stem].name] = counterparts[stem].transform.to_source(kernel)
        elif kernel.shape[2] != wanted:
            hints.append(
                f"set in_channels={wanted} to adapt the stem from {kernel.shape[2]} channels"
            )

    filled, missing, shapes = [], [], []
    for path, leaf in leaves.items():
        counterpart = counterparts[path]
        source = tensors.pop(counterpart.name, None)
        expected = counterpart.transform.to_source(np.broadcast_to(np.float32(0), leaf.shape)).shape
        if path in fresh:
            filled.append(fresh[path])
        elif source is None:
            missing.append(counterpart.name)
        elif source.shape != expected:
            shapes.append(
                f"{counterpart.name} source {list(source.shape)} expected {list(expected)}"
            )
        else:
            filled.append(_copy(counterpart.transform.from_source(source), leaf.dtype))
    misfits = {"missing": missing, "unused": sorted(tensors), "shape": shapes}
    if any(misfits.values()):
        details = [f"{kind}: {_some(names)}" for kind, names in misfits.items() if names]
        raise WeightsError(
            f"are of {table.title}, and do not fit the network: {'; '.join(details)}",
            key="weights",
            cure="; ".join(hints),
        )
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(abstract), filled)


def to_torch(variables: Any, layout: str | None = None) -> dict[str, np.ndarray]:
    """Convert Flax variables to named tensors in another library's layout: the inverse of `from_torch`.

    Args:
      variables: {"params": ..., "batch_stats": ...} of arrays.
      layout: a key of `LAYOUTS`; None calls `layout_of`.

    Returns:
      Name -> contiguous array of the leaf's dtype, without memory shared with `variables`. If the layout has
      counters, each ``running_mean`` comes with a ``num_batches_tracked``, an int64 zero.

    Raises:
      WeightsError: a leaf has no counterpart in the layout, or the layout is unknown.
    """
    table = _layout(layout or layout_of(variables))
    leaves = dict(_leaves(variables))
    if unmatched := _without_counterpart(leaves, table):
        raise WeightsError(
            f"the layout of {table.title} has no counterpart of {_some(unmatched)}", key="variables"
        )
    counterparts = _counterparts(leaves, table)
    tensors = {}
    for path, leaf in leaves.items():
        counterpart = counterparts[path]
        tensors[counterpart.name] = _copy(
            counterpart.transform.to_source(np.asarray(leaf)), leaf.dtype
        )
        if table.counted and re.fullmatch(r"batch_stats/.*/mean", path):
            counter = f"{counterpart.module}{table.separator}num_batches_tracked"
            tensors[counter] = np.zeros((), np.int64)
    return tensors


def adapt_channels(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """Adapt the kernel of a first convolution to another number of input channels.

    For one input channel, the result is the sum over the kernel's I channels, so that a grey image gives the same
    output as an image with R = G = B. Otherwise, new channel c is channel c mod I, times I / in_channels. If
    in_channels is a multiple of I, an input with equal channels gives the same output as before.

    Args:
      kernel: float [H, W, I, O].
      in_channels: at least 1.

    Returns:
      float [H, W, in_channels, O].

    Source: adapt_input_conv of timm, models/_manipulate.py.
    """
    channels = kernel.shape[2]
    if in_channels == channels:
        return kernel
    if in_channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, math.ceil(in_channels / channels), 1))
    return repeated[:, :, :in_channels] * (channels / in_channels)


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise WeightsError("unknown layout", key="layout", value=name, allowed=LAYOUTS)
    return LAYOUTS[name]


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) in the order of the flattened tree."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(keys, simple=True, separator="/"), leaf


def _counterparts(leaves: Mapping[str, Any], table: Layout) -> dict[str, Counterpart]:
    """Return path -> counterpart of the leaves that have a counterpart."""
    counterparts = (
        (path, table.counterpart(path, len(leaf.shape))) for path, leaf in leaves.items()
    )
    return {path: counterpart for path, counterpart in counterparts if counterpart is not None}


def _without_counterpart(leaves: Mapping[str, Any], table: Layout) -> list[str]:
    counterparts = _counterparts(leaves, table)
    return [path for path in leaves if path not in counterparts]


def _classes(tensors: Mapping[str, np.ndarray], counterpart: Counterpart) -> int:
    """Return the number of classes of the file's head; 0 if there is no head."""
    source = tensors.get(counterpart.name)
    if source is None or source.ndim != _source_rank(counterpart):
        return 0
    return counterpart.transform.from_source(source).shape[-1]


def _stem(
    tensors: Mapping[str, np.ndarray], counterpart: Counterpart, leaf: Any
) -> np.ndarray | None:
    """Return the file's first kernel [H, W, I, O]; None if H, W or O differ from the leaf."""
    source = tensors.get(counterpart.name)
    if source is None or source.ndim != 4 or 0 in source.shape:
        return None
    kernel = counterpart.transform.from_source(source)
    same = kernel.shape[:2] + kernel.shape[3:] == leaf.shape[:2] + leaf.shape[3:]
    return kernel if same else None


def _module(name: str) -> str:
    """Return the name of a tensor without its last part."""
    return re.sub(r"[./][^./]*$", "", name)


def _source_rank(counterpart: Counterpart) -> int:
    return counterpart.transform.to_source(np.zeros((1,) * counterpart.transform.rank)).ndim


def _copy(array: np.ndarray, dtype: Any) -> np.ndarray:
    return np.array(array, dtype=dtype, order="C")


def _some(names: list[str], most: int = NAMED) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
