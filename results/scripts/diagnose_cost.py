"""What a diagnosis costs: results/diagnose_cost.json.

    python results/scripts/diagnose_cost.py    # resnet50, 64 images of 224 px, two threads; wants quiet cores

Time of a forward pass of all images (median of three, no gradient), time of one whole diagnosis in the default setting,
their ratio, and the peak of the process's resident memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from pathlib import Path

OUT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import timm
    import torch

    from pnnh.analysis import diagnose
    from pnnh.provenance import environment
    from pnnh.report import json_text, write_text

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = timm.create_model(options.model).eval()
    images = torch.randn(options.images, 3, options.size, options.size)

    def forward() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for part in images.split(options.batch_size):
                model(part)
        return time.perf_counter() - start

    forward()
    forwards = [forward() for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = diagnose(model, images, training=True, batch_size=options.batch_size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        **environment(),
        "cpu": platform.processor(),
        "threads": options.threads,
        "seeds": [0],
        "model": options.model,
        "images": options.images,
        "image_size": options.size,
        "activations": len(found.layers),
        "forward_seconds": forwards,
        "diagnosis_seconds": seconds,
        "forward_passes": seconds / statistics.median(forwards),
        "peak_mb": peak / 1024,
        "peak_mb_before": before / 1024,
    }
    write_text(options.out / "diagnose_cost.json", json_text(record))


if __name__ == "__main__":
    main()
