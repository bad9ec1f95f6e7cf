"""The stages of --quick: what a few minutes with a GPU should answer, the most important first.

A new stage is a module in stages/ and a row here. The time limits, but for the last, add up to the eight minutes of
the whole; a stage that ends early leaves its time to the last ones.
"""

from benchmarks.gpu.stage import Stage

SECONDS = 480.0
PIPELINE = ("tensorflow", "tensorflow_datasets", "clu", "ml_collections")


def _stage(name: str, question: str, seconds: float, packages: tuple[str, ...] = ()) -> Stage:
    return Stage(name, question, seconds, (f"benchmarks.gpu.stages.{name}",), packages)


STAGES = (
    _stage("gradients", "Are gradients and batch statistics right?", 80),
    _stage("augmentation", "Does the device augment to the CPU's bits?", 30),
    _stage("resume", "Does a killed and resumed run end with the same bits?", 50),
    _stage("step", "How fast is ResNet-50's step beside torch.compile's?", 100),
    _stage("profile", "Where do the step's milliseconds go?", 40),
    _stage("variants", "What do switches and XLA's options change?", 110),
    _stage("networks", "How fast are other networks and inference?", 70),
    _stage("resume_main", "Does the main command resume with the same bits?", 90, PIPELINE),
)
