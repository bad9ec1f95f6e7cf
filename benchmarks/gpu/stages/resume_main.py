"""Does `flax_resnet.main` itself, killed and resumed, end with the bits of a run that was not disturbed?

Trains on the digits. Needs what the input pipeline and the command need: TensorFlow, TFDS, clu, ml_collections.
"""

import pathlib
import shutil

from benchmarks.gpu.killed import checksums, differing, killed, undisturbed
from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder

TINY = ("--config.model.depths=(1,1)", "--config.model.widths=(8,16)")


def measure(recorder: Recorder, tiny: bool) -> None:
    """Checks that a killed run ends with the arrays of an undisturbed one."""
    folder = recorder.file.parents[1].resolve() / "resume_main"

    def command(workdir: pathlib.Path) -> list[str]:
        options = [f"--data_dir={folder / 'tfds'}", f"--compilation_cache={folder / 'compiled'}"]
        start = ["-m", "flax_resnet.main", "--config=configs/resnet18.py", f"--workdir={workdir}"]
        return [*start, *options, *(TINY if tiny else ())]

    with recorder.attempt("a killed run"):
        seconds = undisturbed(command, folder / "undisturbed")
        wanted = checksums(folder / "undisturbed")
        moment = killed(command, folder / "killed", 0.7 * seconds)
        note = f"of {len(wanted)} arrays differ; killed {moment:.2f} s after its first checkpoint"
        recorder.check("killed and resumed", differing(folder / "killed", wanted), 0, note)
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_stage("resume_main", measure)
