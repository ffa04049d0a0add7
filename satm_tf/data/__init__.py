"""From a folder to a `tf.data.Dataset` of images and labels."""

from satm_tf.data import adience, folder, formats, idx, imagenet, prepared, synthetic, tables, unlabelled, utkface
from satm_tf.data.account import Account
from satm_tf.data.augmentation import Augmentation
from satm_tf.data.examples import Examples, ImageData
from satm_tf.data.pipeline import Batches, batches

__all__ = [
    "Account",
    "Augmentation",
    "Batches",
    "Examples",
    "ImageData",
    "adience",
    "batches",
    "folder",
    "formats",
    "idx",
    "imagenet",
    "prepared",
    "synthetic",
    "tables",
    "unlabelled",
    "utkface",
]
