"""The demo in headless Chromium: the real command, photos dropped, labels seen, broken files, no other address."""

import base64
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import ROOT

import flax_resnet
from flax_resnet.cli import train
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.inference.export import export

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROKEN = {"broken.png": b"\x89PNG\r\n\x1a\n broken"}
CHOICE = "Grad-CAM of the class"
DROP = """([place, files]) => {
    const carried = new DataTransfer();
    for (const [name, text] of Object.entries(files)) {
        const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        carried.items.add(new File([bytes], name));
    }
    const event = new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true});
    document.querySelector(place).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser():
    for package in ("gradio", "playwright"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs pip install {package}")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("needs chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(browser, tmp_path_factory, tiny):
    """A run on the digits, with a last map of 4 x 4 positions."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    kept = [argument for argument in tiny if not re.match("--config.(model|train)", argument)]
    model = {"widths": "(16,32)", "depths": "(1,1)", "stem": "cifar"}
    small = [f"--config.model.{key}={value}" for key, value in model.items()]
    small += ["--config.train.epochs=6", f"--workdir={folder}"]
    assert train.main([*kept, *small]) == 0
    return folder


@pytest.fixture(scope="module")
def digits(run, data_dir):
    """{file: content} of a photo of each digit, held out and predicted rightly; and whether most are."""
    source = open_source(Data(data_dir=data_dir), train=False)
    records = source.read(np.arange(60))
    predicted = flax_resnet.load(run).predict(records.images).labels
    right = predicted == records.labels
    assert right.mean() > 0.8
    where = [int(np.flatnonzero(right & (records.labels == digit))[0]) for digit in (3, 7)]
    return {f"a {records.labels[n]}.png": records.images[n] for n in where}


@contextlib.contextmanager
def demo(tmp_path, cache_dir, *arguments):
    """Run the command, and yield the process and the address that it prints."""
    folder = tmp_path / "temporary"
    folder.mkdir(exist_ok=True)
    call = [sys.executable, "-m", "flax_resnet", "demo", "--port=0", *arguments]
    process = subprocess.Popen(
        [*call, f"--compilation_cache={cache_dir}"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, re.search(r"http://127\.0\.0\.1:\d+", line)[0]
    finally:
        process.kill()
        process.communicate()


class Page:
    """A page of the demo, with its requests and the errors in its console."""

    def __init__(self, browser, address, width):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(30_000)
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(address)
        self.page.wait_for_selector("#photos button")

    def drop(self, files):
        """Drop files, {name: content}, in place of those that were dropped before."""
        clear = self.page.locator("#photos button[aria-label=Clear]")
        if clear.count():
            clear.click()
            self.page.wait_for_selector(".card", state="detached")
        texts = {name: base64.b64encode(content).decode() for name, content in files.items()}
        self.page.evaluate(DROP, ["#photos button", texts])

    def texts(self, selector):
        """Wait for elements, and return their texts."""
        self.page.wait_for_selector(selector)
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def extent(self):
        """Return the least width of bars and images of photos, and the rightmost edge of a card's content."""
        return self.page.evaluate("""() => {
            const boxes = name => [...document.querySelectorAll(name)].map(x => x.getBoundingClientRect());
            const wide = boxes(".card .bars, .card figure:not(.near *) img").map(box => box.width);
            return [Math.min(...wide), Math.max(...boxes(".card *").map(box => box.right))];
        }""")


def is_loopback(url):
    return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).hostname == "127.0.0.1"


def ended(process, number):
    """Send a signal, and return the exit code and the lines of both streams."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out.splitlines(), err.splitlines()


def test_dropped_photos_are_answered_and_broken_ones_named(
    browser, run, digits, data_dir, tmp_path, cache_dir
):
    with demo(tmp_path, cache_dir, f"--workdir={run}", f"--data_dir={data_dir}") as started:
        process, address = started
        opened = Page(browser, address, 1280)
        opened.page.wait_for_selector("text=among all 1,437 training images")
        opened.drop(digits)
        assert opened.texts(".card h2") == ["a 3.png", "a 7.png"]
        for number, digit in enumerate("37"):
            card = opened.page.locator(".card").nth(number)
            assert card.locator(".bars .name").first.inner_text() == digit
            assert card.locator(".bars li").count() == 5
            assert card.locator(".near figure").count() == 5
            assert digit in card.locator(".near b").all_inner_texts()
        shares = opened.texts(".card >> nth=0 >> .bars .share")
        assert float(re.search(r"[\d.]+", shares[0])[0]) > 30

        # Another class changes the heat map.
        classifier = flax_resnet.load(run)
        for number, image in enumerate(digits.values()):
            maps = classifier.explain([image] * 10, range(10))
            shown = int("37"[number])
            other = max(set(range(10)) - {shown}, key=lambda label: (maps[label].any(), label))
            card = opened.page.locator(".card").nth(number)
            heat = card.locator("figure", has_text="Grad-CAM")
            before = heat.locator("img").get_attribute("src")
            card.get_by_label(CHOICE).click()
            opened.page.get_by_role("option", name=str(other), exact=True).click()
            opened.page.wait_for_selector("[role=option]", state="detached")
            heat.locator("b").get_by_text(str(other), exact=True).wait_for()
            assert heat.locator("img").get_attribute("src") != before

        opened.drop({**BROKEN, "not an image.txt": b"text"})
        assert len(opened.texts(".card .problem")) == 2
        assert opened.page.locator(".card .bars").count() == 0
        opened.drop(digits)  # the server goes on
        assert opened.texts(".card >> nth=0 >> .bars .name")[0] == "3"
        assert opened.errors == []

        phone = Page(browser, address, 390)
        phone.drop({**digits, **BROKEN})
        phone.page.wait_for_selector(".card .problem")
        assert phone.page.locator(".card").count() == 3
        narrowest, rightmost = phone.extent()
        assert narrowest > 250
        assert rightmost <= 390
        for page in (opened, phone):
            assert len(page.requests) > 20
            assert not [url for url in page.requests if not is_loopback(url)]
        # Both pages are open.
        assert ended(process, signal.SIGINT) == (0, [], ["stopped"])
    assert not list((tmp_path / "temporary").iterdir())  # no photo is left


def test_an_exported_model_shows_bars_alone(browser, run, digits, tmp_path, cache_dir):
    folder = export(str(run), tmp_path / "net", "stablehlo")
    with demo(tmp_path, cache_dir, f"--exported={folder}") as (process, address):
        opened = Page(browser, address, 1280)
        opened.page.wait_for_selector("text=no Grad-CAM")
        opened.drop({**digits, **BROKEN})
        assert len(opened.texts(".card .problem")) == 1
        first = [cards.split("\n")[0] for cards in opened.texts(".card .bars ol")]
        assert first == ["3", "7"]
        assert opened.page.locator(".card .near").count() == 0
        assert opened.page.get_by_label(CHOICE).count() == 0
        assert ended(process, signal.SIGTERM) == (0, [], ["stopped"])
