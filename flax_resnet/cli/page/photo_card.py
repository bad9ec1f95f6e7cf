"""The parts of the card of a photo as HTML: image, bars, heat map, neighbours. Texts of users are escaped."""

import html
import pathlib
from collections.abc import Sequence

from flax_resnet.cli.page.thumbnails import heat_thumbnail, thumbnail
from flax_resnet.inference.photo_answers import TOP, Answer, PhotoAnswers
from flax_resnet.inference.training_images import Neighbour

SIDE = 320  # of the image and of the heat map, in pixels


def head(file: str, problem: str = "") -> str:
    """Return the name of a photo, and why there is no answer."""
    name = f"<h2>{html.escape(pathlib.PurePath(file).name)}</h2>"
    return name + (f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else "")


def photo(answer: Answer) -> str:
    """Return the photo as the network sees it."""
    return _figure(thumbnail(answer.image, SIDE), "What the network sees")


def bars(names: Sequence[str], answer: Answer) -> str:
    """Return the most probable classes, with bars."""
    rows = []
    for number in answer.best():
        share = float(answer.probabilities[number])
        rows.append(
            f'<li><span class="name">{html.escape(names[number])}</span>'
            f'<span class="share">{percent(share)}</span>'
            f'<span class="bar"><i style="width:{100 * share:.2f}%"></i></span></li>'
        )
    some = f"The {TOP} most probable of {len(names):,} classes"
    title = some if len(names) > TOP else f"The {len(names)} classes"
    return f'<div class="bars"><h3>{title}</h3><ol>{"".join(rows)}</ol></div>'


def percent(share: float) -> str:
    """Format a share as a percentage; what would be rounded to 0 or 100 is said to be below or above."""
    if 0 < share < 0.0005:
        return "&lt; 0.1 %"
    if 0.9995 <= share < 1:
        return "&gt; 99.9 %"
    return f"{100 * share:.1f} %"


def heat_map(answers: PhotoAnswers, answer: Answer, file: str, label: int) -> str:
    """Return the Grad-CAM of a class, or a line if it tells no parts apart. Raises DataError for a lost file."""
    heat = answers.heat(file, label)
    if not heat.any():
        why = "no part speaks for this class, or the last map of the network is too small to tell parts apart"
        return f'<p class="empty">There is no Grad-CAM: {why}.</p>'
    name = html.escape(answers.class_names[label])
    warm = "the warmer, the more"
    return _figure(
        heat_thumbnail(answer.image, heat, SIDE),
        f"What speaks for <b>{name}</b> (Grad-CAM; {warm})",
    )


def neighbours(near: Sequence[Neighbour]) -> str:
    """Return similar training images with their labels."""
    figures = []
    for one in near:
        label = html.escape(one.label) if one.label else "no label"
        caption = f"<b>{label}</b> <span>{one.similarity:.3f}</span>"
        figures.append(_figure(thumbnail(one.image), caption, one.name))
    title = "Near neighbours among the training images, with their label and similarity (at most 1)"
    return f'<h3>{title}</h3><div class="near">{"".join(figures)}</div>'


def remark(answers: PhotoAnswers) -> str:
    """Return lines about what cards lack, and how many training images are searched."""
    lines = [answers.no_heat, answers.no_neighbours]
    if training := answers.training:
        size, total = f"{training.readable:,}", f"{training.total:,}"
        if training.problem:
            lines.append(f"There are no near neighbours: {training.problem}.")
        elif not training.is_ready:
            lines.append(
                f"Reading training images: {training.done:,} of {training.size:,}. "
                "Near neighbours appear when all are read."
            )
        elif training.readable < training.total:
            lines.append(f"Near neighbours are among {size} of {total} training images.")
        else:
            lines.append(f"Near neighbours are among all {total} training images.")
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)


def _figure(uri: str, caption: str, title: str = "") -> str:
    """Return an image; `caption` is HTML, `title` is text."""
    hint = f' title="{html.escape(title)}"' if title else ""
    return f'<figure{hint}><img src="{uri}" alt=""><figcaption>{caption}</figcaption></figure>'
