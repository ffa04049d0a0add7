"""The compact backbones: what makes each another architecture, and that each learns."""

import keras
import numpy as np
import pytest

from satm_tf.models import ImageClassifier

NAMES = ["compact_densenet", "compact_inception", "compact_resnet", "compact_vgg"]


def layers_of(network, kind):
    return [layer for layer in network.backbone.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("size", [16, 28, 96])
@pytest.mark.parametrize("name", NAMES)
def test_builds_at_the_sizes_it_is_for(name, size):
    network = ImageClassifier.from_backbone(name, num_classes=8, image_shape=(size, size, 3))
    assert network(np.zeros((1, size, size, 3), "float32")).shape == (1, 8)
    assert network.count_params() < 3_000_000


def test_only_the_vgg_like_one_has_no_batch_normalisation():
    networks = {name: ImageClassifier.from_backbone(name, num_classes=2) for name in NAMES}
    without = [name for name in NAMES if not layers_of(networks[name], keras.layers.BatchNormalization)]
    assert without == ["compact_vgg"]
    joins = {
        name: (len(layers_of(n, keras.layers.Add)), len(layers_of(n, keras.layers.Concatenate)))
        for name, n in networks.items()
    }
    assert joins == {
        "compact_densenet": (0, 9),
        "compact_inception": (0, 3),
        "compact_resnet": (4, 0),
        "compact_vgg": (0, 0),
    }


@pytest.mark.parametrize("name", NAMES)
def test_learns_what_a_glance_tells_apart(name):
    keras.utils.set_random_seed(0)
    labels = np.arange(64) % 2
    images = np.random.default_rng(0).random((64, 16, 16, 3)).astype("float32") * 0.5
    images[labels == 1, 4:12, 4:12] += 0.5
    network = ImageClassifier.from_backbone(name, num_classes=2, image_shape=(16, 16, 3))
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = network.fit(images, labels, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.2 < np.log(2)  # chance is log 2
