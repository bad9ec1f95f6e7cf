"""The command `demo` without its page: what is refused, the address, and the HTML of a photo's card."""

import html.parser
import signal
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused

from flax_resnet.cli import commands, demo
from flax_resnet.cli.page import photo_card
from flax_resnet.errors import ConfigError
from flax_resnet.inference.photo_answers import Answer
from flax_resnet.inference.training_images import Neighbour

EVIL = "<img src=x onerror=alert(1)>\"'"


class Texts(html.parser.HTMLParser):
    """The tags and texts of HTML."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def an_answer(*probabilities, size=8):
    pixels = np.arange(size * size * 3, dtype=np.uint32).reshape(size, size, 3) % 256
    return Answer(pixels.astype(np.uint8), np.array(probabilities, np.float32), np.zeros(0))


def model(names, heat=None, **attributes):
    """Stands for a model with these answers."""
    known = {"class_names": names, "no_heat": "", "no_neighbours": "", "training": None}
    return SimpleNamespace(**{**known, **attributes}, heat=lambda file, label: heat[label])


@pytest.fixture
def installed(monkeypatch):
    """Let the packages of the page pass for installed."""
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: name)


def test_bad_input_is_one_line(tmp_path, installed, capsys):
    with socket.create_server((demo.LOOPBACK, 0)) as busy:
        port = busy.getsockname()[1]
        for arguments, code in (
            ([], 2),
            (["--workdir=a", "--exported=b"], 2),
            (["--model=resnet18", "--checkpoint=best"], 2),
            (["--model=resnet18", "--data_dir=here"], 2),
            (["--exported=net", "--neighbours=10"], 2),
            (["--workdir=a", "--weights=b"], 2),
            (["--workdir=a", "--port=-1"], 2),
            (["--workdir=a", "--port=65536"], 2),
            (["--workdir=a", f"--port={port}"], 2),
            ([f"--workdir={tmp_path / 'none'}", "--port=0"], 5),
            ([f"--exported={tmp_path}", "--port=0"], 5),
        ):
            assert commands.main(["demo", *arguments]) == code, arguments
            out = capsys.readouterr()
            assert len(out.err.splitlines()) == 1, out.err
            assert not out.out


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    for missing in ("gradio", "matplotlib"):
        monkeypatch.setattr(
            demo.importlib.util, "find_spec", lambda name, gone=missing: name != gone or None
        )
        with refused("demo", kind=ConfigError) as caught:
            demo.check_packages()
        assert "pip install" in caught.value.cure
        assert missing in caught.value.problem


def test_a_port_is_free_or_refused():
    port = demo.free_port(demo.LOOPBACK, 0)
    assert port > 0
    assert demo.free_port(demo.LOOPBACK, port) == port
    with (
        socket.create_server((demo.LOOPBACK, port)),
        refused("--port", value=port, kind=ConfigError),
    ):
        demo.free_port(demo.LOOPBACK, port)
    with refused("--host", value="192.0.2.1", kind=ConfigError):  # an address for documentation
        demo.free_port("192.0.2.1", 0)
    assert demo.address("127.0.0.1", 80) == demo.address("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert demo.address("::", 80) == demo.address("::1", 80) == "http://[::1]:80"


def test_texts_of_users_are_escaped():
    answer = an_answer(0.75, 0.25)
    names = (EVIL, "b")
    heat = {0: np.eye(8, dtype=np.float32), 1: np.zeros((8, 8), np.float32)}
    near = [Neighbour(answer.image, EVIL, EVIL, 0.5), Neighbour(answer.image, "x", "", 0.25)]
    answers = model(names, heat, no_heat=EVIL)
    for part in (
        photo_card.head(f"/tmp/{EVIL}"),
        photo_card.head("a.png", problem=EVIL),
        photo_card.bars(names, answer),
        photo_card.heat_map(answers, answer, "a.png", 0),
        photo_card.neighbours(near),
        photo_card.remark(answers),
    ):
        read = Texts(part)
        assert {value for key, value in read.attributes if key == "title"} <= {EVIL, "x"}
        assert not {key for key, _ in read.attributes} & {"onerror"}
        assert EVIL in read.text
        pictures = [value for key, value in read.attributes if key == "src"]
        assert all(value.startswith("data:image/") for value in pictures)
    assert Texts(photo_card.head("/tmp/folder/photo.png")).text == "photo.png"
    # A map of one value tells no parts apart.
    assert "img" in Texts(photo_card.heat_map(answers, answer, "a.png", 0)).tags
    assert "img" not in Texts(photo_card.heat_map(answers, answer, "a.png", 1)).tags


def test_bars_are_the_most_probable_classes():
    def widths(read):
        return [float(v[6:-1]) for k, v in read.attributes if k == "style"]

    few = Texts(photo_card.bars(["a", "b", "c"], an_answer(0.25, 0.7, 0.05)))
    assert widths(few) == [70, 25, 5]
    assert few.text.index("b70.0 %") < few.text.index("a25.0 %") < few.text.index("c5.0 %")
    many = Texts(photo_card.bars([f"class {n}" for n in range(20)], an_answer(*[0.05] * 20)))
    assert many.tags.count("li") == 5
    shares = (0, 1e-5, 0.0006, 0.5, 0.9994, 0.99999, 1)
    texts = ["0.0 %", "&lt; 0.1 %", "0.1 %", "50.0 %", "99.9 %", "&gt; 99.9 %", "100.0 %"]
    assert list(map(photo_card.percent, shares)) == texts


def test_the_remark_counts_training_images():
    sample = {"total": 50_000, "size": 2000, "done": 320, "readable": 0}
    sample |= {"is_ready": False, "problem": ""}

    def text(**changes):
        return photo_card.remark(model(("a",), training=SimpleNamespace(**{**sample, **changes})))

    assert "320 of 2,000" in text()
    assert "1,990 of 50,000" in text(is_ready=True, readable=1990)
    assert "all 50,000" in text(is_ready=True, readable=50_000)
    assert "the disk is gone" in text(problem="the disk is gone")
    assert photo_card.remark(model(("a",))) == ""


def test_a_signal_ends_the_page_and_one_that_is_ignored_does_not():
    before = signal.getsignal(signal.SIGINT)
    with demo.stopped_by_signals() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with demo.stopped_by_signals() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert not stopped()
    finally:
        signal.signal(signal.SIGINT, before)
