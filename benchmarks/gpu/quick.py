"""The stages of --quick: the questions that a few minutes with a GPU should answer, the most important first.

A new stage is a module in stages/ and a row here. The time limits of all stages except the last add up to eight
minutes. A stage that ends early leaves its time to the later ones.
"""

from benchmarks.gpu.stage import Stage

SECONDS = 480.0
PIPELINE = ("tensorflow", "tensorflow_datasets", "clu", "ml_collections")
# Several processes share the GPU. By default, each JAX process would preallocate three quarters of its memory.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# XLA must choose the kernels of each variant again, not reuse its choice for another variant.
CHOSEN_ANEW = {"JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}


def _stage(
    name: str,
    question: str,
    seconds: float,
    environment: dict[str, str] | None = None,
    packages: tuple[str, ...] = (),
) -> Stage:
    command = (f"benchmarks.gpu.stages.{name}",)
    return Stage(name, question, seconds, command, packages, environment or {})


STAGES = (
    _stage("gradients", "Are gradients and batch statistics right?", 95, SHARED),
    _stage("collapsed_sums", "Are long sums over pixels right?", 15),
    _stage("augmentation", "Does the device augment to the same bits as the CPU?", 20),
    _stage("resume", "Does a killed and resumed run end with the same bits?", 60),
    _stage("step", "How fast is ResNet-50's step, compared with torch.compile?", 100, SHARED),
    _stage("profile", "Where do the step's milliseconds go?", 35),
    _stage("variants", "What do switches and XLA's options change?", 105, CHOSEN_ANEW),
    _stage("networks", "How fast are other networks and inference?", 50),
    _stage(
        "resume_main", "Does the main command resume with the same bits?", 90, packages=PIPELINE
    ),
)
