"""Detectors of adversarial examples, fitted to a classifier: an alarm, not a defence.

A detector is a configuration with a name; `fit` gives what scores images, with a threshold that a chosen share of clean
images exceeds. `Guarded` joins it to its classifier, to attack both together, and `measure` says how well it works.

| name | class | how it tells |
| --- | --- | --- |
| `feature_classifier` | `FeatureClassifier` | a small classifier on the features |
| `principal_components` | `PrincipalComponents` | energy in components of low rank |
| `density_uncertainty` | `DensityUncertainty` | density in the class, and doubt under dropout |
| `quantised_rbf` | `QuantisedRBF` | an RBF machine on quantised features |
| `null_class` | `NullClass` | the null class that the network was trained with |

Fitting needs the extra `detectors` (scikit-learn); scoring, saving and serving do not.
"""

from satm_tf.detection.base import Detector, FittedDetector
from satm_tf.detection.features import FeatureClassifier, NullClass, PrincipalComponents
from satm_tf.detection.guarded import Guarded, measure
from satm_tf.detection.kernels import DensityUncertainty, QuantisedRBF

get = Detector.get

__all__ = [
    "DensityUncertainty",
    "Detector",
    "FeatureClassifier",
    "FittedDetector",
    "Guarded",
    "NullClass",
    "PrincipalComponents",
    "QuantisedRBF",
    "get",
    "measure",
]
