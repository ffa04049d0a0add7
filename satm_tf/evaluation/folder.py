"""The folder of an evaluation: the one place that names its files."""

from __future__ import annotations

from pathlib import Path

from satm_tf import storage


class ResultsFolder:
    """The files that an evaluation writes and a report reads.

    Args:
        path: The folder; it need not exist.

    Attributes:
        path: The folder.
        config: The configuration, `config.yaml`.
        environment: Versions and machine.
        assessment: What the results depend on: digests of models and images, attacks, options of the checks.
        results: A row for each attack, epsilon, source and target.
        predictions: The class predicted for every image in each of them.
        checks: The verdicts of the masking checks.
        surfaces: The loss around images.
        metrics: A row for each stage and epoch of a training.
        class_names: The name of each label.
        data: The account of the images, in words.
        report: The page.
        figures: The folder of the figures in it.
        gallery: The folder of pictures of adversarial images.
        blocks: The folder of the finished parts of a measurement, from which it resumes.
        requests: The folder of the requests to servers and their answers, a file for each address.

    Example:
        >>> ResultsFolder("results").report
        PosixPath('results/report.html')
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / storage.CONFIG
        self.environment = self.path / storage.ENVIRONMENT
        self.assessment = self.path / "assessment.json"
        self.results = self.path / "results.csv"
        self.predictions = self.path / "predictions.npz"
        self.checks = self.path / "checks.csv"
        self.surfaces = self.path / "surfaces.csv"
        self.metrics = self.path / "metrics.csv"
        self.class_names = self.path / "class_names.json"
        self.data = self.path / "data.txt"
        self.report = self.path / "report.html"
        self.figures = self.path / "figures"
        self.gallery = self.path / "gallery"
        self.blocks = self.path / "blocks"
        self.requests = self.path / "requests"

    def __str__(self) -> str:
        return str(self.path)
