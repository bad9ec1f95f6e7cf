"""Time the listing of a folder of images, its fingerprint, and the memory: python -m benchmarks.lab.listing_speed

Makes a tree of empty files, opens both splits of it as a run does, in a process of its own, and deletes the tree.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import tempfile
import time

from benchmarks.arguments import count


def make_tree(root: pathlib.Path, classes: int, files: int) -> None:
    """Write empty image files with names as long as ImageNet's, evenly in the classes."""
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir()
        for number in range(label, files, classes):
            (folder / f"n{label:08d}_{number}.JPEG").touch()


def measure(root: str) -> dict[str, float]:
    """Return the seconds to open both splits and of their fingerprints, and the growth of the memory in MiB."""
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.fingerprint import fingerprint_of
    from flax_resnet.data.open import open_source

    data = Data(source="folder", path=root)
    open_source(Data(source="folder", path=os.path.dirname(root) + "/warm"), train=True)  # imports
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    splits = [open_source(data, train=train) for train in (True, False)]
    listed = time.perf_counter()
    for split in splits:
        fingerprint_of(split)
    known = time.perf_counter()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "files": sum(map(len, splits)),
        "seconds": round(listed - start, 2),
        "fingerprint_seconds": round(known - listed, 2),
        "mib": round(grown, 1),
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=count, default=200_000)
    parser.add_argument("--classes", type=count, default=1000)
    options = parser.parse_args()
    top = pathlib.Path(tempfile.mkdtemp(prefix="listing_"))
    try:
        for name, classes, files in (("warm", 2, 40), ("set", options.classes, options.files)):
            (top / name).mkdir()
            make_tree(top / name, classes, files)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps(pool.apply(measure, (str(top / "set"),))))
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
