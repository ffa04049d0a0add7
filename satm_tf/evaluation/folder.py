"""The folder of an evaluation: the one place that names its files."""

from __future__ import annotations

from pathlib import Path

from satm_tf import storage


class ResultsFolder:
    """The files that an evaluation writes and a report reads.

    Args:
        path: The folder; it need not exist.

    Example:
        >>> ResultsFolder("results").report
        PosixPath('results/report.html')
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / storage.CONFIG
        self.environment = self.path / storage.ENVIRONMENT  # versions and machine
        # What the results depend on: digests of models and images, attacks, options of the checks.
        self.assessment = self.path / "assessment.json"
        self.results = self.path / "results.csv"  # a row for each attack, epsilon, source and target
        self.predictions = self.path / "predictions.npz"  # the class predicted for every image in each of them
        self.checks = self.path / "checks.csv"  # the verdicts of the masking checks
        self.surfaces = self.path / "surfaces.csv"  # the loss around images
        self.metrics = self.path / "metrics.csv"  # a row for each stage and epoch of a training
        self.class_names = self.path / "class_names.json"  # the name of each label
        self.data = self.path / "data.txt"  # the account of the images, in words
        self.report = self.path / "report.html"
        self.figures = self.path / "figures"  # the figures in the report
        self.gallery = self.path / "gallery"  # pictures of adversarial images
        self.blocks = self.path / "blocks"  # the finished parts of a measurement, from which it resumes
        self.requests = self.path / "requests"  # for each server, the requests to it and their answers

    def __str__(self) -> str:
        return str(self.path)
