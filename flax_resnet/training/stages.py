"""The stages of the training loop: the names of their spans in a profile.

The host waits for a batch ("input"), dispatches the step ("dispatch"), and waits for results ("step"). On GPU it
waits for the results of the previous call, so the device's time appears in "step". On CPU it waits for the results
of the same call, and the time appears in "dispatch" or "step".
"""

INPUT, DISPATCH, STEP, RECORDS, EVALUATION, CHECKPOINT = STAGES = (
    "input",
    "dispatch",
    "step",
    "records",
    "evaluation",
    "checkpoint",
)
