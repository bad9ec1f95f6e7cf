"""Run the training command with mutated configurations: each must end in a plan, or in one line.

python -m benchmarks.lab.command_fuzz --number 2000 --output benchmarks/results/command_fuzz.json

Each command is ``flax_resnet.main --dry_run`` with a small recipe and some mutations: settings with values that are
allowed, extreme, of another type, or malformed; misspelt names; flags without a value; configuration files with
mutated text; run folders with mutated config.json files. It runs in this process. A `plan` is exit code 0; a
`refusal` is an exit code of errors.py and one line that begins with ``error:``. Anything else is a finding: another
exception, another exit code, more lines, or a file outside the folder of the command. All paths in values lie in a
temporary folder, which is also the current one.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from benchmarks import app
from benchmarks.arguments import count, output, seed
from benchmarks.record import write_record
from flax_resnet import main as command
from flax_resnet.config import Config, settings
from flax_resnet.training.runs.metadata import SCHEMA

PLAN, REFUSAL = "plan", "refusal"
CODES = {2, 3, 4, 5}
# One block of each stage, to plan quickly.
RECIPE = (
    "--config=resnet18",
    "--config.model.depths=(1,1,1,1)",
    "--config.model.widths=(4,8,16,32)",
)
NUMBERS = (
    "0", "-1", "1", "2", "3", "0.5", "1e308", "-1e308", "5e-324", "nan", "inf", "-inf", "1e-40", "2147483648",
    "9223372036854775808", "-9223372036854775809", "10" * 40, "9" * 4400, "0x10", "1_000", "٣", "1e", "--1",
)  # fmt: skip
TEXTS = (
    "", " ", "None", "none", "True", "false", "auto", "whole", "x", "X" * 5000, "a/" * 2500, "..", ".", "a b",
    "é\u0301", "\U0001f600", "\x00", "\x1b[31m", "\n", "a\nb", "%s%n", "{}", "'", '"', "\\", "$HOME", "`id`", "-",
    "--", "=", ",", "\udcff", "timm/", "hub:x", "test[:10%]", "train[99%:]", "train[:0]", "test[5:2]",
)  # fmt: skip
TUPLES = (
    "()", "(1,)", "(1,2)", "(1,2,3)", "(0,0,0)", "(1,1,1,1)", "(-1,2)", "(nan,1)", "(1e400,)", "((0,4),(2,8))",
    "(('a',1.0),)", "(('(',1.0),)", "(('(a+)+$',1.0),)", "(('kernel',-1.0),)", "(('x',1.0),('x',2.0))",
    "((((((1,),),),),),)", "(1,", "1,2", "[1,2]", "{1:2}", "(1,'a')", "('a',)", "(None,)", "(True,)",
    "(" * 200, "(1," * 90 + ")" * 90, "(2**99,)", "__import__('os')", "(1 for x in ())",
)  # fmt: skip
FLAGS = (
    "--dry_run=maybe", "--resume=force", "--resume=x", "--report=7", "--workdir", "--config", "--config=", "-x",
    "--config=nothing", "--config=resnet18:x", "--nothing=1", "stray", "--flagfile=absent", "--data_dir=",
    "--compilation_cache=", "--config.train", "--config.=1", "--config.a.b.c=1", "--config.train.=1",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
      arguments: its arguments.
      stored: text of config.json in its run folder; "" for no run folder.
      recipe: text of its configuration file; "" for a packaged one.
    """

    arguments: tuple[str, ...]
    stored: str = ""
    recipe: str = ""


@app.command
def main(argv: Sequence[str] | None = None) -> int:
    """Run all commands; return 1 if there is a finding."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=count, default=2000, help="number of commands")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--output", type=output, help="the record")
    options = parser.parse_args(argv)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        counts, findings = fuzz(pathlib.Path(place), options)
    summary = {
        "number": options.number,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "counts": dict(counts),
        "findings": findings,
    }
    print(json.dumps(summary, indent=2))
    write_record(options.output, summary)
    return int(bool(findings))


def fuzz(
    place: pathlib.Path, options: argparse.Namespace
) -> tuple[collections.Counter[str], list[dict[str, Any]]]:
    """Run the commands, and return the number of each outcome, and the findings.

    Args:
      place: a folder for all files.
      options: `number` and `seed`.
    """
    # Names of repositories and datasets must not reach the network.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_GCE_CHECK": "true"}
    outcomes: collections.Counter[str] = collections.Counter()
    findings = []
    with contextlib.chdir(place):
        for number in range(options.number):
            case = drawn(np.random.default_rng([options.seed, number]), place)
            outcome, detail = outcome_of(case, place)
            outcomes[outcome] += 1
            if outcome not in (PLAN, REFUSAL):
                findings.append({"number": number, **dataclasses.asdict(case), outcome: detail})
    return outcomes, findings


def outcome_of(case: Case, place: pathlib.Path) -> tuple[str, str]:
    """Run a command in this process, and return its outcome and the details of a finding."""
    workdir, recipe = place / "run", place / "recipe.py"
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").unlink(missing_ok=True)
    if case.stored:
        (workdir / "config.json").write_text(case.stored, encoding="utf-8", errors="surrogatepass")
    recipe.write_text(case.recipe, encoding="utf-8", errors="surrogatepass")
    before = {path.name for path in workdir.iterdir()}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            code = command.main([*case.arguments])
    except BaseException as error:  # what this command looks for; SystemExit is a finding, too
        if isinstance(error, KeyboardInterrupt):
            raise
        return "exception", "".join(traceback.format_exception(error)[-4:])
    text = printed.getvalue()
    if {path.name for path in workdir.iterdir()} != before:
        return "written", str(sorted(path.name for path in workdir.iterdir()))
    if "Traceback" in text:
        return "traceback", text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if code == 0:
        return (PLAN, "") if not errors else ("error with code 0", text)
    if code not in CODES:
        return "exit code", f"{code}: {text}"
    # Log lines about settings that do not apply may stand before the error.
    if len(errors) != 1 or text.splitlines()[-1] != errors[0]:
        return "lines", text
    return (REFUSAL, "") if len(errors[0]) < 8000 else ("long", errors[0])


def drawn(draw: np.random.Generator, place: pathlib.Path) -> Case:
    """Draw a command."""
    arguments = [*RECIPE, "--dry_run", f"--data_dir={place / 'tfds'}", "--compilation_cache=off"]
    overrides = [_override(draw, place) for _ in range(int(draw.integers(1, 5)))]
    kind = draw.random()
    if kind < 0.7:
        if draw.random() < 0.15:
            overrides.append(str(draw.choice(FLAGS)))
        mixed = [*arguments, *overrides]
        if draw.random() < 0.1:
            del mixed[int(draw.integers(len(mixed)))]
            mixed += [] if "--dry_run" in mixed else ["--dry_run"]  # never train
        return Case(tuple(mixed))
    if kind < 0.85:
        stored = json.dumps({"schema": SCHEMA, "scores_from": 0, **dataclasses.asdict(Config())})
        run = f"--workdir={place / 'run'}"
        return Case((*arguments, run, *overrides[:1]), stored=_mutated(stored, draw))
    lines = "\n".join(_assignment(override) for override in overrides)
    text = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    c = ConfigDict()\n"
    text += f"{lines}\n    return c\n"
    if draw.random() < 0.5:
        text = _mutated(text, draw)
    return Case((f"--config={place / 'recipe.py'}", *arguments[1:]), recipe=text)


def _override(draw: np.random.Generator, place: pathlib.Path) -> str:
    known = settings()
    key = str(draw.choice(sorted(known)))
    value = _value(draw, known[key], place)
    if draw.random() < 0.05:
        key = _mutated(key, draw)
    return f"--config.{key}={value}"


def _value(draw: np.random.Generator, field: dataclasses.Field, place: pathlib.Path) -> str:
    """Draw the text of a value: usually of the type of the setting."""
    allowed = [*field.metadata["rule"].schema.get("enum", ()), *field.metadata.get("registry", ())]
    if allowed and draw.random() < 0.7:
        return str(allowed[int(draw.integers(len(allowed)))])
    pools = {int: NUMBERS, float: NUMBERS, tuple: TUPLES, bool: ("True", "False", "2", "maybe")}
    own: Sequence[str] = pools.get(cast(type, field.type), TEXTS)
    pool = own if draw.random() < 0.8 else (*NUMBERS, *TEXTS, *TUPLES)
    value = str(pool[int(draw.integers(len(pool)))])
    if draw.random() < 0.05:
        value = _mutated(value, draw)
    if field.type is str and draw.random() < 0.2:
        return f"{place}/absent/{value.replace('..', '')}"
    # Never a path outside of the temporary folder.
    return value.lstrip("/~").replace("../", "")


def _assignment(override: str) -> str:
    """Return the line of a configuration file that sets what an override sets."""
    key, _, value = override.removeprefix("--config.").partition("=")
    section, _, name = key.partition(".")
    return f"    c.{section} = ConfigDict({{{name!r}: {value if value[:1] in '([0123456789-' else repr(value)}}})"


def _mutated(text: str, draw: np.random.Generator) -> str:
    """Cut, repeat, insert or exchange characters; never put a slash or a tilde in."""
    if not text:
        return text
    at, end = sorted(int(place) for place in draw.integers(0, len(text) + 1, 2))
    odd = str(
        draw.choice([*"\"'{}[](),:=0-9aZ\\\n\t ", "\x00", "é", "1e999", "NaN", "null", "true"])
    )
    choices = (
        text[:at] + text[end:],
        text[:at],
        text[:at] + odd + text[at:],
        text[:at] + odd + text[at + 1 :],
        text[:end] + text[at:end] * 2 + text[end:],
    )
    return choices[int(draw.integers(len(choices)))]


if __name__ == "__main__":
    sys.exit(main())
