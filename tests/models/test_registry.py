"""The registry of backbones, and what it says when a name or a size is wrong."""

import keras
import pytest

from satm_tf.models import ImageClassifier, available_backbones, get_backbone, register_backbone, registry


@pytest.fixture
def own_backbone(monkeypatch):
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))

    @register_backbone("own_tiny", preprocessing={"scale": 2.0, "offset": -1.0}, default_size=12, minimum_size=8)
    def own_tiny(input_shape):
        images = keras.Input(input_shape)
        return keras.Model(images, keras.layers.Conv2D(4, 3, activation="relu")(images))

    return own_tiny


def test_the_compact_backbones_are_there():
    assert {"compact_vgg", "compact_resnet", "compact_inception", "compact_densenet"} <= set(available_backbones())
    assert available_backbones() == sorted(available_backbones())


def test_an_own_backbone_becomes_available(own_backbone):
    assert "own_tiny" in available_backbones()
    assert get_backbone("own_tiny").build is own_backbone
    network = ImageClassifier.from_backbone("own_tiny", num_classes=3)
    assert network.image_shape == (12, 12, 3)
    assert network.preprocessing.scale == 2.0
    assert network.feature_size == 4


def test_an_own_backbone_loads_weights_from_a_file(own_backbone, tmp_path):
    first = ImageClassifier.from_backbone("own_tiny", num_classes=3)
    path = tmp_path / "own.weights.h5"
    first.backbone.save_weights(path)
    second = ImageClassifier.from_backbone("own_tiny", num_classes=2, weights=str(path))
    for ours, theirs in zip(second.backbone.get_weights(), first.backbone.get_weights(), strict=True):
        assert (ours == theirs).all()
    assert second.initial_weights["file"] == "own.weights.h5"


def test_a_taken_name_is_refused(own_backbone):
    with pytest.raises(ValueError, match=r"already a backbone of this name.*Received: 'own_tiny'"):
        register_backbone("own_tiny")(lambda input_shape: own_backbone(input_shape))


def test_the_same_function_may_be_defined_anew_as_by_a_notebooks_cell(own_backbone):
    assert register_backbone("own_tiny")(own_backbone) is own_backbone


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown backbone. Did you mean 'compact_resnet'.*Received: 'compact_resnt'"):
        ImageClassifier.from_backbone("compact_resnt", num_classes=2)


def test_unknown_weights_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"'compact_vgg'.*published: none.*Received: weights='imagenet'"):
        ImageClassifier.from_backbone("compact_vgg", num_classes=2, weights="imagenet")
