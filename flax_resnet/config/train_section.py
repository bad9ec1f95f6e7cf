"""The train section: batches, length, evaluations, checkpoints."""

import dataclasses

from flax_resnet.optim.evaluation_metrics import METRICS
from flax_resnet.settings import (
    MICROBATCH,
    Section,
    above,
    all_of,
    at_least,
    choice,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Train(Section):
    """The settings of the training loop."""

    batch_size: int = setting(128, at_least(1), "global batch size, over all devices")
    epochs: int = setting(
        10, within(1, 10**6), "passes over the data; a larger value extends a finished run"
    )
    steps: int = setting(0, at_least(0), "length of the run in updates; 0 to use train.epochs")
    seed: int = setting(
        0, within(0, 2**31 - 1), "seed of weights, data order, augmentation and dropout"
    )
    matmul_precision: str = setting(
        "default",
        one_of("default", "tf32", "float32"),
        "precision of float32 matrix products and convolutions on GPU and TPU; default is the setting of JAX",
    )
    eval_batch_size: int = setting(
        0,
        within(0, 2**20),
        "images per evaluation step; 0 for train.batch_size",
        changes_result=False,
    )
    monitor: str = choice(
        "top1",
        METRICS,
        "metric that selects the best checkpoint and drives early stopping",
        changes_result=False,
    )
    early_stopping: int = setting(
        0,
        at_least(0),
        "end the run after this many evaluations without a new best; 0 for never",
        changes_result=False,
    )
    gradient_dtype: str = setting(
        "float32",
        one_of("float32", "bfloat16"),
        "dtype in which devices sum gradients; bfloat16 halves the traffic and needs model.norm_scope=local",
    )
    microbatch_size: str = setting(
        "whole",
        MICROBATCH,
        "images per forward and backward pass: whole is the batch, auto is the largest size that fits in memory",
    )
    sharding: str = setting(
        "replicated",
        one_of("replicated", "optimizer"),
        "state on each device: all of it (replicated); or the weights, and a share of the optimizer state and of "
        "their moving average, which takes less memory (optimizer)",
        changes_result=False,
    )
    log_every: int = setting(
        10, at_least(1), "steps between training records", changes_result=False
    )
    eval_every: float = setting(
        1.0,
        above(0),
        "epochs between evaluations; the last step is always evaluated",
        changes_result=False,
    )
    checkpoint_every: float = setting(
        1.0,
        above(0),
        "epochs between checkpoints; the last step is always saved",
        changes_result=False,
    )
    prefetch: int = setting(
        2,
        at_least(1),
        "number of calls of the compiled step whose batches are placed on the device in advance",
        changes_result=False,
    )
    feed: str = setting(
        "auto",
        one_of("auto", "streaming", "resident"),
        "streaming decodes the images anew in each epoch; resident keeps the decoded split on the device; auto is "
        "resident for splits of at most resident_gib without random crops",
        changes_result=False,
    )
    resident_gib: float = setting(
        1.0,
        at_least(0),
        "largest decoded split, in GiB, that feed=auto keeps on the device",
        needs=all_of(feed="auto"),
        changes_result=False,
    )
    steps_per_call: int = setting(
        1,
        at_least(1),
        "updates per call of the compiled step (a loop on GPU and TPU, unrolled on CPU); a run saves and stops "
        "only between calls",
        changes_result=False,
    )
