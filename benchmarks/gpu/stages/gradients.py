"""Are the gradients right on this device? Compares one network of each structure with float64 on the CPU.

Every network is differentiated up to six times for the same weights and images: in float64 with XLA's own
operations on the CPU (the reference), and in float32 and bfloat16 on the device, each in the usual form (XLA's own
operations) and in the package's form. In bfloat16, networks with 1x1 convolutions that can be collapsed are
differentiated with all of them collapsed, too; by default, only those of large maps are. The package's forms may be
only a little further from the reference than the usual form.
No distance is 0, because rounding flips some ReLUs and maxima.
"""

import concurrent.futures
import os
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.pool import each
from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder

CLASSES = 10
# Limit of the package's distance to float64 / the usual form's distance. A larger ratio is a bug, not rounding.
ALLOWED_RATIO = {"float32": 3.0, "bfloat16": 1.5}
COLLAPSED = "bfloat16, collapsed"
# Distances below this are rounding, whatever their ratio.
ROUNDING = {
    "statistics": {"float32": 1e-5, "bfloat16": 1e-3},
    "gradient": {"float32": 1e-4, "bfloat16": 1e-3},
}


class Case(NamedTuple):
    """A network that is differentiated.

    Attributes:
      model: a name of `flax_resnet.list_models()`.
      options: keyword arguments of `create_model`.
      image_size: pixels.
      batch_size: images.
      draws: number of random batches. Distances are medians over them, because one flipped ReLU changes a float32
        gradient by up to 3e-4 (seresnet50 with one block per stage, 96 px).
    """

    model: str
    options: dict[str, Any]
    image_size: int
    batch_size: int = 16
    draws: int = 3


FOUR, THREE = {"depths": (1, 1, 1, 1)}, {"depths": (1, 1, 1)}
# The slowest cases start first, so that all workers end at about the same time. With batch statistics, the last
# feature map has at least 64 values per channel. A float64 reference takes at most 6 s on two idle cores.
CASES = {
    "resnet50": Case("resnet50", {}, 96, 8, draws=2),
    "ghost batch normalisation": Case(
        "resnet50", {**FOUR, "norm_scope": "ghost", "norm_groups": 2}, 64, 32, draws=2
    ),
    "blur": Case("resnetblur50", FOUR, 64),
    "pre-activation": Case("resnetv2_50", FOUR, 64),
    "squeeze-and-excitation": Case("seresnet50", FOUR, 64),
    "grouped convolutions": Case("resnext50_32x4d", FOUR, 64),
    "ResNet-RS": Case("resnetrs50", FOUR, 64),
    "tiered stem": Case("resnet50t", FOUR, 64),
    "ECA, deep stem": Case("ecaresnet50d", FOUR, 64),
    "BiT, weight standardisation": Case("resnetv2_50x1_bit", FOUR, 64, 8),
    "group normalisation": Case("resnet50_gn", FOUR, 64, 8),
    "basic blocks": Case("resnet18", FOUR, 64),
    "average anti-aliasing": Case("resnetaa50d", FOUR, 64),
    "EvoNorm": Case("resnetv2_50d_evos", FOUR, 64, 8),
    "FRN": Case("resnetv2_50d_frn", FOUR, 64, 8),
    "CIFAR, padded shortcuts": Case("resnet20", {}, 32),
    "dilated": Case("resnet50", {**FOUR, "output_stride": 8}, 64, 4),
    "airbench": Case("airbench94", {}, 32),
    "CIFAR, pre-activation": Case("preact164", THREE, 32),
}
TWO = {"depths": (1, 1), "widths": (8, 16)}
TINY_CASES = {
    "squeeze-and-excitation": Case("seresnet50", TWO, 32, 8),
    "CIFAR, padded shortcuts": Case("resnet20", THREE, 32, 8),
}


class Distances(NamedTuple):
    """Relative distances to float64, as medians over the draws. A key is "dtype, form", such as "bfloat16, usual".

    Attributes:
      gradient: distances of the gradient.
      statistics: distances of the batch statistics; empty if the network has none.
    """

    gradient: dict[str, float]
    statistics: dict[str, float]


def drawn_variables(model: Any, image_size: int) -> dict[str, Any]:
    """Draw float64 weights and statistics with NumPy, which saves compiling an initialization."""
    import jax
    import jax.numpy as jnp

    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    draw = np.random.default_rng(0)

    def fill(leaf: Any) -> np.ndarray:
        if len(leaf.shape) < 2:  # includes scales and variances, which must be above 0
            return draw.uniform(0.5, 1.5, leaf.shape)
        fan_in = np.prod(leaf.shape[:-1])
        return draw.normal(size=leaf.shape) * np.sqrt(2 / fan_in)

    return jax.tree.map(fill, {"batch_stats": {}, **shapes})


def traced(case: Case, dtype: str, form: str, device: Any, variables: Any) -> tuple[Any, list]:
    """Return the lowered gradient of a case, and a list with the arguments of each draw."""
    import jax

    from benchmarks.speed.workloads import configured
    from flax_resnet.models import create_model
    from flax_resnet.training.step.training_loss import LossInputs, make_loss

    os.environ["FLAX_RESNET_OPS"] = "plain" if form == "usual" else "auto"
    options = case.options | {"collapse": "on"} if form == "collapsed" else case.options
    model = create_model(case.model, num_classes=CLASSES, dtype=dtype, **options)
    config = configured(case.model, case.image_size, case.batch_size, dtype="float32")
    loss = make_loss(config, model)

    def gradient(params: Any, batch_stats: Any, images: Any, targets: Any) -> tuple[Any, Any]:
        weight, key = float(case.batch_size), jax.random.key(0)
        inputs = LossInputs(batch_stats, images, targets, weight, key)
        grads, (_, new) = jax.grad(loss, has_aux=True)(params, inputs)
        return grads, new

    def arguments(seed: int) -> tuple:
        draw = np.random.default_rng(seed)
        images = draw.normal(size=(case.batch_size, case.image_size, case.image_size, 3))
        targets = np.eye(CLASSES)[draw.integers(0, CLASSES, case.batch_size)]
        values = (variables["params"], variables["batch_stats"], images, targets)
        wide = "float64" if dtype == "float64" else "float32"
        return jax.device_put(jax.tree.map(lambda leaf: leaf.astype(wide), values), device)

    draws = [arguments(seed) for seed in range(case.draws)]
    return jax.jit(gradient).lower(*draws[0]), draws


def _can_collapse(case: Case) -> bool:
    """Return whether the network has 1x1 convolutions that can be collapsed."""
    from flax_resnet.errors import ConfigError
    from flax_resnet.models import create_model

    try:
        create_model(case.model, **case.options, collapse="on")
    except ConfigError:
        return False
    return True


def compare(case: Case) -> Distances:
    """Differentiate a case in every dtype and form, and return the distances to float64."""
    import jax

    from flax_resnet.models import create_model

    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    model = create_model(case.model, num_classes=CLASSES, **case.options)
    variables = drawn_variables(model, case.image_size)
    with jax.enable_x64(True):
        reference = traced(case, "float64", "usual", cpu, variables)
    # Do not use TF32, which has only 10 bits of mantissa: the comparison is for float32.
    with jax.default_matmul_precision("float32"):
        programs = {
            f"{dtype}, {form}": traced(case, dtype, form, device, variables)
            for dtype in ALLOWED_RATIO
            for form in ("usual", "ours")
        }
        if _can_collapse(case):
            programs[COLLAPSED] = traced(case, "bfloat16", "collapsed", device, variables)
    with concurrent.futures.ThreadPoolExecutor(6) as threads:  # XLA compiles in parallel
        compiled = list(threads.map(lambda one: one[0].compile(), [reference, *programs.values()]))
    with jax.enable_x64(True):
        exact = [jax.device_get(compiled[0](*draw)) for draw in reference[1]]
    gradient: dict[str, float] = {}
    statistics: dict[str, float] = {}
    for (name, (_, draws)), program in zip(programs.items(), compiled[1:], strict=True):
        ours = [jax.device_get(program(*draw)) for draw in draws]
        parts = [(gradient, 0)] + ([(statistics, 1)] if variables["batch_stats"] else [])
        for distances, part in parts:
            pairs = zip(ours, exact, strict=True)
            distances[name] = median(distance(a[part], b[part]) for a, b in pairs)
    return Distances(gradient, statistics)


def distance(ours: Any, exact: Any) -> float:
    """Return |ours - exact| / |exact|, with the Euclidean norm over all leaves of a tree."""
    import jax

    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True)
    squares = [
        (np.sum((np.float64(a) - np.float64(b)) ** 2), np.sum(np.float64(b) ** 2)) for a, b in pairs
    ]
    difference, norm = map(sum, zip(*squares, strict=True))
    return float(np.sqrt(difference / norm))


def measure(recorder: Recorder, tiny: bool) -> None:
    """Compare every case, several at a time if the machine has many cores."""
    cases = {
        name: case
        for name, case in (TINY_CASES if tiny else CASES).items()
        if not recorder.has(f"{name}: gradient in bfloat16")
    }
    # Tracing is Python and uses one thread per process. On 16 cores, five cases run at a time.
    workers = max(1, min(5, (os.cpu_count() or 1) // 3))
    for name, future in each(compare, cases, workers):
        with recorder.attempt(name):
            report(recorder, name, future.result())


def report(recorder: Recorder, name: str, distances: Distances) -> None:
    """Record the checks of a case; the gradient in bfloat16 comes last, in all forms."""
    for what, found in (("statistics", distances.statistics), ("gradient", distances.gradient)):
        for form in found:
            dtype, _, kind = form.partition(", ")
            if kind == "usual":
                continue
            usual = found[f"{dtype}, usual"]
            recorder.check(
                f"{name}: {what} in {dtype}" + (", collapsed" if form == COLLAPSED else ""),
                found[form],
                max(ROUNDING[what][dtype], ALLOWED_RATIO[dtype] * usual),
                f"relative distance to float64; XLA's own operations have {usual:.2g}",
            )


if __name__ == "__main__":
    run_stage("gradients", measure)
