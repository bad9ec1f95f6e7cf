"""The page of a run in headless Chromium: no error, no request, sorting, filters, a phone, the dark, paper."""

import json
import shutil

import pytest
from conftest import saved_run
from sklearn.datasets import load_sample_images

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NAMES = ("<i>one", 'deux & "trois"', "vier'", "пять", "ròku" + "x" * 60)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page of an untrained network on crops of photographs, of five classes."""
    import numpy as np
    from PIL import Image

    from flax_resnet.cli import report

    root = tmp_path_factory.mktemp("page")
    draw, photographs = np.random.default_rng(0), load_sample_images().images
    for number, name in enumerate(NAMES):
        (root / "data" / name).mkdir(parents=True)
        for index in range(6 + number):
            top, left = draw.integers(0, 300), draw.integers(0, 500)
            crop = photographs[index % 2][top : top + 100, left : left + 120]
            Image.fromarray(crop).save(root / "data" / name / f"{index}.jpg")
    (root / "data" / NAMES[0] / "broken.jpg").write_bytes(b"broken")
    shape = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}
    data = {"source": "folder", "path": str(root / "data"), "eval_fraction": 0.99, "image_size": 80}
    run = saved_run(root / "run", {"data": data, "model": shape}, sorted(NAMES), step=2)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 9):
            values = {"loss": 2 / step, "top1": step / 10, "learning_rate": 0.1}
            record = {"step": step, "epoch": step / 2, "split": "train", **values}
            file.write(json.dumps(record) + "\n")
    assert report.main([f"--workdir={run}"]) == 0
    return run / "report.html"


@pytest.fixture
def opened(browser, page_file):
    """A function that opens the page, and the messages and requests that it has made."""
    contexts, messages, requests = [], [], []

    def open_page(width=1280, scheme="light"):
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert sum(url.startswith("file:") for url in requests) == len(contexts)


def test_every_image_is_drawn_and_no_name_is_code(opened):
    page = opened()
    sizes = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
    assert len(sizes) > 60
    assert min(sizes) > 0
    assert page.locator("i", has_text="one").count() == 0
    labels = page.locator("#class-table tbody th").all_inner_texts()
    assert sorted(labels) == sorted(NAMES)
    assert "broken.jpg" in page.locator(".files").inner_text()
    charts = page.locator(".chart svg")
    assert charts.count() == 4
    for number in range(4):
        assert charts.nth(number).bounding_box()["height"] > 150
    colors = page.eval_on_selector_all(
        ".chart svg path", "all => all.map(one => getComputedStyle(one).stroke)"
    )
    assert "rgb(31, 100, 200)" in colors


def test_the_table_of_classes_sorts(opened):
    page = opened()

    def column(number):
        rows = "#class-table tbody tr"
        code = (
            f"all => all.map(row => row.cells[{number}].dataset.value ?? row.cells[0].textContent)"
        )
        return page.eval_on_selector_all(rows, code)

    original = column(0)
    for number in (2, 4):
        head = page.locator("#class-table thead button").nth(number)
        for order, sign in (("descending", -1), ("ascending", 1)):
            head.click()
            assert page.locator(f'th[aria-sort="{order}"]').count() == 1
            values = [sign * float(value) for value in column(number) if value != "nan"]
            assert values == sorted(values)
        head.click()
        assert column(0) == original
    page.locator("#class-table thead button").nth(0).press("Enter")  # the keyboard sorts too
    assert len(column(0)) == len(NAMES)
    assert column(0) != original or column(0) == sorted(original)


def test_filters_show_what_matches(opened):
    page = opened()
    classes, images = (
        page.locator("input[data-filter]").nth(0),
        page.locator("input[data-filter]").nth(1),
    )
    classes.fill("VIER")
    assert page.locator("#class-table tbody tr:visible").count() == 1
    classes.fill("")
    assert page.locator("#class-table tbody tr:visible").count() == len(NAMES)
    every = page.locator("#images .case").count()
    images.fill("пять")
    shown = page.locator("#images .case:visible")
    assert 0 < shown.count() < every
    assert all("пять" in text for text in shown.all_inner_texts())
    assert page.locator("output").nth(1).inner_text() == f"{shown.count()} of {every}"


def test_the_confusion_matrix_sorts_rows_and_columns_together(opened):
    page = opened()
    read = """all => all.map(row => [...row.cells].map(cell => cell.textContent))"""
    before = page.eval_on_selector_all("#confusion tr", read)
    for order in ("name", "recall", "support", "index"):
        page.select_option("#order", order)
        head, *rows = page.eval_on_selector_all("#confusion tr", read)
        assert [row[0] for row in rows] == head[1:]
        cells = {
            (row[0], name): n for row in rows for name, n in zip(head[1:], row[1:], strict=True)
        }
        known = {
            (row[0], name): n
            for row in before[1:]
            for name, n in zip(before[0][1:], row[1:], strict=True)
        }
        assert cells == known
        if order == "support":
            totals = [sum(int(cell or 0) for cell in row[1:]) for row in rows]
            assert totals == sorted(totals, reverse=True)
    assert page.eval_on_selector_all("#confusion tr", read) == before


def test_the_page_fits_a_phone_the_dark_and_paper(opened):
    page = opened(390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    narrow = page.eval_on_selector_all(
        "body *", "all => all.filter(one => !one.closest('.scroll, .scroll-x, pre, svg') && "
        "one.getBoundingClientRect().right > 391).map(one => one.outerHTML.slice(0, 80))"
    )  # fmt: skip
    assert narrow == []
    color = "getComputedStyle(document.body).backgroundColor"
    light, dark = page.evaluate(color), opened(1280, "dark").evaluate(color)
    assert light == "rgb(255, 255, 255)"
    assert sum(map(int, dark[4:-1].split(","))) < 100
    paper = opened(1280, "dark")
    paper.emulate_media(media="print", color_scheme="dark")
    assert paper.evaluate(color) == light
    assert not paper.locator("nav").is_visible()
    assert paper.pdf(format="A4").startswith(b"%PDF")
