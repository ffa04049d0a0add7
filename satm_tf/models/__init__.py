"""Classifiers and the backbones they wrap.

`load_model` loads a model from any file, or from memory, as a model from images in [0, 1] to logits.

`ImageClassifier.from_backbone(name, num_classes=...)` puts a registered backbone between its own preprocessing and a
linear classification layer. The features, which feed that layer and are used by domain adaptation, are for each
backbone:

| backbone | features | from | images | weights |
| --- | --- | --- | --- | --- |
| `vgg16_face` | 512 | means of `pool5` | 224, from 32 | "vggface" |
| `vgg16_face_fc7` | 4,096 | `fc7.relu` | 224, smaller ones resized | "vggface" |
| `resnet50_face`, `senet50_face` | 2,048 | means of `avg_pool` | 224, resized if under 197 | "vggface" |
| `mobilenet_face` | 1,024 | means of `conv_pw_13_relu` | 224, from 32 | "vggface2" |
| `vgg16_imagenet` | 512 | means of `block5_pool` | 224, from 32 | "imagenet" |
| `resnet50_imagenet`, `resnet101_imagenet` | 2,048 | means of `conv5_block3_out` | 224, from 32 | "imagenet" |
| `inception_v3_imagenet` | 2,048 | means of `mixed10` | 299, resized if under 75 | "imagenet" |
| `inception_resnet_v2_imagenet` | 1,536 | means of `conv_7b_ac` | 299, resized if under 75 | "imagenet" |
| `efficientnet_v2_b0_imagenet`, `..._s_imagenet` | 1,280 | means of `top_activation` | 224, 384, from 32 | "imagenet" |
| `convnext_tiny_imagenet` | 768 | means, normalised | 224, from 32 | "imagenet" |
| `tramer_a`, `tramer_b`, `tramer_c`, `tramer_d` | 128, 128, 128, 300 | the last hidden layer | 28 | none |
| `compact_vgg` | 256 | the hidden layer | 48, from 16 | none |
| `compact_resnet`, `compact_resnet_deep` | 64 | means of the last map | 48, from 16 | none |
| `compact_inception`, `compact_densenet` | 128, 69 | means of the last map | 48, from 16 | none |

Dropout comes between the features and the classification layer: 0.5 for Tramèr's networks, as published, 0 for the
others, unless you set it. `weights` may always be the path of an HDF5 file of the backbone's weights instead, or None.

`mobilenet_face_classifier("gender")` is a whole trained network, with the published head for gender or age.

Your own backbone is a Keras model from images to a feature map or to features. Pass it to `ImageClassifier`:

    backbone = keras.applications.MobileNetV2(include_top=False, weights="imagenet", input_shape=(96, 96, 3))
    network = ImageClassifier(backbone, 8, image_shape=(96, 96, 3), preprocessing=Preprocessing(scale=2.0, offset=-1.0))

or register it, so that configurations can name it:

    @register_backbone("mobilenet_v2", preprocessing={"scale": 2.0, "offset": -1.0}, default_size=96)
    def mobilenet_v2(input_shape):
        return keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=input_shape)
"""

from satm_tf.models import compact, imagenet, mnist, mobilenet_face, vggface  # noqa: F401  (they register their backbones)
from satm_tf.models.classifier import ImageClassifier
from satm_tf.models.files import FromProbabilities, LoadedModel, load_classifier, load_model
from satm_tf.models.mobilenet_face import mobilenet_face_classifier
from satm_tf.models.normalization import restore_batch_norm
from satm_tf.models.preprocessing import Preprocessing
from satm_tf.models.registry import Backbone, available_backbones, get_backbone, register_backbone

__all__ = [
    "Backbone",
    "FromProbabilities",
    "ImageClassifier",
    "LoadedModel",
    "Preprocessing",
    "available_backbones",
    "get_backbone",
    "load_classifier",
    "load_model",
    "mobilenet_face_classifier",
    "register_backbone",
    "restore_batch_norm",
]
