"""The detector that a run exports with a network: fitted on training images, measured on test images."""

from __future__ import annotations

import keras
import numpy as np

from satm_tf import attacks, bars, data
from satm_tf.attacks.losses import EVADING
from satm_tf.detection import Detector, FittedDetector, Guarded, NullClass, measure
from satm_tf.detection.base import scikit_learn
from satm_tf.experiment.config import Config, make_attack
from satm_tf.experiment.images import arrays
from satm_tf.experiment.run_folder import CO_TRAIN, FINE_TUNE, Stage
from satm_tf.storage import atomic_file

# Enough for each kind, and what a support vector machine still takes well.
_TRAINING, _VALIDATION, _TEST = 1000, 1000, 300
# Of the attack that knows the detector.
_STEPS = 40


def check_detector(kind: str | None, null_class: bool) -> None:
    """Finds before any training that a detector could not be fitted.

    Args:
        kind: Its kind; None for no detector.
        null_class: Whether the exported networks have a null class.

    Raises:
        ValueError: If the detector needs a null class.
        ImportError: If scikit-learn is missing.
    """
    if kind is None:
        return
    if kind == NullClass.name and not null_class:
        raise ValueError(
            f"The detector {kind!r} needs a scheme with null_share, which trains a null class; choose another "
            "detector or scheme. Received: a scheme without null_share"
        )
    scikit_learn("svm")


def detector_of(config: Config, images: data.ImageData, name: str) -> FittedDetector | None:
    """The detector of a network that is exported, if the configuration names a kind; it is fitted once.

    It is fitted on training images and on examples of them that the network's co-trained partners craft, as they were
    before the scheme, with the training attack; a network without partners crafts them itself. The threshold is set on
    validation images. It is measured on test images, with each attack of the tables on each unseen model, which it was
    not fitted on, and with an attack that knows network and detector.

    Args:
        config: The run's configuration, with its stages finished.
        images: Its images.
        name: The network, of the scheme that is exported.

    Returns:
        The detector, with what was measured in `rates["measured"]`, a list of rows as `detection.measure` gives them.
    """
    if config.export.detector is None:
        return None
    folder, scheme = config.folder, str(config.export.scheme)
    stage = Stage(CO_TRAIN, scheme)
    file = folder.detector(stage, name)
    if file.exists():
        return folder.load_detector(stage, name)
    bars.say(f"\nfitting the detector of {name}")
    network, kind = folder.load(stage, name), Detector.get(config.export.detector)
    (train, train_labels), (validation, _), (test, labels) = (
        arrays(examples.limit(limit, config.seed), config)
        for examples, limit in ((images.train, _TRAINING), (images.validation, _VALIDATION), (images.test, _TEST))
    )
    attack = make_attack(config.attack)
    partners = [each for each in config.networks_of(scheme) if each != name] or [name]
    # A share of the images for each partner, so that no image is there more often than as a clean one.
    crafted = np.empty_like(train)
    for number, partner in enumerate(partners):
        share = slice(number, None, len(partners))
        source = folder.load(Stage(FINE_TUNE, partner), partner)
        crafted[share] = attack.craft(source, train[share], train_labels[share])
    fitted = kind.fit(network, train, crafted, validation=validation, seed=config.seed)
    adversarial = {
        f"{title} of {holdout} (unseen)": each.craft(folder.load(Stage(FINE_TUNE, holdout), holdout), test, labels)
        for holdout in config.holdouts
        for title, each in config.table_attacks().items()
    }
    joint = attacks.APGD(epsilon=attack.epsilon, norm=attack.norm, loss=EVADING, steps=_STEPS)
    adversarial["apgd of itself and the detector (white box)"] = joint.craft(Guarded(network, fitted), test, labels)
    frame = measure({kind.name: fitted}, network, test, labels, adversarial)
    fitted.rates["measured"] = frame.drop(columns="detector").to_dict("records")
    with atomic_file(file) as temporary:
        keras.saving.save_model(fitted, temporary)
    bars.say(f"\n{frame.to_string(index=False, float_format='{:.3f}'.format)}")
    return fitted
