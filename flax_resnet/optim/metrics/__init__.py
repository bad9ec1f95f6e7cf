"""The metrics of an evaluation. A new file with `ROWS` adds metrics and choices of ``train.monitor``.

Metrics are printed in the order of their files.
"""
