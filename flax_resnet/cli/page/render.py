"""The page of a run as one HTML text that needs no other file and no network."""

import importlib.metadata
import json
import math
import pathlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np

from flax_resnet.cli.page import charts
from flax_resnet.cli.page.cases import UNREADABLE, Cases
from flax_resnet.cli.page.run_report import COMMAND, RunReport
from flax_resnet.config import Config, flatten
from flax_resnet.inference.intervals import proportion_interval
from flax_resnet.inference.split_statistics import (
    BINS,
    NEIGHBOURS,
    SURE,
    Calibration,
    ClassScores,
    confusion_matrix,
)
from flax_resnet.training.runs.folder import SUMMARY
from flax_resnet.training.runs.time_account import clock
from flax_resnet.training.stages import (
    COMPILING,
    EVALUATING,
    LOST,
    OTHER,
    PREPARING,
    SAVING,
    STEPPING,
    WAITING,
)

MATRIX = 60  # largest number of classes of a confusion matrix
STAGE_WORDS = {
    STEPPING: "training steps, and the wait for their results",
    COMPILING: "tracing and compiling programs, or reading them from the cache",
    WAITING: "waiting for batches",
    EVALUATING: "evaluations",
    SAVING: "checkpoints: copies, checksums, and the wait for earlier ones",
    PREPARING: "start-up: imports, opening the data, reading a checkpoint",
    LOST: "steps that a later start did again, because a process ended after its last checkpoint",
    OTHER: "records and all else",
}
ROWS = 1000  # largest number of rows of the table of classes


def render(report: RunReport, cases: Cases, scores: ClassScores, calibration: Calibration) -> str:
    """Return the page. Texts of users are escaped."""
    import jinja2
    from markupsafe import Markup

    folder = resources.files("flax_resnet.cli.page")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": percent, "number": lambda n: f"{n:,}"}
    style, script, page = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    config, split = report.classifier.config, report.split
    drawn = charts.curves(report.records, config.train.monitor) if report.records else []
    return environment.from_string(page).render(
        style=Markup(style),
        script=Markup(script),
        title=f"{config.model.name} on {pathlib.PurePath(config.data.dataset).name}",
        result=_result(report),
        tiles=_tiles(report, scores, calibration),
        curves=[(name, Markup(svg)) for name, svg in drawn],
        reliability=Markup(charts.reliability(calibration)) if len(split.labels) else "",
        calibration=calibration,
        bins=BINS,
        cases=cases,
        matrix=_matrix(report, scores),
        classes=_class_rows(split.class_names, scores),
        class_count=len(split.class_names),
        most_classes=ROWS,
        unreadable=len(split.unreadable),
        shown_unreadable=UNREADABLE,
        unlabelled=len(split.unlabelled),
        neighbours=NEIGHBOURS,
        sure=SURE,
        searched=len(split.kept),
        time=_time(report),
        speed=_speed(report),
        summary=report.texts[SUMMARY].strip(),
        commands=report.texts[COMMAND].strip(),
        changed=_changed(config),
        settings=json.dumps(report.metadata.config, indent=2, ensure_ascii=False),
        versions=_versions(report),
    )


def percent(value: float, digits: int = 1) -> str:
    """Format a share as a percentage; an undefined one as a dash."""
    return "\N{EN DASH}" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def _result(report: RunReport) -> dict[str, Any]:
    split = report.split
    count, hits = len(split.labels), int(split.is_right.sum())
    low, high = proportion_interval(hits, count)
    return {
        "top1": hits / count if count else math.nan,
        "low": low,
        "high": high,
        "count": count,
        "hits": hits,
        "where": report.where,
        "step": report.classifier.step,
        "is_average": report.classifier.config.averages_weights,
        "workdir": str(report.workdir),
    }


def _tiles(
    report: RunReport, scores: ClassScores, calibration: Calibration
) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of the facts below the result."""
    split, records = report.split, report.records
    tiles: list[tuple[str, str, str]] = []
    if np.isfinite(scores.f1).any():
        tiles.append(("macro F1", percent(float(np.nanmean(scores.f1))), "mean over the classes"))
    if np.isfinite(scores.recall).any():
        worst = int(np.nanargmin(scores.recall))
        remark = f"recall of {split.class_names[worst]}, {scores.support[worst]:,} images"
        tiles.append(("weakest class", percent(float(scores.recall[worst])), remark))
    if len(split.labels):
        sure = float(split.confidences.mean())
        remark = f"calibration error (ECE); mean confidence {percent(sure)}"
        tiles.append(("ECE", percent(calibration.ece), remark))
    parameters = sum(x.size for x in jax.tree.leaves(report.classifier.variables["params"]))
    tiles.append(("parameters", f"{parameters:,}", report.classifier.config.model.name))
    if records:
        last = max(r["epoch"] for r in records)
        tiles.append(("epochs", f"{last:.4g}", f"{max(r['step'] for r in records):,} steps"))
    return tiles


def _matrix(report: RunReport, scores: ClassScores) -> dict[str, Any] | None:
    """Return names and rows of the confusion matrix; None for too many classes, or without examples."""
    names = report.split.class_names
    if len(names) > MATRIX or not len(report.split.labels):
        return None
    counts = confusion_matrix(report.split)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        {
            "name": name,
            "index": number,
            "recall": _sortable(scores.recall[number]),
            "support": int(scores.support[number]),
            "cells": list(zip(counts[number].tolist(), shares[number].tolist(), strict=True)),
        }
        for number, name in enumerate(names)
    ]
    return {"names": names, "rows": rows}


def _sortable(value: float) -> float:
    """Return a number for sorting; what is undefined comes last."""
    return 2.0 if math.isnan(value) else float(value)


def _class_rows(names: Sequence[str], scores: ClassScores) -> list[dict[str, Any]]:
    """Return the rows of the table of classes, in their order; only the weakest by F1 of too many."""
    order = np.argsort(np.nan_to_num(scores.f1, nan=2.0), kind="stable")[:ROWS]
    return [
        {
            "name": names[number],
            "index": number,
            "support": int(scores.support[number]),
            "predicted": int(scores.predicted[number]),
            **{key: float(getattr(scores, key)[number]) for key in ("precision", "recall", "f1")},
        }
        for number in sorted(order.tolist())
    ]


def _time(report: RunReport) -> dict[str, Any]:
    """Return the total and the stages of the wall time of all starts; {} if none is known."""
    account = report.account
    if not account.total:
        return {}
    seconds, shares = account.seconds, account.shares
    stages = [
        {"name": stage, "time": clock(seconds[stage]), "share": shares[stage], "words": words}
        for stage, words in STAGE_WORDS.items()
    ]
    return {"total": clock(account.total), "starts": len(account.starts), "stages": stages}


def _speed(report: RunReport) -> list[tuple[str, str]]:
    """Return (name, value) of the speed of training and of the images seen."""
    rows, size = [], report.classifier.config.train.batch_size
    speeds = [r["images_per_second"] for r in report.records if "images_per_second" in r]
    if speeds:
        rows.append(("speed", f"{np.median(speeds):,.0f} images/s (median of the records)"))
    last = max((r["step"] for r in report.records), default=0)
    return [*rows, ("images seen", f"{last * size:,} in {last:,} steps")] if last else rows


def _changed(config: Config) -> list[tuple[str, str, str]]:
    """Return (setting, value, default) of the settings that differ from the defaults of the package."""
    default = flatten(Config())
    return [
        (key, str(value), str(default[key]))
        for key, value in flatten(config).items()
        if value is not None and value != default[key]
    ]


def _versions(report: RunReport) -> list[tuple[str, str]]:
    import platform

    packages = ("numpy", "pillow", "tensorflow", "tensorflow-cpu")
    rows = list(report.metadata.versions.items())
    for name in packages:
        try:
            rows.append((f"{name} (report)", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    kinds = sorted({device.device_kind for device in jax.devices()})
    rows.append(("Python (report)", platform.python_version()))
    rows.append(
        ("devices (report)", f"{jax.device_count()} x {', '.join(kinds)} ({jax.default_backend()})")
    )
    return rows
