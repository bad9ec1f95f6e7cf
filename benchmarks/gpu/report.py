"""The report of a folder of records: as text for the terminal, and as one HTML page without a script."""

import html
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.gpu.compare import Change, changes
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import DONE, NOT_RUN, SKIPPED, Check, Measurement, StageRecord

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .2rem }} p {{ margin: .3rem 0 }}
table {{ border-collapse: collapse; width: 100%; margin: .5rem 0 }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top }}
th {{ font-weight: 600; color: #555 }} td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
th.number {{ text-align: right }} .quiet {{ color: #777 }}
.good {{ color: #17692f }} .bad {{ color: #b3261e; font-weight: 600 }}
.bar {{ background: #7aa6d8; height: .7rem; min-width: 1px }} td.bars {{ width: 26% }}
</style>
<h1>{title}</h1>
{body}
"""


class Report(NamedTuple):
    """The contents of a report.

    Attributes:
      machine: the machine of all measurements.
      stages: records of the stages, in order.
      former: machine and stages of an earlier record to compare with; None for no comparison.
    """

    machine: Machine
    stages: list[StageRecord]
    former: tuple[Machine, list[StageRecord]] | None = None

    @property
    def changes(self) -> dict[tuple[str, str], Change]:
        """The changes since the former record, by stage and measurement."""
        return changes(self.stages, self.former[1]) if self.former else {}

    @property
    def facts(self) -> list[str]:
        """The lines on the machine, the versions and the former record."""
        known = self.machine.environment
        rows = [
            f"{self.machine}{', tiny sizes: a rehearsal' if self.machine.tiny else ''}",
            f"processor {known['cpu']}, {known['cores']} cores; commit {known['commit'] or 'unknown'}",
            _versions(known["versions"]),
        ]
        rows += _differences("commit", {one.stage: one.commit for one in self.stages})
        rows += _differences(
            "versions", {one.stage: _versions(one.versions) for one in self.stages}
        )
        return rows + (self._compared(self.former[0]) if self.former else [])

    def _compared(self, former: Machine) -> list[str]:
        """Return a line that names the former record, and warnings if its speeds are not comparable."""
        rows = [f"compared with {former}, commit {former.environment['commit'] or 'unknown'}"]
        if former.device != self.machine.device:
            rows.append("the former record is of another machine: its speeds are not comparable")
        if former.tiny != self.machine.tiny:
            rows.append("the former record is of other sizes: its speeds are not comparable")
        return rows


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items() if number)


def _differences(what: str, found: Mapping[str, str]) -> list[str]:
    """Return one line that lists the stages of each value; no line if all values are equal. Skip empty values."""
    stages: dict[str, list[str]] = {}
    for stage, value in found.items():
        if value:
            stages.setdefault(value, []).append(stage)
    if len(stages) < 2:
        return []
    groups = [f"{', '.join(names)}: {value}" for value, names in stages.items()]
    return [f"stages differ in {what}: {'; '.join(groups)}"]


def as_text(report: Report) -> str:
    """Return the report for a terminal."""
    lines, since = list(report.facts), report.changes
    for stage in report.stages:
        lines += ["", f"{stage.stage}: {stage.state}, {stage.seconds:.0f} s. {stage.summary()}"]
        for check in stage.checks:
            verdict = "passed" if check.passed else "FAILED"
            lines.append(f"  {verdict} {check.name:46}{check.value:10.3g} limit {check.limit:.3g}")
        for one in stage.measurements:
            change = since.get((stage.stage, one.name))
            text = f"{change.ratio:6.3f} {change.verdict}" if change else ""
            row = f"  {one.name:40}{one.median:12.5g} {one.unit:9}{one.spread:22}{text}"
            lines.append(row.rstrip())
        lines += [f"  FAILED {failure.name}: {failure.reason}" for failure in stage.failures]
    return "\n".join(lines)  # fmt: skip


def as_html(report: Report) -> str:
    """Return the report as a page."""
    head = "".join(f"<p class=quiet>{html.escape(line)}</p>" for line in report.facts)
    rows = "".join(
        f"<tr><td><a href='#{stage.stage}'>{stage.stage}</a><td>{_state(stage)}"
        f"<td class=number>{stage.seconds:.0f} s<td>{html.escape(stage.summary())}"
        for stage in report.stages
    )
    table = f"<table><tr><th>stage<th>state<th class=number>time<th>result{rows}</table>"
    since = report.changes
    parts = [_stage(stage, since) for stage in report.stages]
    title = html.escape(f"Measured on {report.machine}")
    return PAGE.format(title=title, body=head + table + "".join(parts))


def _state(stage: StageRecord) -> str:
    faulty = stage.failures or not all(one.passed for one in stage.checks)
    tone = (
        "quiet" if stage.state in (SKIPPED, NOT_RUN) else "good" if stage.state == DONE else "bad"
    )
    return f"<span class={'bad' if faulty else tone}>{stage.state}</span>"


def _stage(stage: StageRecord, since: Mapping[tuple[str, str], Change]) -> str:
    parts = [f"<h2 id='{stage.stage}'>{stage.stage}</h2><p>{html.escape(stage.question)}</p>"]
    parts += [f"<p class=bad>{html.escape(f'{one.name}: {one.reason}')}</p>" for one in stage.failures]  # fmt: skip
    if stage.reason:
        parts.append(f"<p class=quiet>{html.escape(stage.reason)}</p>")
    if stage.checks:
        head = "<tr><th>check<th><th class=number>value<th class=number>limit<th>"
        parts.append(f"<table>{head}{''.join(map(_check, stage.checks))}</table>")
    for unit in dict.fromkeys(
        one.unit for one in stage.measurements
    ):  # one table per unit, so bars are comparable
        group = [one for one in stage.measurements if one.unit == unit]
        parts.append(_measurements(stage.stage, unit, group, since))
    return "".join(parts)


def _check(check: Check) -> str:
    verdict = "<span class=good>passed</span>" if check.passed else "<span class=bad>FAILED</span>"
    return (
        f"<tr><td>{html.escape(check.name)}<td>{verdict}<td class=number>{check.value:.3g}"
        f"<td class=number>{check.limit:.3g}<td class=quiet>{html.escape(check.note)}"
    )


def _measurements(
    stage: str, unit: str, group: list[Measurement], since: Mapping[tuple[str, str], Change]
) -> str:
    longest = max(one.median for one in group) or 1.0
    compared = any((stage, one.name) in since for one in group)
    head = f"<tr><th>measured<th class=number>{html.escape(unit)}<th class=number>min to max<th>"
    head += "<th class=number>before<th class=number>ratio<th>" if compared else ""
    rows = []
    for one in group:
        row = (
            f"<tr><td>{html.escape(one.name)}<td class=number>{one.median:,.5g}"
            f"<td class='number quiet'>{one.spread}"
            f"<td class=bars><div class=bar style='width:{100 * one.median / longest:.1f}%'></div>"
        )
        if change := since.get((stage, one.name)):
            tone = {"better": "good", "worse": "bad", "noise": "quiet"}[change.verdict]
            row += (
                f"<td class=number>{change.former:,.5g}<td class=number>{change.ratio:.3f}"
                f"<td class={tone}>{change.verdict}"
            )
        rows.append(row)
    return f"<table>{head}{''.join(rows)}</table>"
