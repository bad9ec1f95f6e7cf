"""Comparison of two lists of class names: those of weights and those of data."""

from collections.abc import Sequence
from typing import NamedTuple

from flax_resnet.data.class_order import normal_form
from flax_resnet.weights.catalog import imagenet_classes


class ClassMatch(NamedTuple):
    """How the classes of data correspond to those of weights.

    Attributes:
      order: index among the classes of the weights, for each class of the data.
      note: what could not be compared, for a log line; "" if all names were compared.
      problem: why the classes do not correspond; then `order` is empty. "" if they correspond.
    """

    order: tuple[int, ...] = ()
    note: str = ""
    problem: str = ""

    @property
    def changes_order(self) -> bool:
        """Whether the same class has different indices in the data and in the weights."""
        return self.order != tuple(range(len(self.order)))


def match_classes(
    data: Sequence[str], weights: Sequence[str], *, subset: bool = False
) -> ClassMatch:
    """Compare class names, in `normal_form`. Names of ImageNet's classes may be WordNet ids or words.

    If the sets of names differ, and one list has no names or the names "0", "1", ..., only lengths are compared.
    The numbers of ImageNet-V2's folders are indices of ImageNet's classes, in any order of the folders.

    Args:
      data: names of the classes of the data.
      weights: names of the classes of the weights; () if they have none.
      subset: whether the data may lack classes of the weights.
    """
    found, own = _canonical(data), _canonical(weights)
    place = {name: index for index, name in enumerate(own)}
    known = {*found} <= place.keys() and len({*found}) == len(found) and len(place) == len(own)
    if found == own:
        return ClassMatch(tuple(range(len(own))))
    if known and (subset or len(found) == len(own)):
        return ClassMatch(tuple(place[name] for name in found))
    if own == imagenet_classes()[0] and all(n.isascii() and n.isdecimal() for n in found):
        return _by_index(found)
    if own and len(found) != len(own) and not (known and subset):
        return ClassMatch(problem=f"has {len(found)} classes, and the weights have {len(own)}")
    if is_numbered(own) or is_numbered(found):
        whose = "the weights" if is_numbered(own) else "the data"
        note = f"{whose} have no class names, so classes are matched by position"
        return ClassMatch(tuple(range(len(found))), note)
    if odd := next((name for name in found if name not in place), ""):
        return ClassMatch(problem=f"has the class {odd!r}, which the weights do not have")
    twice = next(name for name in (*found, *own) if max(found.count(name), own.count(name)) > 1)
    return ClassMatch(problem=f"has several classes {twice!r}, or the weights have")


def _by_index(data: Sequence[str]) -> ClassMatch:
    """Match classes whose names are numbers with ImageNet's classes.

    Only all of 0 to 999 are indices without doubt. Others may be anything: ten digits, or numbers that begin at 1.
    """
    indices = tuple(map(int, data))
    if sorted(indices) == list(range(1000)):
        note = "the classes are the numbers 0 to 999, so they are matched with ImageNet's by index"
        return ClassMatch(indices, note)
    return ClassMatch(
        problem="has numbers as classes, and not all of 0 to 999, the indices of ImageNet's"
    )


def match_logits(data: Sequence[str], weights: Sequence[str], logits: int) -> ClassMatch:
    """Compare the class names of data with those of weights of `logits` logits, as `match_classes` does.

    The data may have fewer classes than there are logits. The other logits get the remaining classes of the
    weights, so that `order` is a permutation of the logits.
    """
    unnamed = (f"class {number}" for number in range(len(weights), logits))
    own = _canonical((*weights, *unnamed)) if weights else ()
    found = _canonical(data)
    rest = [name for name in own if name not in found]
    return match_classes((*found, *rest[: max(logits - len(data), 0)]), own)


def is_numbered(names: Sequence[str]) -> bool:
    """Return whether classes have no names, or the names "0", "1", ... in this order."""
    return tuple(names) == tuple(map(str, range(len(names))))


def _canonical(names: Sequence[str]) -> tuple[str, ...]:
    wnids, words = imagenet_classes()
    return wnids if tuple(names) == words else tuple(map(normal_form, names))
