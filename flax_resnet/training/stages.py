"""The stages of a run's wall time, and the spans of the training loop in a profile.

Stages: the ledger is always in exactly one of them (ledger.py). `LOST` is computed afterwards
(runs/time_account.py).

Spans: the host waits for a batch ("input"), dispatches the step ("dispatch"), and waits for results ("step"). On
GPU it waits for the results of the previous call, so the device's time appears in "step". On CPU it waits for the
results of the same call, and the time appears in "dispatch" or "step".
"""

STEPPING, COMPILING, WAITING, EVALUATING, SAVING, PREPARING, OTHER = LEDGER_STAGES = (
    "stepping",
    "compiling",
    "input",
    "evaluating",
    "saving",
    "preparing",
    "other",
)
LOST = "lost to restarts"
# What `images_per_second` of a record measures; the rest is no part of training.
TRAINING = (STEPPING, WAITING, OTHER)

INPUT, DISPATCH, STEP, RECORDS, EVALUATION, CHECKPOINT = STAGES = (
    "input",
    "dispatch",
    "step",
    "records",
    "evaluation",
    "checkpoint",
)
# {span: the stage that its time belongs to}.
STAGE_OF = {
    INPUT: WAITING,
    DISPATCH: STEPPING,
    STEP: STEPPING,
    RECORDS: OTHER,
    EVALUATION: EVALUATING,
    CHECKPOINT: SAVING,
}
