"""The images that a page shows, with their predictions."""

from typing import NamedTuple

import numpy as np

from flax_resnet.cli.page.run_report import RunReport
from flax_resnet.cli.page.thumbnails import heat_thumbnail, thumbnail
from flax_resnet.inference.judged_split import input_images, why_unreadable
from flax_resnet.inference.split_statistics import (
    Pair,
    Suspect,
    confident_mistakes,
    least_certain,
    suspects,
    worst_pairs,
)

MISTAKES, UNCERTAIN = 24, 24
PAIRS, OF_PAIR = 8, 6
SUSPECTS, NEIGHBOURS = 12, 3
UNREADABLE = 50


class Case(NamedTuple):
    """An image with its prediction.

    Attributes:
      image: the image as the network sees it, as a data URI.
      heat: its Grad-CAM of the predicted class, as a data URI; "" without one, or if it has one value.
      name: the file or position of the image.
      prediction: the predicted class.
      label: the true class.
      confidence: the probability of the prediction.
      label_probability: the probability of the label.
    """

    image: str
    heat: str
    name: str
    prediction: str
    label: str
    confidence: float
    label_probability: float

    @property
    def short_name(self) -> str:
        """The last two parts of the name, which is mostly a path."""
        return "/".join(self.name.split("/")[-2:])

    @property
    def search(self) -> str:
        """The text that a filter searches."""
        return f"{self.prediction}\n{self.label}\n{self.name}".lower()


class PairCases(NamedTuple):
    """Images of one class that are taken for another one; `total` of them in all."""

    label: str
    prediction: str
    total: int
    cases: list[Case]


class SuspectCase(NamedTuple):
    """An image whose label may be wrong, with its number of agreeing neighbours, and some of these."""

    case: Case
    votes: int
    neighbours: list[Case]


class Cases(NamedTuple):
    """All images of a page."""

    mistakes: list[Case]
    uncertain: list[Case]
    pairs: list[PairCases]
    suspects: list[SuspectCase]
    suspect_count: int
    unreadable: list[tuple[str, str]]


def collect(report: RunReport) -> Cases:
    """Choose the images of a page, read them, and compute their heat maps."""
    split = report.split
    explained = [
        confident_mistakes(split)[:MISTAKES].tolist(),
        least_certain(split)[:UNCERTAIN].tolist(),
    ]
    pairs, found = worst_pairs(split, PAIRS), suspects(split)
    heated = {row for rows in explained for row in rows}
    shown = heated | {row for pair in pairs for row in pair.rows[:OF_PAIR].tolist()}
    for one in found[:SUSPECTS]:
        shown |= {one.row, *one.neighbours[:NEIGHBOURS].tolist()}
    known = _cases(report, sorted(shown), heated)
    mistakes, uncertain = ([known[row] for row in rows] for rows in explained)
    return Cases(
        mistakes,
        uncertain,
        [_of_pair(report, pair, known) for pair in pairs],
        [_of_suspect(one, known) for one in found[:SUSPECTS]],
        len(found),
        [
            (report.source.describe(index), why_unreadable(report.source, index))
            for index in split.unreadable[:UNREADABLE]
        ],
    )


def _cases(report: RunReport, rows: list[int], heated: set[int]) -> dict[int, Case]:
    """Return {row: case}; those of `heated` get a heat map."""
    split, names = report.split, report.split.class_names
    images = input_images(report.classifier, report.source, split.indices[rows].tolist())
    which = [number for number, row in enumerate(rows) if row in heated]
    classes = split.predictions[rows][which]
    heats = np.zeros((0, 0, 0), np.float32)
    if which:
        heats = report.classifier.explain(images[which], classes.tolist())
    # A map of one value says nothing: no part speaks for the class, or the last map has one position.
    explained = zip((rows[number] for number in which), heats, strict=True)
    heat_of = {row: heat for row, heat in explained if heat.any()}
    return {
        row: Case(
            thumbnail(image),
            heat_thumbnail(image, heat_of[row]) if row in heat_of else "",
            report.source.describe(int(split.indices[row])),
            names[split.predictions[row]],
            names[split.labels[row]],
            float(split.confidences[row]),
            float(split.label_probabilities[row]),
        )
        for row, image in zip(rows, images, strict=True)
    }


def _of_pair(report: RunReport, pair: Pair, known: dict[int, Case]) -> PairCases:
    names = report.split.class_names
    cases = [known[row] for row in pair.rows[:OF_PAIR].tolist()]
    return PairCases(names[pair.label], names[pair.prediction], len(pair.rows), cases)


def _of_suspect(one: Suspect, known: dict[int, Case]) -> SuspectCase:
    neighbours = [known[row] for row in one.neighbours[:NEIGHBOURS].tolist()]
    return SuspectCase(known[one.row], one.votes, neighbours)
