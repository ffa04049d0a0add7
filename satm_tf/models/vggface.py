"""The three networks of keras-vggface, pre-trained on faces: VGG16, ResNet50 and SENet50.

Layers, order, names, paddings and epsilons are those of keras-vggface 0.6, with "." for "/" in layer names, so that its
published weights load. A whole published network, with the identities it was trained on, is an `ImageClassifier` of
2,622 classes on `vgg16_face_fc7`, or of 8,631 on `resnet50_face` and `senet50_face`.

Source:
    VGG16: Parkhi et al., "Deep Face Recognition", BMVC 2015, trained on VGGFace.
    ResNet50 and SENet50: Cao et al., "VGGFace2: A dataset for recognising faces across pose and age", FG 2018.
    Squeeze and excitation: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from satm_tf.models.normalization import BatchNormalization
from satm_tf.models.registry import register_backbone
from satm_tf.models.weights import PublishedWeights, load_weights_by_name

_RELEASE = "https://github.com/rcmalli/keras-vggface/releases/download/v2.0/"
_VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_RESNET_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
_SQUEEZE = 16


def _facts(file: str, bgr_means: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "preprocessing": {"scale": 255.0, "offset": tuple(-mean for mean in bgr_means), "reverse_channels": True},
        "published": {"vggface": PublishedWeights(_RELEASE + file, folder="models/vggface")},
        "load": load_weights_by_name,
    }


_VGGFACE_MEANS = (93.5940, 104.7624, 129.1863)
_VGGFACE2_MEANS = (91.4953, 103.8827, 131.0912)


def _vgg16(input_shape: tuple[int, int, int]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    images = x = keras.Input(input_shape)
    for stage, (filters, depth) in enumerate(_VGG_STAGES, start=1):
        for layer in range(1, depth + 1):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{stage}_{layer}")(x)
        x = layers.MaxPooling2D(name=f"pool{stage}")(x)
    return images, x


@register_backbone("vgg16_face", **_facts("rcmalli_vggface_tf_notop_vgg16.h5", _VGGFACE_MEANS))
def vgg16_face(input_shape: tuple[int, int, int]) -> keras.Model:
    """VGG16's convolutions, pre-trained on VGGFace; features are the 512 means of `pool5`. No batch normalisation."""
    return keras.Model(*_vgg16(input_shape), name="vgg16_face_backbone")


@register_backbone(
    "vgg16_face_fc7", pooling=None, resize_below=224, **_facts("rcmalli_vggface_tf_vgg16.h5", _VGGFACE_MEANS)
)
def vgg16_face_fc7(input_shape: tuple[int, int, int]) -> keras.Model:
    """VGG16 up to and including `fc7`, pre-trained on VGGFace; features are its 4,096 outputs, the VGG-Face descriptor.

    The published fully-connected layers take images of 224 x 224: give `resize_to=224` for larger ones.
    """
    images, x = _vgg16(input_shape)
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc6", "fc7"):
        x = layers.Activation("relu", name=f"{name}.relu")(layers.Dense(4096, name=name)(x))
    return keras.Model(images, x, name="vgg16_face_fc7_backbone")


@register_backbone("resnet50_face", resize_below=197, **_facts("rcmalli_vggface_tf_notop_resnet50.h5", _VGGFACE2_MEANS))
def resnet50_face(input_shape: tuple[int, int, int]) -> keras.Model:
    """ResNet50, pre-trained on VGGFace2; features are the 2,048 means of its last stage."""
    return _resnet50(input_shape, "resnet50_face_backbone", epsilon=1e-3, squeeze=False)


@register_backbone("senet50_face", resize_below=197, **_facts("rcmalli_vggface_tf_notop_senet50.h5", _VGGFACE2_MEANS))
def senet50_face(input_shape: tuple[int, int, int]) -> keras.Model:
    """SENet50, pre-trained on VGGFace2; features are the 2,048 means of its last stage."""
    return _resnet50(input_shape, "senet50_face_backbone", epsilon=1e-4, squeeze=True)


def _resnet50(input_shape: tuple[int, int, int], name: str, *, epsilon: float, squeeze: bool) -> keras.Model:
    def conv_bn(x: keras.KerasTensor, filters: int, size: int, name: str, strides: int = 1) -> keras.KerasTensor:
        padding = "valid" if size == 1 else "same"
        x = layers.Conv2D(filters, size, strides, padding=padding, use_bias=False, name=name)(x)
        return BatchNormalization(epsilon=epsilon, name=f"{name}.bn")(x)

    images = keras.Input(input_shape)
    x = layers.Activation("relu")(conv_bn(images, 64, 7, "conv1.7x7_s2", strides=2))
    x = layers.MaxPooling2D(3, strides=2)(x)
    for stage, (filters, depth) in enumerate(_RESNET_STAGES, start=2):
        for block in range(1, depth + 1):
            prefix = f"conv{stage}_{block}"
            strides = 2 if block == 1 and stage > 2 else 1
            y = layers.Activation("relu")(conv_bn(x, filters, 1, f"{prefix}_1x1_reduce", strides))
            y = layers.Activation("relu")(conv_bn(y, filters, 3, f"{prefix}_3x3"))
            y = conv_bn(y, 4 * filters, 1, f"{prefix}_1x1_increase")
            if squeeze:
                y = _excite(y, prefix)
            if block == 1:
                x = conv_bn(x, 4 * filters, 1, f"{prefix}_1x1_proj", strides)
            x = layers.Activation("relu")(layers.add([y, x]))
    return keras.Model(images, layers.AveragePooling2D(7, name="avg_pool")(x), name=name)


def _excite(x: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
    channels = x.shape[-1]
    weights = layers.Reshape((1, 1, channels))(layers.GlobalAveragePooling2D()(x))
    for filters, activation, name in ((channels // _SQUEEZE, "relu", "down"), (channels, "sigmoid", "up")):
        weights = layers.Conv2D(filters, 1, name=f"{prefix}_1x1_{name}")(weights)
        weights = layers.Activation(activation)(weights)
    return layers.multiply([x, weights])
