"""The settings of the run: batches, length, evaluations, checkpoints."""

import dataclasses

from flax_resnet.settings import (
    MICROBATCH,
    above,
    at_least,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Train:
    """The run."""

    batch_size: int = setting(128, at_least(1), "images per step, over all devices")
    epochs: int = setting(10, within(1, 10**6), "passes over the data; more of them extend a run")
    steps: int = setting(
        0, at_least(0), "updates of the run, in place of epochs; 0 for those of the epochs"
    )
    seed: int = setting(0, within(0, 2**31 - 1), "of weights, order and augmentation")
    matmul_precision: str = setting(
        "default", one_of("default", "tf32", "float32"), "of float32 products on GPU and TPU"
    )
    eval_batch_size: int = setting(
        0, at_least(0), "images per evaluation step; 0 for batch_size", changes_result=False
    )
    monitor: str = setting(
        "top1",
        one_of("top1", "top5", "loss", "class_accuracy", "macro_f1", "ece"),
        "what the best checkpoint is the best of, and early stopping waits for",
        changes_result=False,
    )
    early_stopping: int = setting(
        0,
        at_least(0),
        "evaluations without a better one after which the run ends; 0 for never",
        changes_result=False,
    )
    gradient_dtype: str = setting(
        "float32",
        one_of("float32", "bfloat16"),
        "in which devices sum their gradients, with model.norm_scope=local: bfloat16 sends half as much",
    )
    microbatch_size: str = setting(
        "whole",
        MICROBATCH,
        "images whose gradient is computed at once; auto takes as many as memory holds",
    )
    log_every: int = setting(
        10, at_least(1), "steps between records of training", changes_result=False
    )
    eval_every: float = setting(
        1.0,
        above(0),
        "epochs between evaluations; the last step is always one",
        changes_result=False,
    )
    checkpoint_every: float = setting(
        1.0,
        above(0),
        "epochs between checkpoints; the last step is always one",
        changes_result=False,
    )
    prefetch: int = setting(
        2, at_least(1), "calls whose batches are placed on the device ahead", changes_result=False
    )
    feed: str = setting(
        "auto",
        one_of("auto", "streaming", "resident"),
        "resident keeps the decoded set on the device; auto does where it is small, and cut the same "
        "way every time",
        changes_result=False,
    )
    resident_gib: float = setting(
        1.0, at_least(0), "largest decoded split that feed=auto keeps, GiB", changes_result=False
    )
    steps_per_call: int = setting(
        1,
        at_least(1),
        "updates per call of the compiled step, between which nothing is saved or stopped: a loop on GPU and "
        "TPU, written out on CPU",
        changes_result=False,
    )
