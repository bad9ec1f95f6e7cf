"""Compare training's decoder with prediction's on mutated image files: python -m benchmarks.lab.image_fuzz

Mutates small JPEG, PNG, WebP, GIF and BMP files of many modes: flips bytes and bits, cuts, splices, repeats and
clears parts. Each file goes through `predict`'s way in (`data.images`) and through training's decoder
(`data.decodable`, then TensorFlow). Both must give the same pixels, within 3 of 255 levels, or both must refuse the
file with the error that they document. Child processes do the work, each with a time limit, so that a crash is
counted too. Prints the files on which the two differ. Exits with 1 if more than 0.1 % differ, or at an unexpected
exception, a crash or a time limit. Takes 20 minutes on a busy core.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import app
from benchmarks.arguments import count, output, seed
from benchmarks.lab.image_fuzz_files import SIDE, Mutated, originals
from benchmarks.record import write_record

LEVELS = 3  # largest difference of equal pixels
SHARE = 0.001  # largest share of files on which the decoders may differ
CHUNK, SECONDS = 1000, 300  # files of a child process, and its time limit
SAME, REFUSED = "same pixels", "both refuse"
FAILURES = ("exception", "crash", "time limit")


class Outcome(NamedTuple):
    """The comparison of one file.

    Attributes:
      number: number of the file; with the seed, it gives the file again.
      format: JPEG, PNG, ...
      verdict: `SAME`, `REFUSED`, one of `FAILURES`, or how the decoders differ.
      name: the original file.
      mutation: what was done to it.
      reason: the largest difference, or the error.
    """

    number: int
    format: str
    verdict: str
    name: str
    mutation: str
    reason: str


@app.command
def main(argv: Sequence[str] | None = None) -> int:
    """Compare the decoders and return the exit code."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=count, default=30_000, help="number of mutated files")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the mutations")
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=output, help="JSON file to write")
    options = parser.parse_args(argv)
    if options.child:
        for outcome in compare(range(*options.child), options.seed):
            print(json.dumps(outcome), flush=True)
        return 0
    began = time.perf_counter()
    outcomes = list(in_children(options.count, options.seed))
    result = summary(outcomes)
    for name, numbers in result["formats"].items():
        print(f"{name:5} ", ", ".join(f"{words} {number}" for words, number in numbers.items()))
    print(f"{result['agree']:.3%} of {result['files']} files agree")
    write_record(options.output, {**result, "seconds": round(time.perf_counter() - began)})
    failed = any(outcome.verdict in FAILURES for outcome in outcomes)
    return int(failed or result["agree"] < 1 - SHARE)


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the counts of each format, the share of the files that agree, and the other files."""
    formats: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for outcome in outcomes:
        formats[outcome.format][outcome.verdict] += 1
    others = [outcome for outcome in outcomes if outcome.verdict not in (SAME, REFUSED)]
    return {
        "files": len(outcomes),
        "agree": 1 - len(others) / len(outcomes),
        "formats": {name: dict(sorted(formats[name].items())) for name in sorted(formats)},
        "others": [outcome._asdict() for outcome in others],
    }


def in_children(files: int, mutations: int) -> Iterator[Outcome]:
    """Compare the files in child processes, one after another, and print those that do not agree."""
    start = 0
    while start < files:
        stop = min(start + CHUNK, files)
        done, failure = _child(start, stop, mutations)
        if start + len(done) < stop:
            case = Mutated.numbered(start + len(done), mutations, originals())
            done.append(
                Outcome(start + len(done), case.format, failure, case.name, case.mutation, "")
            )
        for outcome in done:
            if outcome.verdict not in (SAME, REFUSED):
                print(*outcome, sep="  ", flush=True)
        yield from done
        start += len(done)


def _child(start: int, stop: int, mutations: int) -> tuple[list[Outcome], str]:
    """Return the outcomes of a child process, and the name of its failure if it ended early."""
    command = [sys.executable, "-m", "benchmarks.lab.image_fuzz", f"--seed={mutations}"]
    command += ["--child", str(start), str(stop)]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1"}
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS, env=quiet
        )
        text, failure = ended.stdout, "crash"
    except subprocess.TimeoutExpired as error:
        text, failure = error.stdout or b"", "time limit"
    lines = [line for line in text.decode().splitlines(keepends=True) if line.endswith("\n")]
    return [Outcome(*json.loads(line)) for line in lines], failure


def compare(numbers: range, mutations: int) -> Iterator[Outcome]:
    """Compare the two decoders on the files with these numbers."""
    import tensorflow as tf

    from flax_resnet.data.data_section import Data
    from flax_resnet.data.decodable import decodable
    from flax_resnet.data.decode import evaluation_pixels
    from flax_resnet.data.images import orientation, prepare
    from flax_resnet.data.pipeline import DECODE_ERRORS
    from flax_resnet.errors import DataError

    data, files = Data(image_size=SIDE), originals()

    @tf.function(
        input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)],
        autograph=False,
    )
    def decode(encoded: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
        return evaluation_pixels(encoded, data, orientation=turned)

    for number in numbers:
        case = Mutated.numbered(number, mutations, files)
        errors: dict[str, str] = {}
        pixels: dict[str, np.ndarray] = {}
        verdict = reason = ""
        try:
            try:
                with warnings.catch_warnings(action="ignore"):
                    pixels["prediction"] = prepare([case.encoded], data)[0]
            except DataError as error:
                errors["prediction"] = error.problem
            try:
                with warnings.catch_warnings(action="ignore"):
                    turned = np.int32(orientation(case.encoded))
                    pixels["training"] = decode(decodable(case.encoded), turned).numpy()
            except DECODE_ERRORS as error:
                found = re.search(r"\n(.*)\n\s*\[\[", error.message)  # between traces of the graph
                errors["training"] = found[1] if found else error.message
        except Exception as error:  # what this command looks for
            verdict, reason = "exception", f"{type(error).__name__}: {error}"
        if not verdict:
            verdict, reason = _judged(pixels, errors)
        yield Outcome(number, case.format, verdict, case.name, case.mutation, reason[:300])


def _judged(pixels: dict[str, np.ndarray], errors: dict[str, str]) -> tuple[str, str]:
    """Return the verdict and its reason."""
    if len(errors) == 2:
        return REFUSED, ""
    if len(errors) == 1:
        ((name, error),) = errors.items()
        return f"only {name} refuses", error
    difference = np.abs(pixels["training"].astype(int) - pixels["prediction"])
    if difference.max() <= LEVELS:
        return SAME, ""
    share = (difference > LEVELS).mean()
    return "other pixels", f"by up to {difference.max()} levels, in {share:.1%} of the values"


if __name__ == "__main__":
    sys.exit(main())
