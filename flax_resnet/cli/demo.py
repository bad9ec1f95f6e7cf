"""Show a network in the browser: python -m flax_resnet demo --workdir /tmp/run

The page takes dropped photos. Each gets its most probable classes, a Grad-CAM of any class, and near neighbours
among the training images of the run. Ctrl-C ends the command.
python -m flax_resnet demo --model resnet50.a1_in1k
    Shows timm's weights, or a weights file (--weights), without neighbours.
python -m flax_resnet demo --exported net/
    Shows an exported model in the runtime of its format: classes only.
The page is for this machine alone, unless --host or --share says otherwise.
Needs Gradio: pip install 'flax_resnet[demo]'.
"""

import contextlib
import errno
import importlib.util
import logging
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from flax_resnet.cli import app, network_flags
from flax_resnet.errors import ConfigError, one_line, printable

if TYPE_CHECKING:
    from flax_resnet.inference.photo_answers import PhotoAnswers

log = logging.getLogger("flax_resnet")

LOOPBACK = "127.0.0.1"
OF_A_RUN = ("checkpoint", "data_dir", "neighbours")
LARGEST_SAMPLE = 10_000  # training images


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet demo", __doc__, _define, _demo, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_common(values)
    network_flags.define(values)
    for name, default, help in (
        ("exported", "", "instead of a run: a folder that `export` wrote"),
        ("host", LOOPBACK, "address to listen at; 0.0.0.0 for all of this machine"),
    ):
        flags.DEFINE_string(name, default, help, flag_values=values)
    for name, number, help, most in (
        ("port", 7860, "port to listen at; 0 for any free one", 65535),
        (
            "neighbours",
            2000,
            "with --workdir: largest number of training images to search for near neighbours, a random sample; "
            "0 for no search",
            LARGEST_SAMPLE,
        ),
    ):
        flags.DEFINE_integer(
            name, number, help, lower_bound=0, upper_bound=most, flag_values=values
        )
    for name, help in (
        ("share", "also make a public address, through the servers of Gradio"),
        ("open", "open the page in the browser of this machine"),
    ):
        flags.DEFINE_bool(name, False, help, flag_values=values)


def _demo(values: flags.FlagValues) -> None:
    source = app.one_of(
        values, ("workdir", "model", "exported"), "the run, or the network, to show"
    )
    _check_fit(values, source)
    check_packages()
    host, port = app.flag(values, "host"), app.flag(values, "port")
    port = free_port(host, port)
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    answers, title, about = _answers(values, source)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stopped_by_signals())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flax_resnet_demo"))
        _set_environment(folder)
        from flax_resnet.cli.demo_page import launch, page

        blocks = page(answers, title=title, about=about)
        free_port(host, port)  # again: to load the network may take minutes
        stack.callback(blocks.close, verbose=False)
        share, opens = app.flag(values, "share"), app.flag(values, "open")
        public = launch(blocks, host, port, share=share, opens=opens)
        if share and not public:
            log.warning("there is no public address: Gradio's servers cannot be reached")
        stack.enter_context(_features_in_background(answers))
        print(f"{address(host, port)} (Ctrl-C ends it)", flush=True)
        if public:
            print(f"{public} is public: whoever knows it can send photos", flush=True)
        while not stopped():
            time.sleep(0.1)
    print("stopped", file=sys.stderr)


def _check_fit(values: flags.FlagValues, source: str) -> None:
    """Raise ConfigError for a flag that belongs to another source."""
    owners = {"weights": "model", **dict.fromkeys(OF_A_RUN, "workdir")}
    for name, owner in owners.items():
        value = app.flag(values, name)
        if owner != source and value != values[name].default:
            problem = f"is an option of --{owner}, not of --{source}"
            raise ConfigError(problem, key=f"--{name}", value=value, cure="leave it out")


def check_packages() -> None:
    """Raise ConfigError if a package that the page needs is missing."""
    for package in ("gradio", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            cure = "pip install 'flax_resnet[demo]'"
            raise ConfigError(f"the page needs {package}", key="demo", cure=cure)


def free_port(host: str, port: int) -> int:
    """Return `port`, or any free one for 0.

    Raises:
      ConfigError: the port is in use or may not be used, or this machine has no such address.
    """
    try:
        family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            return int(listener.getsockname()[1])
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else 0
        if number == errno.EADDRINUSE:
            problem, cure = "is in use", "choose another one, or 0 for any free one"
        elif number in (errno.EACCES, errno.EPERM):
            problem, cure = "may not be used", "choose one above 1023"
        else:
            problem = f"is no address of this machine: {one_line(error)}"
            raise ConfigError(problem, key="--host", value=host) from error
        raise ConfigError(problem, key="--port", value=port, cure=cure) from error


def address(host: str, port: int) -> str:
    """Return the address of the page in a browser of this machine."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _set_environment(folder: str) -> None:
    """Set the variables that Gradio reads: no telemetry, and photos in a temporary folder."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
    # Gradio's first request goes to its own server.
    direct = [os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "", LOOPBACK, "localhost"]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, direct))


def _answers(values: flags.FlagValues, source: str) -> tuple["PhotoAnswers", str, str]:
    """Return the model with its title and a sentence about it."""
    given = printable(app.flag(values, source))
    if source == "exported":
        from flax_resnet.inference.export.export_answers import ExportAnswers

        exported = ExportAnswers(app.flag(values, source))
        name = pathlib.Path(given).resolve().name
        return exported, name, f"{exported.format} in {exported.runtime}, from {given}"
    from flax_resnet.inference.network_choice import NetworkChoice
    from flax_resnet.inference.photo_answers import network_answers

    choice = NetworkChoice(**{name: app.flag(values, name) for name in NetworkChoice._fields})
    most, data_dir = app.flag(values, "neighbours"), app.flag(values, "data_dir")
    answers = network_answers(choice, most=most, data_dir=data_dir)
    config, step = answers.classifier.config, answers.classifier.step
    if source == "model":
        return answers, config.model.name, f"weights {given}"
    data = pathlib.PurePath(config.data.dataset).name
    return answers, f"{config.model.name} on {data}", f"step {step:,} of {given}"


@contextlib.contextmanager
def _features_in_background(answers: "PhotoAnswers") -> Iterator[None]:
    """Compute the features of the training images in a thread, which ends before the block does."""
    if answers.training is None:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=answers.training.compute, args=[stop], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Handle Ctrl-C and SIGTERM inside this block; yield a function that tells whether one arrived.

    A signal that the process ignores stays ignored.
    """
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: arrived.append(received))
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
