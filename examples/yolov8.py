"""YOLOv8 in INT8 for Qualcomm's NPU: from the export and a folder of pictures to an artefact that finds the same.

    python examples/yolov8.py yolov8n.onnx coco128/ --out out --target hexagon

The export is Ultralytics' ONNX without non-maximum suppression; pictures lie as in COCO128, or anyhow.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import leadline
from leadline.data import Data, load_samples
from leadline.files import filling
from leadline.progress import Bars
from leadline.systems import yolov8
from leadline.types import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the detector's ONNX")
    parser.add_argument(
        "pictures", type=Path, help="calibration pictures: images/ with labels/ beside it, or any folder"
    )
    parser.add_argument(
        "--unseen", type=Path, help="pictures to compare on (default: a quarter that calibration spares)"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the artefacts")
    parser.add_argument("--target", choices=("onnxruntime", "hexagon"), default="onnxruntime")
    parser.add_argument("--observer", default="best", help="best, minmax, entropy, percentile, mse ...")
    parser.add_argument("--separate", action="store_true", help="an output each for boxes and scores")
    parser.add_argument("--num-samples", type=int, help="calibrate on at most so many pictures")
    parser.add_argument("--score", type=float, default=0.25, help="the least score of a detection")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()

    system = yolov8.load(given.model)
    print(*system.notes, sep="\n")
    done = leadline.quantize(
        system.network,
        yolov8.recipe(given.observer, separate=given.separate),
        leadline.Data(given.pictures, preprocess=system.preprocess, num_samples=given.num_samples),
        threads=given.threads,
        progress=Bars(),
        target=given.target,
    )
    unseen = (
        load_samples(Data(given.unseen, preprocess=system.preprocess), system.network.inputs)
        if given.unseen
        else done.held_out
    )
    with filling(given.out) as folder:
        done.save(folder)
        found = yolov8.compare_detections(
            system.network,
            folder / "model.qdq.onnx",
            unseen,
            target=given.target,
            score=given.score,
            threads=given.threads,
            progress=Bars(),
        )
        (folder / "detections.json").write_text(json.dumps(found.to_dict(), indent=2), "utf-8")
    print(
        f"{found.kept:.1%} of {found.expected} detections kept, {found.added:.1%} added, on {found.pictures} pictures"
    )
    print(f"matched ones: IoU {found.iou:.3f}, boxes off by {found.box_difference:.2f} px, scores by "
          f"{found.score_difference:.3f}")  # fmt: skip
    print(f"wrote {given.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
