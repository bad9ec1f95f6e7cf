"""Check whether two revisions of this repository train to the same bits.

python -m benchmarks.lab.same_bits --before 1a2b3c4 --after HEAD

Checks out each revision and trains the small configurations of same_bits_cases.py on the CPU. A case is equal if
every array of the last checkpoint has the same shape and CRC-32, and every record has the same loss and top-1.
Arrays are compared by name. If the revisions name them differently, shapes and checksums are compared in any order,
and a changed order is reported. `--after .` takes the working tree as it is. Prints a line per case, and exits with
1 if a case differs or fails. Takes about seven minutes on two idle cores.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import app
from benchmarks.arguments import folder
from benchmarks.lab.same_bits_cases import CASES, COMMON, FORMER, NEWEST, RENAMED, RUN, Case
from flax_resnet.errors import ConfigError, OutputError, writing

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "configs/resnet18.py"
KEYS = f"""
import json, runpy
print(json.dumps(runpy.run_path({CONFIG!r})["get_config"]().to_dict()))
"""
AT_ONCE = 2


class RunFailed(Exception):
    """A run failed."""


class Array(NamedTuple):
    """An array of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    crc: int


class End(NamedTuple):
    """The result of a run: the arrays of its last checkpoint, and the numbers of its records."""

    arrays: list[Array]
    records: list[tuple]


class Verdict(NamedTuple):
    """Whether two results are equal, and the details."""

    equal: bool
    words: str


class Revision(NamedTuple):
    """A checkout, the folder for its runs and data, and the settings that it knows (`keys`)."""

    tree: pathlib.Path
    runs: pathlib.Path
    keys: frozenset[str]


@app.command
def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and return the exit code."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--before", type=commit, required=True, help="a commit, or . for the working tree"
    )
    parser.add_argument(
        "--after", type=commit, default="HEAD", help="a commit or . (default: HEAD)"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--folder", type=folder, help="new or empty folder to keep the runs in")
    args = parser.parse_args(argv)
    if args.folder and args.folder.exists() and any(args.folder.iterdir()):
        raise ConfigError(
            "holds something", key="--folder", value=args.folder, allowed="new or empty"
        )
    with contextlib.ExitStack() as stack:
        place = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        place = pathlib.Path(place).resolve()
        before, after = (
            stack.enter_context(checked_out(name, place / side))
            for side, name in (("before", args.before), ("after", args.after))
        )
        began, verdicts = time.perf_counter(), []
        for name, verdict in compare(before, after, args.cases):
            equal = f"equal      {name}  ({verdict.words})"
            print(equal if verdict.equal else f"DIFFERENT  {name}: {verdict.words}", flush=True)
            verdicts.append(verdict.equal)
        print(f"{sum(verdicts)} of {len(verdicts)} equal, {time.perf_counter() - began:.0f} s")
    return 0 if all(verdicts) else 1


def commit(text: str) -> str:
    """Read the name of a commit, or "." for the working tree; return the commit's hash, or "."."""
    if text == ".":
        return text
    command = ["git", "-C", str(ROOT), "rev-parse", "--quiet", "--verify", text + "^{commit}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        words = "a revision of this repository, or . for the working tree"
        raise argparse.ArgumentTypeError(f"{text}: must be {words}") from None


@contextlib.contextmanager
def checked_out(name: str, place: pathlib.Path) -> Iterator[Revision]:
    """Check out a revision in a git worktree, and remove it at the end; "." yields the working tree itself."""
    tree, git = place / "tree", ["git", "-C", str(ROOT), "worktree"]
    with writing(place):
        place.mkdir(parents=True)
    if name == ".":
        tree = ROOT
    else:
        command = [*git, "add", "--quiet", "--detach", str(tree), name]
        if subprocess.run(command).returncode:
            raise OutputError(f"git cannot check out {name}; its own message is above", key=place)
    try:
        yield Revision(tree, place, frozenset(known_keys(tree)))
    finally:
        if tree != ROOT:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def known_keys(tree: pathlib.Path) -> Iterator[str]:
    """Yield the dotted keys of the settings of a checkout."""
    command = [sys.executable, "-c", KEYS]
    listed = subprocess.run(
        command, cwd=tree, env=environment(tree), capture_output=True, text=True
    )
    if listed.returncode:
        said = listed.stderr.strip().rpartition("\n")[2]
        raise ConfigError(
            f"cannot be read: {said}", key=tree / CONFIG, cure="name a later revision"
        )
    yield from dotted(json.loads(listed.stdout))


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of nested mappings, such as train.steps."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def environment(tree: pathlib.Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a process that imports a checkout and computes on the CPU."""
    return {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu", **(extra or {})}


def compare(
    before: Revision, after: Revision, names: Sequence[str]
) -> Iterator[tuple[str, Verdict]]:
    """Train the cases in both revisions, two runs at a time; yield (case, verdict) in order."""
    futures: dict[tuple[Revision, str], concurrent.futures.Future[End]] = {}
    wanted = dict.fromkeys(n for name in names for n in (*CASES[name].needs(), name))
    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)

    def run(revision: Revision, name: str) -> End:
        for needed in CASES[name].needs():  # submitted before this run, so it ends
            futures[revision, needed].result()
        train(revision, name, CASES[name])
        return end_of(revision.runs / name)

    try:
        for name, revision in itertools.product(wanted, (before, after)):
            futures[revision, name] = pool.submit(run, revision, name)
        for name in wanted:
            try:
                ends = [futures[revision, name].result() for revision in (before, after)]
                yield name, judged(*ends)
            except RunFailed as error:
                yield name, Verdict(False, str(error))
    finally:
        pool.shutdown(cancel_futures=True)


def train(revision: Revision, name: str, case: Case) -> None:
    """Run a case to its end. Raises RunFailed."""
    run, log = revision.runs / name, revision.runs / f"{name}.log"
    command = [sys.executable, "-m", "flax_resnet.main", f"--config={CONFIG}"]
    command += ["--compilation_cache=off", f"--data_dir={revision.runs / 'data'}"]
    command += [f"--workdir={run}"]
    for key, value in named_in(revision.keys, {**COMMON, **case.settings}).items():
        if value is None:
            continue
        value = str(value)
        place = revision.runs / value.removeprefix(RUN) if value.startswith(RUN) else value
        command.append(f"--config.{key}={place}")
    code = run_command(command, revision, case, log, run if case.killed else None)
    if code:
        said = log.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
        raise RunFailed(f"{revision.runs.name}: {said[-1]}")


def run_command(
    command: list[str],
    revision: Revision,
    case: Case,
    log: pathlib.Path,
    killed_in: pathlib.Path | None,
) -> int:
    """Run a command and return its exit code.

    If `killed_in` is a run folder, kill the command after the first checkpoint in it, and run the command again.
    """
    variables = environment(revision.tree, case.environment)
    with log.open("w") as out:
        start: dict[str, Any] = {"cwd": revision.tree, "env": variables}
        start |= {"stdout": out, "stderr": out}
        if killed_in is None:
            return subprocess.run(command, **start).returncode
        first = subprocess.Popen(command, **start)
        while first.poll() is None and not steps_of(killed_in):
            time.sleep(0.01)
        first.kill()  # SIGKILL, which a process cannot catch
        code = first.wait()
        if code == 0:
            raise RunFailed(f"{revision.runs.name}: the run ended before it was killed")
        return code if code > 0 else subprocess.run(command, **start).returncode


def named_in(known: frozenset[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a revision knows them: the current ones, or those of `FORMER` and `RENAMED`."""
    pairs: Iterable[tuple[str, Any] | None] = settings.items()
    if NEWEST not in known:
        pairs = [FORMER.get(pair, pair) if pair[1].__hash__ else pair for pair in settings.items()]
        if (
            "model.name" in settings
        ):  # the stem of the recipe's network would be an option of this one
            pairs = [("model.stem", ""), ("model.depths", ()), *pairs]
    return {
        pair[0] if pair[0] in known else RENAMED.get(pair[0], pair[0]): pair[1]
        for pair in pairs
        if pair
    }


def steps_of(run: pathlib.Path) -> list[int]:
    """Return the steps whose checkpoints are complete."""
    names = (file.name for file in (run / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def end_of(run: pathlib.Path) -> End:
    """Read the result of a run. Raises RunFailed if it has no checkpoint with checksums."""
    steps = steps_of(run)
    folder = run / "checkpoints" / str(steps[-1] if steps else "")
    for file in sorted(folder.glob("*/metadata")):
        about = json.loads(file.read_text())
        sums, shapes = value_under(about, "checksums"), value_under(about, "shapes")
        if sums and shapes:
            break
    else:
        raise RunFailed(f"{folder} holds no checksums")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    records = [tuple(r.get(k) for k in ("step", "split", "loss", "top1")) for r in lines]
    return End([Array(n, tuple(shapes[n]), crc) for n, crc in sums.items()], records)


def value_under(values: Any, key: str) -> dict[str, Any] | None:
    """Return the value of a key in nested dictionaries, at any depth; None if there is none."""
    if not isinstance(values, dict):
        return None
    inner = (value_under(value, key) for value in values.values())
    return values.get(key) or next(filter(None, inner), None)


def judged(before: End, after: End) -> Verdict:
    """Compare the results of two runs. Arrays are compared by name if both runs have the same names."""
    named = [{array.name: array[1:] for array in end.arrays} for end in (before, after)]
    bits = [list(arrays.values()) for arrays in named]
    if named[0].keys() == named[1].keys():
        same = named[0] == named[1]
    else:
        same = collections.Counter(bits[0]) == collections.Counter(bits[1])
    differences = []
    if not same:
        counts = " and ".join(str(n) for n in dict.fromkeys(map(len, bits)))
        differences.append(f"of {counts} arrays: {first_of(odd_names(*named))}")
    if before.records != after.records:
        pairs = itertools.zip_longest(before.records, after.records)
        odd = [f"{a or 'none'} -> {b or 'none'}" for a, b in pairs if a != b]
        differences.append(f"records: {first_of(odd, 1)}")
    if differences:
        return Verdict(False, "; ".join(differences))
    return Verdict(True, f"{len(bits[0])} arrays" + ", in another order" * (bits[0] != bits[1]))


def odd_names(before: dict[str, tuple], after: dict[str, tuple]) -> list[str]:
    """Return the names of the arrays that differ.

    Arrays are paired by name if both runs have the same names, or by position if they have the same number of
    arrays. Otherwise, an array differs if the other run has no array with its shape and checksum.
    """
    if before.keys() == after.keys():
        return [name for name in before if before[name] != after[name]]
    if len(before) == len(after):
        pairs = zip(before.items(), after.items(), strict=True)
        return [name for (name, a), (_, b) in pairs if a != b]
    lost = [name for name, bits in before.items() if bits not in after.values()]
    return lost + [name for name, bits in after.items() if bits not in before.values()]


def first_of(items: list[str], most: int = 3) -> str:
    """Join the first `most` items, and say how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


if __name__ == "__main__":
    sys.exit(main())
