"""The folder of a run: the one place that names its files, and the names of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from satm_tf.detection import FittedDetector
from satm_tf.evaluation.folder import ResultsFolder
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.models import ImageClassifier, load_classifier
from satm_tf.models.runtimes import load_keras

FINE_TUNE, CO_TRAIN = "fine_tune", "co_train"


class Stage(NamedTuple):
    """One training of a run, written `<kind>/<name>`.

    Attributes:
        kind: `FINE_TUNE`, of one network on clean images, or `CO_TRAIN`, of a scheme's networks.
        name: The network's or the scheme's.

    Example:
        >>> str(Stage.parse("co_train/satm"))
        'co_train/satm'
    """

    kind: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Stage:
        """Parses a stage from its written form.

        Raises:
            ValueError: If the text has another form.
        """
        kind, slash, name = text.partition("/")
        if not slash or kind not in (FINE_TUNE, CO_TRAIN) or not name:
            raise ValueError(f"A stage must be {FINE_TUNE}/<network> or {CO_TRAIN}/<scheme>. Received: {text!r}")
        return cls(kind, name)

    @classmethod
    def of(cls, name: NetworkName) -> Stage:
        """The stage that trains a network in results; unseen models are only fine-tuned."""
        return cls(FINE_TUNE, name.network) if name.scheme == UNSEEN else cls(CO_TRAIN, name.scheme)

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


class RunFolder(ResultsFolder):
    """The files of a run, including those of its evaluation.

    Args:
        path: The folder; it need not exist.

    Attributes:
        exports: The folder of each exported version, by the network's name.
        unfinished: The checkpoints of stages that have not finished.
        crafted: The examples that schemes craft once, while their stages are unfinished.
        synthetic_faces: Where synthetic faces are drawn unless another place is given.
        measured: The folder of measurements for the paper's tables.
        precision: The number format that "auto" has chosen, with what was measured.
        before_defence: A picture of adversarial images before any defence, made as soon as there are networks.

    Example:
        >>> RunFolder("runs/quickstart").network(Stage("co_train", "satm"), "compact_vgg")
        PosixPath('runs/quickstart/networks/co_train/satm/compact_vgg.keras')
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.exports = self.path / "exports.json"
        self.unfinished = self.path / "checkpoints"
        self.crafted = self.unfinished / "crafted"
        self.synthetic_faces = self.path / "synthetic_faces"
        self.measured = self.path / "measured"
        self.precision = self.path / "precision.json"
        self.before_defence = self.path / "before_defence.png"

    def measurements(self) -> list[Path]:
        """The files in `measured`."""
        return sorted(self.measured.glob("[!.]*.npz"))

    def networks(self, stage: Stage) -> Path:
        """The folder of a finished stage."""
        return self.path / "networks" / str(stage)

    def network(self, stage: Stage, name: str) -> Path:
        """The file of one network after a stage."""
        return self.networks(stage) / f"{name}.keras"

    def load(self, stage: Stage, name: str) -> ImageClassifier:
        """One network after a stage.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If its file is damaged.
        """
        return load_classifier(self.network(stage, name))

    def detector(self, stage: Stage, name: str) -> Path:
        """The file of the detector that is exported with a network."""
        return self.path / "detectors" / str(stage) / f"{name}.keras"

    def load_detector(self, stage: Stage, name: str) -> FittedDetector | None:
        """That detector; None if there is none.

        Raises:
            ValueError: If its file is damaged.
        """
        file = self.detector(stage, name)
        return load_keras(file) if file.exists() else None

    def history(self, stage: Stage) -> Path:
        """The epochs of a finished stage."""
        return self.networks(stage) / "history.csv"

    def initial_weights(self, stage: Stage) -> Path:
        """The starting weights of a finished stage's networks."""
        return self.networks(stage) / "initial_weights.json"

    def checkpoints(self, stage: Stage) -> Path:
        """The checkpoints of a running stage."""
        return self.unfinished / str(stage)

    def logs(self, stage: Stage) -> Path:
        """The logs for TensorBoard."""
        return self.path / "logs" / str(stage)
