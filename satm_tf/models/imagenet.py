"""Networks of `keras.applications`, pre-trained on ImageNet: the paper's unseen models and partners, and stronger ones.

Each is the published network without its classification layer; the weights are the files of `keras.applications`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras

from satm_tf.models.normalization import fuse_batch_norm
from satm_tf.models.registry import register_backbone
from satm_tf.models.weights import PublishedWeights

_STORE = "https://storage.googleapis.com/tensorflow/keras-applications/"
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)

_TO_ONE = {"scale": 2.0, "offset": -1.0}
_TO_ONE_OF_128 = {"scale": 255 / 128, "offset": -1.0}
_BGR_MINUS_MEAN = {"scale": 255.0, "offset": (-103.939, -116.779, -123.68), "reverse_channels": True}
_STANDARDISED = {
    "scale": tuple(1 / deviation for deviation in _DEVIATION),
    "offset": tuple(-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)),
}
_KERNELS = "weights_tf_dim_ordering_tf_kernels_notop.h5"


def _register(
    name: str,
    build: Callable[..., keras.Model],
    file: str,
    checksum: str,
    preprocessing: Mapping[str, Any],
    **facts: Any,
) -> None:
    """Registers a network of `keras.applications`: its constructor, weights file, checksum, what it was trained on."""
    published = {"imagenet": PublishedWeights(_STORE + file, checksum=checksum)}

    @register_backbone(name, preprocessing=preprocessing, published=published, **facts)
    def backbone(input_shape: tuple[int, int, int]) -> keras.Model:
        return fuse_batch_norm(build(include_top=False, weights=None, input_shape=input_shape))


_register(
    "vgg16_imagenet",
    keras.applications.VGG16,
    f"vgg16/vgg16_{_KERNELS}",
    "6d6bbae143d832006294945121d1f1fc",
    _BGR_MINUS_MEAN,
)
_register(
    "resnet50_imagenet",
    keras.applications.ResNet50,
    f"resnet/resnet50_{_KERNELS}",
    "4d473c1dd8becc155b73f8504c6f6626",
    _BGR_MINUS_MEAN,
)
_register(
    "resnet101_imagenet",
    keras.applications.ResNet101,
    f"resnet/resnet101_{_KERNELS}",
    "88cf7a10940856eca736dc7b7e228a21",
    _BGR_MINUS_MEAN,
)
_register(
    "inception_v3_imagenet",
    keras.applications.InceptionV3,
    f"inception_v3/inception_v3_{_KERNELS}",
    "bcbd6486424b2319ff4ef7d526e38f63",
    _TO_ONE,
    default_size=299,
    resize_below=75,
)
_register(
    "inception_resnet_v2_imagenet",
    keras.applications.InceptionResNetV2,
    f"inception_resnet_v2/inception_resnet_v2_{_KERNELS}",
    "d19885ff4a710c122648d3b5c3b684e4",
    _TO_ONE,
    default_size=299,
    resize_below=75,
)
_register(
    "efficientnet_v2_b0_imagenet",
    partial(keras.applications.EfficientNetV2B0, include_preprocessing=False),
    "efficientnet_v2/efficientnetv2-b0_notop.h5",
    "893217f2bb855e2983157299931e43ff",
    _STANDARDISED,
)
_register(
    "efficientnet_v2_s_imagenet",
    partial(keras.applications.EfficientNetV2S, include_preprocessing=False),
    "efficientnet_v2/efficientnetv2-s_notop.h5",
    "af0682fb74e8c54910f2d4393339c070",
    _TO_ONE_OF_128,
    default_size=384,
)
_register(
    "convnext_tiny_imagenet",
    # ConvNeXt normalises its features after pooling, so the pooling must be inside.
    partial(keras.applications.ConvNeXtTiny, include_preprocessing=False, pooling="avg"),
    "convnext/convnext_tiny_notop.h5",
    "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    _STANDARDISED,
    pooling=None,
)
