"""Training runs of small encoders, supervised and self-supervised, whose regions are measured on the way.

>>> import tempfile
>>> config = StudyConfig(dataset="digits", train_images=256, encoder="mlp-32x3", method="byol", epochs=1, slices=2)
>>> run = train(config, tempfile.mkdtemp())
>>> run.record["epoch"], run.record["regions/count"] > 1
(1.0, True)
"""

from regiongrid.study.config import StudyConfig, grid
from regiongrid.study.many import Failure, run_many
from regiongrid.study.report import Report, write_report
from regiongrid.study.training import Run, train

__all__ = ["Failure", "Report", "Run", "StudyConfig", "grid", "run_many", "train", "write_report"]
