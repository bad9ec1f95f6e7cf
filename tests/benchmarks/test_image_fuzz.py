"""The comparison of the two decoders on mutated files: a sample, and what it reports."""

import pytest

from benchmarks.lab import image_fuzz
from benchmarks.lab.image_fuzz import FAILURES, REFUSED, SAME, Outcome
from benchmarks.lab.image_fuzz_files import FORMATS, Mutated, originals


def test_a_sample_of_mutated_files_agrees():
    outcomes = list(image_fuzz.compare(range(250), 1))
    assert [outcome.number for outcome in outcomes] == list(range(250))
    verdicts = [outcome.verdict for outcome in outcomes]
    assert verdicts.count(SAME) > 40
    assert verdicts.count(REFUSED) > 40
    assert not {*verdicts} & {*FAILURES}
    assert sum(verdict not in (SAME, REFUSED) for verdict in verdicts) <= 1


def test_prediction_reads_every_original():
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.images import prepare

    files = originals()
    assert tuple(files) == FORMATS
    for kind in FORMATS:
        prepare([encoded for _, encoded in files[kind]], Data(image_size=16))  # none is refused


def test_files_are_functions_of_number_and_seed():
    files = originals()
    once, again, other = (
        [Mutated.numbered(number, seed, files) for number in range(40)] for seed in (0, 0, 1)
    )
    assert once == again
    assert once != other
    assert {case.format for case in once} == {*FORMATS}


@pytest.mark.parametrize(
    ("error", "verdict"), [(RuntimeError("odd"), "exception"), (MemoryError(), "exception")]
)
def test_an_unexpected_exception_is_an_outcome(monkeypatch, error, verdict):
    from flax_resnet.data import images

    def prepare(files, data):
        raise error

    monkeypatch.setattr(images, "prepare", prepare)
    (outcome,) = image_fuzz.compare(range(1), 0)
    assert outcome.verdict == verdict
    assert type(error).__name__ in outcome.reason


def test_files_that_differ_are_listed_and_fail_the_command(monkeypatch, capsys):
    def outcomes(count, seed):
        yield from (Outcome(n, "PNG", SAME, "L", "bit", "") for n in range(count - 1))
        yield Outcome(count - 1, "PNG", "crash", "L", "cut", "")

    monkeypatch.setattr(image_fuzz, "in_children", outcomes)
    assert image_fuzz.main(["--count=2000"]) == 1
    assert "crash 1" in capsys.readouterr().out
    result = image_fuzz.summary(list(outcomes(3, 0)))
    assert result["agree"] == pytest.approx(2 / 3)
    assert [other["number"] for other in result["others"]] == [2]
