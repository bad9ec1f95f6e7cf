"""The stages of the training loop, by the names of their spans in a profile.

The host waits for a batch, hands the step to the device, and then waits for the results of the call before: that is
where a GPU's time shows. On a CPU it waits for those of the same call, and the time shows where the step is handed
over, or there.
"""

INPUT, DISPATCH, STEP, RECORDS, EVALUATION, CHECKPOINT = STAGES = (
    "input",
    "dispatch",
    "step",
    "records",
    "evaluation",
    "checkpoint",
)
