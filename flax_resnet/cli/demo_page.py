"""The page of the demo, made with Gradio: photos are dropped, and each gets a card."""

import functools
import html
from importlib import resources
from typing import Any

import gradio as gr

from flax_resnet.cli.page import photo_card
from flax_resnet.errors import DataError
from flax_resnet.inference.photo_answers import Answer, PhotoAnswers

SHOWN = 12  # photos at a time
CLASSES = 1000  # to choose from for Grad-CAM: the most probable ones
WIDTH = 240  # of a column at least, in pixels; narrow screens show one column
KEPT = 64  # answers that are kept in memory
FONTS = ("system-ui", "sans-serif")
LARGEST_FILE = "200mb"
# One computation at a time, so that the memory does not depend on the number of visitors.
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network"}


def page(answers: PhotoAnswers, *, title: str, about: str) -> gr.Blocks:
    """Return the page.

    Args:
      answers: the model.
      title: the heading.
      about: a line below the heading: which model it is.
    """
    # Gradio puts the checksum of a photo into its path, so a path stands for its content.
    answer = functools.lru_cache(KEPT)(answers.answer)

    def waits() -> bool:
        training = answers.training
        return training is not None and not training.is_ready and not training.problem

    def card(file: str) -> None:
        with gr.Column(elem_classes="card"):
            try:
                _content(answers, answer(file), file)
            except DataError as error:
                gr.HTML(photo_card.head(file, f"This file {error.problem.rstrip('.')}."))
            except MemoryError:
                gr.HTML(photo_card.head(file, "This photo is too large for the memory here."))

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>")
        photos = gr.File(
            label="Photos, one or several",
            file_count="multiple",
            type="filepath",
            height=160,
            elem_id="photos",
        )
        remark = gr.HTML(photo_card.remark(answers), elem_classes="remark")
        ready, timer = gr.State(not waits()), gr.Timer(1.0, active=waits())

        def progress() -> tuple[Any, ...]:
            waiting = waits()
            return photo_card.remark(answers), not waiting, gr.Timer(active=waiting)

        outputs: Any = [remark, ready, timer]
        shown: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([blocks.load, timer.tick], progress, None, outputs, **shown)

        @gr.render(inputs=[photos], triggers=[photos.change, ready.change], **ALONE)
        def cards(files: list[str] | None) -> None:
            for file in (files or [])[:SHOWN]:
                card(file)
            if len(files or []) > SHOWN:
                text = f"The first {SHOWN} photos are shown. Remove some to see the others."
                gr.HTML(f"<p>{text}</p>")

    return blocks


def _content(answers: PhotoAnswers, answer: Answer, file: str) -> None:
    """Add the components of a photo that was read. Raises DataError before the first one if it is lost."""
    names, best = answers.class_names, answer.best(CLASSES)
    heat = "" if answers.no_heat else photo_card.heat_map(answers, answer, file, best[0])
    gr.HTML(photo_card.head(file))
    with gr.Row(equal_height=False):
        for part in (photo_card.photo(answer), photo_card.bars(names, answer)):
            with gr.Column(min_width=WIDTH):
                gr.HTML(part)
        if heat:
            with gr.Column(min_width=WIDTH):
                shown = gr.HTML(heat)
                chosen = gr.Dropdown(
                    [(names[number], number) for number in best],
                    value=best[0],
                    label="Grad-CAM of the class",
                    interactive=True,
                    key=f"class of {file}",
                )

                def heat_of(label: int) -> str:
                    return photo_card.heat_map(answers, answer, file, label)

                chosen.change(heat_of, chosen, shown, api_visibility="private", **ALONE)
    if near := answers.neighbours(answer):
        gr.HTML(photo_card.neighbours(near))


def launch(blocks: gr.Blocks, host: str, port: int, *, share: bool, opens: bool) -> str:
    """Serve the page in other threads, and return its public address; "" without one."""
    # Gradio's own fonts and footer would lead to other addresses.
    theme = gr.themes.Default(
        font=[gr.themes.Font(name) for name in FONTS], font_mono=[gr.themes.Font("monospace")]
    )
    style = resources.files("flax_resnet.cli.page") / "demo.css"
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
        css=style.read_text(encoding="utf-8"),
        max_file_size=LARGEST_FILE,
    )
    return blocks.share_url or ""
