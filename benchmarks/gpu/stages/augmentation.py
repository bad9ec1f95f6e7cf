"""Does this device augment to the same bits as the CPU? Both run each operation with the same key and images."""

import concurrent.futures
import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder
from flax_resnet.augment import training_batch
from flax_resnet.augment.augment_section import Augment

CLASSES, ROWS, SIZE = 10, 64, 64
OPERATIONS: dict[str, dict[str, Any]] = {
    "normalisation": {},
    "pad and crop": {"pad_crop": 4},
    "pad and crop, reflected": {"pad_crop": 4, "pad_crop_fill": "reflect"},
    "mirror": {"flip": "horizontal"},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
    "saturation": {"saturation": 0.4},
    "hue": {"hue": 0.1},
    "RandAugment": {"policy": "randaugment"},
    "TrivialAugment": {"policy": "trivialaugment"},
    "random erasing": {"random_erasing": 0.5},
    "random erasing with noise": {"random_erasing": 0.5, "random_erasing_fill": "noise"},
    "cutout": {"cutout": 16},
    "mixup": {"mixup": 0.2},
    "CutMix": {"cutmix": 1.0},
    "mixup or CutMix, by element": {"mixup": 0.2, "cutmix": 1.0, "mix_mode": "element"},
}
TINY_OPERATIONS = ("pad and crop", "mirror", "mixup")


def augmented(settings: dict[str, Any], rows: int, device: Any) -> tuple[np.ndarray, np.ndarray]:
    """Augment on a device; return images [N, S, S, 3] and soft labels [N, K], both float32."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8)
    labels = draw.integers(0, CLASSES, rows).astype(np.int32)
    section = dataclasses.replace(Augment(), **settings)

    def augment(seed: jax.Array, images: jax.Array, labels: jax.Array) -> tuple:
        return training_batch(jax.random.key(seed), images, labels, CLASSES, section)

    return jax.device_get(jax.jit(augment)(*jax.device_put((np.int32(3), images, labels), device)))


def measure(recorder: Recorder, tiny: bool) -> None:
    """Check for each operation that the share of differing float32 values is 0."""
    names = [name for name in (TINY_OPERATIONS if tiny else OPERATIONS) if not recorder.has(name)]
    rows, devices = 8 if tiny else ROWS, (jax.devices()[0], jax.devices("cpu")[0])
    with concurrent.futures.ThreadPoolExecutor(8) as threads:  # most of the time is compilation
        waiting = {
            name: [threads.submit(augmented, OPERATIONS[name], rows, one) for one in devices]
            for name in names
        }
        for name, (device, cpu) in waiting.items():
            with recorder.attempt(name):
                pairs = list(zip(device.result(), cpu.result(), strict=True))
                odd = sum(int((a != b).sum()) for a, b in pairs)
                largest = max(float(np.abs(a - b).max()) for a, b in pairs)
                share = odd / sum(a.size for a, _ in pairs)
                recorder.check(
                    name, share, 0.0, f"share of differing values; largest difference {largest:.2g}"
                )


if __name__ == "__main__":
    run_stage("augmentation", measure)
