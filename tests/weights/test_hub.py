"""Weights of the hub: from the cache, over a network that answers or does not, downloaded once."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, refused
from hub_config import CONFIG

from flax_resnet.errors import WeightsError
from flax_resnet.weights import fetch

# Prints what fetch returns or, of its error, the fields; and the seconds that it took.
FETCH = """
import json, sys, time
from flax_resnet.errors import WeightsError
from flax_resnet.weights import fetch, hub
hub.SECONDS = 1.0
start = time.perf_counter()
try:
    path, config = fetch(sys.argv[1])
    answer = {"path": str(path), "architecture": config["architecture"]}
except WeightsError as error:
    value = None if error.value is ... else error.value
    answer = {"key": error.key, "value": value, "problem": error.problem, "cure": error.cure}
    assert "\\n" not in str(error)
print(json.dumps(answer))
print(time.perf_counter() - start)
"""


def fetched(home, name, **environment):
    """Runs fetch in a process of its own: huggingface_hub reads its environment when imported."""
    environment = {**os.environ, "HF_HOME": str(home), **environment}
    environment.pop("HF_HUB_CACHE", None)
    run = subprocess.run(
        [sys.executable, "-c", FETCH, name],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer, seconds = run.stdout.splitlines()
    return json.loads(answer), float(seconds)


def cached(home, name, files):
    folder = home / "hub" / f"models--timm--{name}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    return snapshot


def nobody():
    """The address of a port at which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_come_from_the_cache_without_a_network(tmp_path, file):
    config = json.dumps(CONFIG).encode()
    snapshot = cached(tmp_path, "toy.a1", {file: b"weights", "config.json": config})
    answer, _ = fetched(tmp_path, "toy.a1", HF_ENDPOINT=nobody())
    assert answer == {"path": str(snapshot / file), "architecture": "resnet18"}


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_broken_config_in_the_cache_is_one_line(tmp_path, content):
    snapshot = cached(tmp_path, "toy.a1", {"model.safetensors": b"w", "config.json": content})
    answer, _ = fetched(tmp_path, "toy.a1", HF_ENDPOINT=nobody())
    assert answer["key"] == str(snapshot / "config.json")
    assert "'toy.a1'" in answer["problem"]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_cache_and_network_one_line_comes_soon(tmp_path, offline):
    answer, seconds = fetched(tmp_path, "toy.a1", HF_ENDPOINT=nobody(), HF_HUB_OFFLINE=offline)
    assert seconds < 10
    assert (answer["key"], answer["value"]) == ("name", "toy.a1")
    for place in ("model.safetensors", "huggingface.co/timm/toy.a1", str(tmp_path / "hub")):
        assert place in answer["problem"]
    assert answer["cure"]


def test_a_network_that_never_answers_is_given_up_soon(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer, seconds = fetched(tmp_path, "toy.a1", HF_ENDPOINT=endpoint)
    assert (answer["key"], answer["value"]) == ("name", "toy.a1")
    assert "model.safetensors" in answer["problem"]
    assert seconds < 10


ON_THE_HUB = {
    "/timm/new.a1/resolve/main/model.safetensors": b"new weights",
    "/timm/new.a1/resolve/main/config.json": json.dumps(CONFIG).encode(),
    "/timm/old.a1/resolve/main/pytorch_model.bin": b"old weights",
    "/timm/old.a1/resolve/main/config.json": json.dumps(CONFIG).encode(),
    "/timm/bare.a1/resolve/main/model.safetensors": b"weights without a config",
    "/timm/void.a1/resolve/main/config.json": json.dumps(CONFIG).encode(),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub of two repositories, only one of which has safetensors."""

    def do_HEAD(self):
        path = self.path.replace("0" * 40, "main")
        content = ON_THE_HUB.get(path)
        known = any(name.startswith(path.split("resolve")[0]) for name in ON_THE_HUB)
        self.send_response(200 if content else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        if content:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_weights_are_downloaded_once(tmp_path, hub):
    for name, file in (("new.a1", "model.safetensors"), ("old.a1", "pytorch_model.bin")):
        answer, _ = fetched(tmp_path, name, HF_ENDPOINT=hub)
        path = tmp_path / "hub" / f"models--timm--{name}" / "snapshots" / ("0" * 40) / file
        assert answer == {"path": str(path), "architecture": "resnet18"}
        assert path.read_bytes().endswith(b"weights")
        again, _ = fetched(tmp_path, name, HF_ENDPOINT=nobody())
        assert again == answer


def test_what_the_hub_does_not_have_is_named(tmp_path, hub):
    for name, missing in (
        ("bare.a1", "huggingface.co/timm/bare.a1 has no config.json"),
        ("void.a1", "huggingface.co/timm/void.a1 has no model.safetensors or pytorch_model.bin"),
        ("none.a1", "huggingface.co/timm/none.a1 does not exist"),
    ):
        answer, _ = fetched(tmp_path, name, HF_ENDPOINT=hub)
        assert answer == {"key": "name", "value": name, "problem": missing, "cure": ""}


def test_a_name_that_cannot_be_on_the_hub_is_one_line():
    with refused("name", "a/b c", WeightsError):
        fetch("a/b c")
