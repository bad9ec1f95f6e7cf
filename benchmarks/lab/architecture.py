"""Draw the rooms of the package and the imports between them: python -m benchmarks.lab.architecture

A room is a folder or file directly in `flax_resnet/`, such as data/ or errors.py. Parses all files with `ast` and
imports none of them. Writes docs/architecture.png and prints the number of import statements between each pair of
rooms. Fails if an import violates the order of the rooms (`LEVELS`).
"""

import ast
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks import app
from benchmarks.arguments import picture
from flax_resnet.errors import writing

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "flax_resnet"

# The order of the rooms, from top to bottom: a room imports from lower levels only. tests/test_house.py checks it.
LEVELS = (
    ("cli",),
    ("inference",),
    ("training",),
    ("config",),
    ("optim",),
    ("weights",),
    ("models",),
    ("augment", "data", "ops", "trackers"),
    ("settings",),
    ("errors",),
)
HOLDS = {
    "cli": "commands, plots",
    "inference": "classifier, evaluation, probes",
    "training": "experiment, trainer, step, feeds, run folder",
    "config": "the whole configuration, the plan",
    "optim": "optimizers, schedules, losses, metrics, EMA",
    "weights": "torch tensors <-> variables",
    "models": "registry, ResNet, layers",
    "augment": "uint8 batch -> float images",
    "data": "sources, sampling, decoding, packing",
    "ops": "convolution, BatchNorm, max-pool",
    "trackers": "MLflow, W&B",
    "settings": "sections, rules, rows of choices",
    "errors": "one-line errors",
}
# Sizes in the picture, in units of its axes.
ROOM_GAP, LEVEL_GAP, HALF_WIDTH, HEIGHT = 1.0, 0.2, 2.6, 0.74
# Nearly every room imports these two; their arrows stand on the left, in grey.
COMMON = ("settings", "errors")
COLOURS = {
    "config": "#d62728",
    "optim": "#9467bd",
    "weights": "#8c564b",
    "models": "#1f77b4",
    "augment": "#bcbd22",
    "data": "#2ca02c",
    "ops": "#17becf",
    "trackers": "#e7ba52",
    "training": "#ff7f0e",
    "inference": "#e377c2",
}


def room_of(file: pathlib.Path) -> str:
    """Return the room of a file: its top folder, or its name at the root of the package."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(file: pathlib.Path) -> Iterator[str]:
    """Yield the module of each import statement in a file, including imports inside functions.

    `from flax_resnet import data` yields "flax_resnet.data". The name of a relative import starts with its dots.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == PACKAGE.name:
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else:
                yield module


def imported_rooms(file: pathlib.Path) -> Iterator[str]:
    """Yield the imported room of each import statement in a file; skip other packages."""
    for module in imported_modules(file):
        top, *rest = module.split(".")
        if top == PACKAGE.name and rest:
            yield rest[0]


def count_imports() -> Counter[tuple[str, str]]:
    """Return the number of import statements by (importing room, imported room)."""
    counts = Counter(
        (room_of(file), room) for file in PACKAGE.rglob("*.py") for room in imported_rooms(file)
    )
    return Counter({(a, b): n for (a, b), n in counts.items() if a != b and {a, b} <= HOLDS.keys()})


def backward(counts: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs (importing room, imported room) that violate the order of `LEVELS`."""
    level = {room: place for place, rooms in enumerate(LEVELS) for room in rooms}
    return [pair for pair in counts if level[pair[0]] >= level[pair[1]]]


def sizes() -> dict[str, tuple[int, int]]:
    """Return {room: (number of files, number of lines)}."""
    files = [file for file in PACKAGE.rglob("*.py") if room_of(file) in HOLDS]
    lines = {file: file.read_text().count("\n") for file in files}
    return {
        room: (
            sum(room_of(file) == room for file in files),
            sum(count for file, count in lines.items() if room_of(file) == room),
        )
        for room in HOLDS
    }


def draw(counts: Counter[tuple[str, str]], output: pathlib.Path) -> None:
    """Draw the rooms from top to bottom, and the imports as arrows at both sides."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    where, y = {}, 0.0
    for rooms in LEVELS:
        for room in rooms:
            where[room] = y
            y -= ROOM_GAP
        y -= LEVEL_GAP
    figure, axes = plt.subplots(figsize=(11, 9.4))
    _draw_rooms(axes, where)
    _draw_imports(axes, where, counts)
    axes.text(
        0,
        where["cli"] + 0.95,
        "An arrow points from the importing room to the imported one. Its colour is that of the imported room;\n"
        "its width is the number of import statements "
        f"(1 to {max(counts.values())}). Grey, on the left: errors and settings.",
        ha="center",
        va="center",
        size=10,
    )
    axes.set_xlim(-7.6, 7.6)
    axes.set_ylim(min(where.values()) - 0.7, where["cli"] + 1.4)
    axes.axis("off")
    figure.savefig(output, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _draw_rooms(axes: Any, where: dict[str, float]) -> None:
    """Draw a box for each room, at its height in the picture."""
    from matplotlib.patches import FancyBboxPatch

    measured = sizes()
    for room, y in where.items():
        corner = (-HALF_WIDTH, y - HEIGHT / 2)
        edge = "#888888" if room in COMMON else COLOURS.get(room, "#444444")
        axes.add_patch(
            FancyBboxPatch(
                corner, 2 * HALF_WIDTH, HEIGHT, boxstyle="round,pad=0.04", fc="white", ec=edge, lw=2
            )
        )
        files, lines = measured[room]
        axes.text(-HALF_WIDTH + 0.1, y + 0.15, room, weight="bold", size=12, va="center")
        size = f"{files} file{'s' * (files > 1)}, {lines:,} lines"
        axes.text(
            HALF_WIDTH - 0.1, y + 0.15, size, size=8.5, color="#555555", ha="right", va="center"
        )
        axes.text(-HALF_WIDTH + 0.1, y - 0.18, HOLDS[room], size=9, color="#333333", va="center")


def _draw_imports(axes: Any, where: dict[str, float], counts: Counter[tuple[str, str]]) -> None:
    """Draw an arrow from the importing to the imported room of each pair; its width grows with the count."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    for importer, imported in sorted(counts, key=lambda pair: counts[pair]):
        count, left = counts[importer, imported], imported in COMMON
        side = -1 if left else 1
        x, y, end = side * (HALF_WIDTH + 0.1), where[importer], where[imported]
        # Arrows leave from the lower half of a box and arrive at the upper half, the longest outermost.
        leaving = [b for (a, b) in counts if a == importer and (b in COMMON) == left]
        arriving = [a for (a, b) in counts if b == imported]
        y -= 0.36 * _rank(imported, leaving, where, nearest_first=False)
        end += 0.34 * _rank(importer, arriving, where, nearest_first=True)
        bulge = x + side * (0.45 + 0.42 * (y - end))
        arrow = FancyArrowPatch(
            path=Path([(x, y), (bulge, y), (bulge, end), (x, end)], [1, 4, 4, 4]),
            arrowstyle="-|>",
            mutation_scale=7 + 0.3 * count,
            lw=0.7 + 0.24 * count,
            color="#999999" if left else COLOURS[imported],
            alpha=0.6 if left else 0.8,
            shrinkA=0,
            shrinkB=0,
        )
        axes.add_patch(arrow)


def _rank(room: str, rooms: list[str], where: dict[str, float], *, nearest_first: bool) -> float:
    """Return the rank of a room among `rooms`, ordered by height in the picture, as a fraction in [0, 1)."""
    order = sorted(rooms, key=lambda other: where[other], reverse=not nearest_first)
    return order.index(room) / len(order)


@app.command
def main(argv: list[str] | None = None) -> int:
    """Print the imports between rooms, draw them, and return the exit code."""
    parser = app.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=picture, default=str(ROOT / "docs/architecture.png"))
    output = pathlib.Path(parser.parse_args(argv).output)
    counts = count_imports()
    for (importer, imported), count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{importer:>10} imports {imported:<10} {count:3d}")
    if wrong := backward(counts):
        print(f"imports against the order of the rooms: {wrong}", file=sys.stderr)
        return 1
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        draw(counts, output)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
