"""Small networks of four architectures, for images of 28 to 96 pixels and machines without a GPU.

Each follows a well-known network at a fraction of its width. Their differences (batch normalisation or none, additive
or concatenated shortcuts, one or several filter sizes) are why their adversarial examples transfer imperfectly.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from satm_tf.models.normalization import BatchNormalization
from satm_tf.models.registry import register_backbone

_FACTS = {"preprocessing": {"scale": 2.0, "offset": -1.0}, "default_size": 48, "minimum_size": 16}

# Small networks are trained for hundreds of steps, not tens of thousands: Keras's 0.99 would still be close to its
# initial value.
_MOMENTUM = 0.9


def _conv_bn_relu(x: keras.KerasTensor, filters: int, size: int = 3, strides: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(BatchNormalization(momentum=_MOMENTUM)(x))


@register_backbone("compact_vgg", pooling=None, **_FACTS)
def compact_vgg(
    input_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (16, 32, 64),
    hidden: int = 256,
) -> keras.Model:
    """Pairs of 3x3 convolutions and max pooling, then a fully-connected layer; no batch normalisation.

    Source:
        After VGG (Simonyan and Zisserman, ICLR 2015).
    """
    images = x = keras.Input(input_shape)
    for width in widths:
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(hidden, activation="relu", kernel_initializer="he_normal")(layers.Flatten()(x))
    return keras.Model(images, x, name="compact_vgg_backbone")


@register_backbone("compact_resnet", **_FACTS)
def compact_resnet(
    input_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (16, 32, 64, 64),
    blocks_per_width: int = 1,
) -> keras.Model:
    """Residual blocks of two 3x3 convolutions, batch normalisation throughout.

    Source:
        After the CIFAR networks of ResNet (He et al., CVPR 2016).
    """
    images = keras.Input(input_shape)
    x = _conv_bn_relu(images, widths[0])
    for stage, width in enumerate(widths):
        for block in range(blocks_per_width):
            strides = 2 if stage and not block else 1
            y = _conv_bn_relu(x, width, strides=strides)
            y = BatchNormalization(momentum=_MOMENTUM)(layers.Conv2D(width, 3, padding="same", use_bias=False)(y))
            if strides != 1 or x.shape[-1] != width:
                x = layers.Conv2D(width, 1, strides, use_bias=False)(x)
                x = BatchNormalization(momentum=_MOMENTUM)(x)
            x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(images, x, name="compact_resnet_backbone")


@register_backbone("compact_resnet_deep", **_FACTS)
def compact_resnet_deep(input_shape: tuple[int, int, int]) -> keras.Model:
    """`compact_resnet` with two blocks for each width, as ResNet101 is a deeper ResNet50."""
    return compact_resnet(input_shape, blocks_per_width=2)


@register_backbone("compact_inception", **_FACTS)
def compact_inception(input_shape: tuple[int, int, int], *, widths: Sequence[int] = (16, 24, 32)) -> keras.Model:
    """Blocks of 1x1, 3x3, two 3x3 and pooled branches side by side, with batch normalisation.

    Source:
        After Inception (Szegedy et al., CVPR 2016).
    """
    images = keras.Input(input_shape)
    x = layers.MaxPooling2D()(_conv_bn_relu(images, widths[0]))
    for stage, width in enumerate(widths):
        if stage:
            x = layers.MaxPooling2D()(x)
        pooled = layers.AveragePooling2D(3, 1, padding="same")(x)
        double = _conv_bn_relu(_conv_bn_relu(_conv_bn_relu(x, width, 1), width), width)
        x = layers.Concatenate()(
            [
                _conv_bn_relu(x, width, 1),
                _conv_bn_relu(_conv_bn_relu(x, width, 1), width),
                double,
                _conv_bn_relu(pooled, width, 1),
            ]
        )
    return keras.Model(images, x, name="compact_inception_backbone")


@register_backbone("compact_densenet", **_FACTS)
def compact_densenet(
    input_shape: tuple[int, int, int],
    *,
    growth: int = 12,
    layers_per_block: Sequence[int] = (3, 3, 3),
) -> keras.Model:
    """Blocks in which each layer sees all before it, pre-activation batch normalisation, halving transitions.

    Source:
        After DenseNet (Huang et al., CVPR 2017).
    """
    images = keras.Input(input_shape)
    x = layers.Conv2D(2 * growth, 3, 2, padding="same", use_bias=False)(images)
    for block, depth in enumerate(layers_per_block):
        if block:
            x = layers.ReLU()(BatchNormalization(momentum=_MOMENTUM)(x))
            x = layers.AveragePooling2D(2)(layers.Conv2D(x.shape[-1] // 2, 1, use_bias=False)(x))
        for _ in range(depth):
            y = layers.ReLU()(BatchNormalization(momentum=_MOMENTUM)(x))
            x = layers.Concatenate()([x, layers.Conv2D(growth, 3, padding="same", use_bias=False)(y)])
    x = layers.ReLU()(BatchNormalization(momentum=_MOMENTUM)(x))
    return keras.Model(images, x, name="compact_densenet_backbone")
