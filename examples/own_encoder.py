"""The self-supervised study on an encoder and images of your own: train, measure, draw.

    python examples/own_encoder.py OUT

trains a small residual network on scikit-learn's digits, supervised and by SimCLR and BYOL, with three seeds each, and
writes figures and tables about its regions to OUT/report. Put your encoder and your images in their place.
"""

import sys
from pathlib import Path

import numpy as np
from torch import Tensor, nn

import regiongrid as rg
from regiongrid.study import grid, run_many, write_report


class Encoder(nn.Module):
    """Images [N, 1, 8, 8] to features [N, 32]; anything piecewise linear will do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 4, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last((x + self.second(x)).relu())  # type: ignore[no-any-return]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    digits = rg.load_data("digits")
    np.savez(out / "images.npz", x=digits.x.reshape(-1, 1, 8, 8), y=np.asarray(digits.y))
    configs = grid({
        "dataset": str(out / "images.npz"), "encoder": f"{__file__}:Encoder",
        "method": ["supervised", "simclr", "byol"], "seed": [0, 1, 2],
        "epochs": 6, "keep_every": 2, "probe_every": 1, "batch_size": 128, "half_width": 2.0, "slices": 8, "crop": 0.7,
    })  # fmt: skip
    run_many(configs, out / "runs", jobs=2, resume=True)
    report = write_report([out / "runs"], out / "report", jobs=2, trust_encoders=True)
    print(*report.files, sep="\n")
