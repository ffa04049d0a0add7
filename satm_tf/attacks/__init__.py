"""Attacks: an image batch and a network in, an adversarial batch out."""

from satm_tf.attacks.auto import APGD, APGDTargeted, AutoAttack
from satm_tf.attacks.base import LABEL_SOURCES, Attack, Outcome, available_attacks, get, serialize
from satm_tf.attacks.carlini_wagner import CarliniWagnerL0, CarliniWagnerL2, CarliniWagnerLinf
from satm_tf.attacks.deepfool import DeepFool, MinimumDistortion
from satm_tf.attacks.fab import FABTargeted
from satm_tf.attacks.hop_skip_jump import HopSkipJump
from satm_tf.attacks.iterative import BIM, KLPGD, MIFGSM, NIFGSM, PGD, RSFGSM, VMIFGSM, IterativeAttack, IterativeLL
from satm_tf.attacks.perceptual import as_uint8, distortion, quantise
from satm_tf.attacks.single_step import FGSM, FastGradientValue, HotCold, RandomisedStep, StepLL
from satm_tf.attacks.sources import Ensemble, InTurn
from satm_tf.attacks.square import SquareAttack
from satm_tf.attacks.transforms import (
    Admix,
    BlockShuffle,
    InputDiversity,
    ScaleInvariance,
    Transform,
    TranslationInvariance,
)

__all__ = [
    "APGD",
    "BIM",
    "FGSM",
    "KLPGD",
    "LABEL_SOURCES",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "RSFGSM",
    "VMIFGSM",
    "APGDTargeted",
    "Admix",
    "Attack",
    "AutoAttack",
    "BlockShuffle",
    "CarliniWagnerL0",
    "CarliniWagnerL2",
    "CarliniWagnerLinf",
    "DeepFool",
    "Ensemble",
    "FABTargeted",
    "FastGradientValue",
    "HopSkipJump",
    "HotCold",
    "InTurn",
    "InputDiversity",
    "IterativeAttack",
    "IterativeLL",
    "MinimumDistortion",
    "Outcome",
    "RandomisedStep",
    "ScaleInvariance",
    "SquareAttack",
    "StepLL",
    "Transform",
    "TranslationInvariance",
    "as_uint8",
    "available_attacks",
    "distortion",
    "get",
    "quantise",
    "serialize",
]
