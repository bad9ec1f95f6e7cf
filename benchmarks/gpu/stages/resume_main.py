"""Does a killed and resumed run of `flax_resnet.main` end with the same bits as an undisturbed run?

Trains on the digits. Needs the packages that the command and its input pipeline use: TensorFlow, TFDS, clu and
ml_collections.
"""

import pathlib

from benchmarks.gpu.killed import check_killed, reference, remove_where_passed
from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder

TINY = ("--config.model.depths=(1,1)", "--config.model.widths=(8,16)")


def measure(recorder: Recorder, tiny: bool) -> None:
    """Check that a killed run ends with the arrays of an undisturbed run."""
    folder = recorder.file.parents[1].resolve() / "resume_main"

    def command(workdir: pathlib.Path) -> list[str]:
        options = [f"--data_dir={folder / 'tfds'}", f"--compilation_cache={folder / 'compiled'}"]
        start = ["-m", "flax_resnet.main", "--config=configs/resnet18.py", f"--workdir={workdir}"]
        start += ["--noreport"]
        return [*start, *options, *(TINY if tiny else ())]

    with recorder.attempt("an undisturbed run"):
        wanted = reference(recorder, command, folder / "undisturbed")
        with recorder.attempt("a killed run"):
            check_killed(recorder, command, folder, wanted)
        remove_where_passed(recorder, folder)


if __name__ == "__main__":
    run_stage("resume_main", measure)
