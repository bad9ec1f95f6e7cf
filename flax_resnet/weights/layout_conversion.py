"""Tensors by name <-> Flax variables, leaf by leaf and nothing left over."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flax_resnet.errors import WeightsError, suggestion
from flax_resnet.weights.layouts import HEAD, HEAD_KERNELS, LAYOUTS, STEMS, Layout, Place

EXPORTED = ("torch", "timm_v2")  # one for each family of networks
NAMED = 10  # names told per kind of misfit


def detect(names: Iterable[str]) -> str:
    """Returns the layout that names its first convolution as these tensors do.

    Args:
      names: of all tensors of a file.

    Returns:
      "torch", "timm_v2", "huggingface" or "bit".

    Raises:
      WeightsError: no layout does.
    """
    names = set(names)
    for name, layout in LAYOUTS.items():
        places = (layout.place(stem, rank=4) for stem in STEMS)
        if any(place and place.name in names for place in places):
            return name
    raise WeightsError(
        f"weights in no known layout ({', '.join(LAYOUTS)}): {len(names)} tensors named "
        f"{_some(sorted(names), 3) or '(none)'}"
    )


def layout_of(tree: Any) -> str:
    """Returns the layout in which a network's variables are exported.

    Args:
      tree: variables, or their shapes.

    Returns:
      "timm_v2" for pre-activation networks, "torch" for all others.

    Raises:
      WeightsError: a leaf has no counterpart in either.
    """
    leaves = dict(_leaves(tree))
    homeless = {name: _homeless(leaves, LAYOUTS[name]) for name in EXPORTED}
    for name in EXPORTED:
        if not homeless[name]:
            return name
    fewest = min(homeless.values(), key=len)
    raise WeightsError(f"no layout has a counterpart of {_some(fewest)}")


def classes_of(tensors: Mapping[str, np.ndarray]) -> int:
    """Returns the number of classes of a file's classifier, 0 where it has none.

    Raises:
      WeightsError: the tensors are in no known layout.
    """
    table = LAYOUTS[detect(tensors)]
    places = (table.place(head, rank=2) for head in HEAD_KERNELS)
    return max((_classes(tensors, place) for place in places if place), default=0)


def channels_of(tensors: Mapping[str, np.ndarray]) -> int:
    """Returns the number of input channels of a file's first convolution.

    Raises:
      WeightsError: the tensors are in no known layout.
    """
    table = LAYOUTS[detect(tensors)]
    for place in (table.place(stem, rank=4) for stem in STEMS):
        if place and place.name in tensors and tensors[place.name].ndim == 4:
            return place.transform.from_source(tensors[place.name]).shape[2]
    return 3


def from_torch(
    tensors: Mapping[str, np.ndarray],
    abstract: Any,
    *,
    layout: str | None = None,
    initial: Any = None,
    adapt_stem: bool = False,
) -> Any:
    """Fills a Flax tree from the tensors of a file: each leaf from one tensor, each tensor used once.

    Args:
      tensors: name -> array, as `read_tensors` returns them.
      abstract: {"params": ..., "batch_stats": ...} of arrays or ``jax.ShapeDtypeStruct``.
      layout: a key of `LAYOUTS`; None: found by `detect`.
      initial: variables whose classifier stays, the same arrays, where the file has another number of
        classes or no classifier (if they have none, the file's is left out); None: that is an error.
      adapt_stem: sums (to one channel) or repeats (to any other number) the input channels of the first
        convolution where the file has another number of them; otherwise that is an error.

    Returns:
      A tree like `abstract` of NumPy arrays, of its dtypes; they share no memory with `tensors`.

    Raises:
      WeightsError: tensors are missing, left over or of another shape (all of them in one line), or the
        layout is unknown.
    """
    table = _layout(layout or detect(tensors))
    leaves = dict(_leaves(abstract))
    if homeless := _homeless(leaves, table):
        raise WeightsError(
            f"the weights are of {table.title}, which has no counterpart of {_some(homeless)}: "
            "they are of another family of networks"
        )
    places = {path: _place(table, path, leaf) for path, leaf in leaves.items()}
    tensors = {k: v for k, v in tensors.items() if not re.fullmatch(table.ignored, k)}
    fresh, hints = {}, []

    head = next((path for path in leaves if re.fullmatch(HEAD, path)), None)
    if head and (source := _classes(tensors, places[head])) != (wanted := leaves[head].shape[-1]):
        if initial is not None:
            fresh = {path: leaf for path, leaf in _leaves(initial) if re.fullmatch(HEAD, path)}
        else:
            hints.append(f"num_classes={wanted} asks for a fresh head instead of {source} classes")
    elif not head and initial is not None:
        for kernel in HEAD_KERNELS:
            place = table.place(kernel, rank=2)
            tensors = {k: v for k, v in tensors.items() if not place or place.module != _module(k)}

    stem = next((path for path in leaves if path in STEMS), None)
    if stem and (kernel := _stem(tensors, places[stem], leaves[stem])) is not None:
        wanted = leaves[stem].shape[2]
        if adapt_stem:
            kernel = adapt_channels(kernel, wanted)
            tensors[places[stem].name] = places[stem].transform.to_source(kernel)
        elif kernel.shape[2] != wanted:
            hints.append(f"in_channels={wanted} adapts the stem from {kernel.shape[2]} channels")

    filled, missing, shapes = [], [], []
    for path, leaf in leaves.items():
        place = places[path]
        source = tensors.pop(place.name, None)
        expected = place.transform.to_source(np.broadcast_to(np.float32(0), leaf.shape)).shape
        if path in fresh:
            filled.append(fresh[path])
        elif source is None:
            missing.append(place.name)
        elif source.shape != expected:
            shapes.append(f"{place.name} source {list(source.shape)} expected {list(expected)}")
        else:
            filled.append(_copy(place.transform.from_source(source), leaf.dtype))
    misfits = {"missing": missing, "unused": sorted(tensors), "shape": shapes}
    if any(misfits.values()):
        told = [f"{kind}: {_some(names)}" for kind, names in misfits.items() if names]
        raise WeightsError(
            f"weights of {table.title} do not fit the network: {'; '.join([*told, *hints])}"
        )
    return jax.tree_util.tree_structure(abstract).unflatten(filled)


def to_torch(variables: Any, layout: str | None = None) -> dict[str, np.ndarray]:
    """Names and lays out Flax variables as other people's files do: the inverse of `from_torch`.

    Args:
      variables: {"params": ..., "batch_stats": ...} of arrays.
      layout: a key of `LAYOUTS`; None: found by `layout_of`.

    Returns:
      Name -> contiguous array of the leaf's dtype, sharing no memory with `variables`. Where the layout
      holds them, an int64 zero ``num_batches_tracked`` stands next to every ``running_mean``.

    Raises:
      WeightsError: a leaf has no counterpart in the layout, or the layout is unknown.
    """
    table = _layout(layout or layout_of(variables))
    leaves = dict(_leaves(variables))
    if homeless := _homeless(leaves, table):
        raise WeightsError(f"{table.title} has no counterpart of {_some(homeless)}")
    tensors = {}
    for path, leaf in leaves.items():
        place = _place(table, path, leaf)
        tensors[place.name] = _copy(place.transform.to_source(np.asarray(leaf)), leaf.dtype)
        if table.counted and re.fullmatch(r"batch_stats/.*/mean", path):
            counter = f"{place.module}{table.separator}num_batches_tracked"
            tensors[counter] = np.zeros((), np.int64)
    return tensors


def adapt_channels(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """Adapts the kernel of a first convolution to another number of input channels.

    One channel gets the sum over the kernel's I channels: a grey image then gives what it gave as R = G = B.
    Otherwise channel c gets channel c mod I, times I / in_channels, which keeps the sum for constant input
    where in_channels is a multiple of I.

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
        raise WeightsError(f"unknown layout {name!r}: {suggestion(name, LAYOUTS)}")
    return LAYOUTS[name]


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, leaf) in the order of the flattened tree."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(keys, simple=True, separator="/"), leaf


def _place(table: Layout, path: str, leaf: Any) -> Place | None:
    return table.place(path, len(leaf.shape))


def _homeless(leaves: Mapping[str, Any], table: Layout) -> list[str]:
    return [path for path, leaf in leaves.items() if _place(table, path, leaf) is None]


def _classes(tensors: Mapping[str, np.ndarray], place: Place) -> int:
    """Returns the number of classes of the file's head, 0 if it has none."""
    source = tensors.get(place.name)
    if source is None or source.ndim != _source_rank(place):
        return 0
    return place.transform.from_source(source).shape[-1]


def _stem(tensors: Mapping[str, np.ndarray], place: Place, leaf: Any) -> np.ndarray | None:
    """Returns the file's first kernel [H, W, I, O], None if it differs in more than its input channels."""
    source = tensors.get(place.name)
    if source is None or source.ndim != 4 or 0 in source.shape:
        return None
    kernel = place.transform.from_source(source)
    same = kernel.shape[:2] + kernel.shape[3:] == leaf.shape[:2] + leaf.shape[3:]
    return kernel if same else None


def _module(name: str) -> str:
    """Returns the name of a tensor without its last part."""
    return re.sub(r"[./][^./]*$", "", name)


def _source_rank(place: Place) -> int:
    return place.transform.to_source(np.zeros((1,) * place.transform.rank)).ndim


def _copy(array: np.ndarray, dtype: Any) -> np.ndarray:
    return np.array(array, dtype=dtype, order="C")


def _some(names: list[str], most: int = NAMED) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
