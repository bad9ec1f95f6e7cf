"""The page of a run, report.html: its contents, charts, images and template."""
