"""The page of the demo, made with Gradio: photos are dropped, and each gets a card with what the network says."""

import functools
import html
import pathlib
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from flax_resnet.cli.page.thumbnails import heat_overlay
from flax_resnet.errors import DataError
from flax_resnet.inference.photo_answers import TOP, Answer, PhotoAnswers
from flax_resnet.inference.training_images import TrainingImages

SIDE = 320  # of the images of a card, in pixels; smaller ones are enlarged with square pixels
SHOWN = 12  # photos at a time
CLASSES = 1000  # to choose from for Grad-CAM: the most probable ones
KEPT = 64  # answers that are kept in memory
FONTS = ("system-ui", "sans-serif")
STYLE = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
.card { border-top: 1px solid var(--border-color-primary); padding-top: 12px; }
.card h2 { margin: 0; font-size: 1.1rem; overflow-wrap: anywhere; }
.card .problem { margin: 4px 0 0; color: var(--error-text-color); overflow-wrap: anywhere; }
.remark { color: var(--body-text-color-subdued); }
.square img { image-rendering: pixelated; }
"""


def page(answers: PhotoAnswers, *, title: str, about: str) -> gr.Blocks:
    """Return the page.

    Args:
      answers: the model.
      title: the heading.
      about: a sentence below the heading: which model it is.
    """
    answer = functools.lru_cache(KEPT)(answers.answer)
    # One computation at a time, so that the memory does not depend on the number of visitors.
    alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network"}
    training = answers.training
    waits = _waits(training)
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>")
        photos = gr.File(
            label="Photos: drop one or several here, or click to choose",
            file_count="multiple",
            type="filepath",
            height=160,
            elem_id="photos",
        )
        remark = gr.HTML(_remark(answers), elem_classes="remark")
        ready, timer = gr.State(not waits), gr.Timer(1.0, active=waits)

        def progress() -> tuple[Any, ...]:
            waiting = _waits(training)
            return _remark(answers), not waiting, gr.Timer(active=waiting)

        timer.tick(
            progress, None, [remark, ready, timer], show_progress="hidden", api_visibility="private"
        )

        def card(file: str) -> None:
            with gr.Column(elem_classes="card"):
                _head(file)
                try:
                    _content(answers, answer(file), file, alone)
                except DataError as error:
                    _problem(f"This file {error.problem}.")
                except MemoryError:
                    _problem("This photo is too large for the memory of this machine.")

        @gr.render(inputs=[photos], triggers=[photos.change, ready.change], **alone)
        def cards(files: list[str] | None) -> None:
            for file in (files or [])[:SHOWN]:
                card(file)
            if len(files or []) > SHOWN:
                gr.HTML(
                    f"<p>The first {SHOWN} photos are shown. Remove some to see the others.</p>"
                )

    return blocks


def launch(blocks: gr.Blocks, host: str, port: int, *, share: bool, opens: bool) -> str:
    """Serve the page in other threads, and return its public address; "" without one."""
    theme = gr.themes.Default(
        font=[gr.themes.Font(name) for name in FONTS], font_mono=[gr.themes.Font("monospace")]
    )
    blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        share=share,
        inbrowser=opens,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        num_workers=0,
        theme=theme,
        css=STYLE,
        max_file_size="200mb",
    )
    return blocks.share_url or ""


def _waits(training: TrainingImages | None) -> bool:
    return training is not None and not training.is_ready and not training.problem


def _remark(answers: PhotoAnswers) -> str:
    """Return a line about what a card lacks, or how many training images are searched."""
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
    return "<br>".join(html.escape(line) for line in lines if line)


def _head(file: str) -> None:
    gr.HTML(f"<h2>{html.escape(pathlib.PurePath(file).name)}</h2>")


def _problem(text: str) -> None:
    gr.HTML(f'<p class="problem" role="alert">{html.escape(text)}</p>')


def _content(answers: PhotoAnswers, answer: Answer, file: str, alone: dict[str, Any]) -> None:
    """Add the components of a photo: the image, the bars, the heat map, the neighbours."""
    names, best = answers.class_names, answer.best()
    square = "square" if _is_small(answer.image) else ""
    with gr.Row(equal_height=False):
        gr.Image(
            _enlarged(answer.image),
            label="What the network sees",
            **_picture(square),
        )
        gr.Label(
            _bars(names, answer, best),
            num_top_classes=TOP,
            label=f"The {len(best)} most probable classes" if len(names) > TOP else "All classes",
            min_width=260,
        )
        if not answers.no_heat:
            with gr.Column(min_width=260):
                heat = gr.Image(
                    _heated(answers, answer, file, best[0]),
                    label="Grad-CAM: the parts that speak for the class",
                    **_picture(square),
                )
                chosen = gr.Dropdown(
                    [(names[n], n) for n in answer.best(CLASSES)],
                    value=best[0],
                    label="Grad-CAM of the class",
                    key=f"class of {file}",
                )

                def show(label: int) -> Image.Image:
                    return _heated(answers, answer, file, label)

                chosen.change(show, chosen, heat, api_visibility="private", **alone)
    if near := answers.neighbours(answer):
        gr.Gallery(
            [(_enlarged(n.image), f"{n.label or 'no label'} · {n.similarity:.2f}") for n in near],
            label="Near neighbours: training images with their label and similarity (at most 1)",
            columns=len(near),
            height="auto",
            object_fit="contain",
            allow_preview=False,
            buttons=[],
            format="png",
            interactive=False,
            elem_classes=square,
        )


def _picture(square: str) -> dict[str, Any]:
    return {
        "format": "png",
        "interactive": False,
        "buttons": [],
        "min_width": 260,
        "height": SIDE,
        "elem_classes": square,
    }


def _bars(names: tuple[str, ...], answer: Answer, best: list[int]) -> dict[str, float]:
    """Return {name: probability}; a name that several classes have gets their numbers."""
    several = len({names[number] for number in best}) < len(best)
    return {
        f"{names[n]} ({n})" if several else names[n]: float(answer.probabilities[n]) for n in best
    }


def _heated(answers: PhotoAnswers, answer: Answer, file: str, label: int) -> Image.Image:
    return heat_overlay(answer.image, answers.heat(file, label), SIDE)


def _is_small(pixels: np.ndarray) -> bool:
    return max(pixels.shape[:2]) < SIDE // 2


def _enlarged(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST) if _is_small(pixels) else image
