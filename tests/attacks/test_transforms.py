from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import yaml

from satm_tf import attacks

SEED = tf.constant([0, 5])


def _seen(transform, images, seed=SEED):
    """What the network would see."""
    seen = []

    def spy(x, training=False):
        seen.append(x.numpy())
        return tf.reduce_sum(x, [1, 2])

    transform.network(spy, seed)(tf.constant(images), training=False)
    return seen[0]


def test_mi_di_ti_is_one_expression_and_its_configuration_round_trips():
    attack = attacks.MIFGSM(
        epsilon=0.0625, transforms=(attacks.InputDiversity(probability=0.7), attacks.TranslationInvariance(size=5))
    )
    written = yaml.safe_dump(attacks.serialize(attack))
    assert attacks.get(yaml.safe_load(written)) == attack
    by_name = attacks.get(
        "mi_fgsm",
        epsilon=0.0625,
        transforms=[{"name": "input_diversity", "probability": 0.7}, {"name": "translation_invariance", "size": 5}],
    )
    assert by_name == attack


@pytest.fixture(scope="module")
def without_transforms(network, images, labels):
    return attacks.NIFGSM(epsilon=0.1, steps=3, neighbours=1)(network, images, labels, seed=1)


@pytest.mark.parametrize(
    "transforms",
    [
        ["input_diversity"],
        ["translation_invariance"],
        ["scale_invariance"],
        [{"name": "block_shuffle", "copies": 2}],
        [{"name": "admix", "mixed": 2, "copies": 2}],
        ["scale_invariance", "input_diversity", "translation_invariance"],
    ],
)
def test_each_part_changes_the_attack_and_keeps_its_promises(network, images, labels, transforms, without_transforms):
    attack = attacks.NIFGSM(epsilon=0.1, steps=3, neighbours=1, transforms=transforms)
    crafted = attack(network, images, labels, seed=1).numpy()
    assert np.abs(crafted - images).max() <= 0.1 + 1e-6
    assert np.all((crafted >= 0) & (crafted <= 1))
    assert np.mean(~np.isclose(crafted, without_transforms, atol=1e-5)) > 0.02
    graph = attack.compiled(network)(images, labels, seed=1)
    assert np.mean(np.isclose(graph, crafted, atol=1e-5)) > 0.98


def test_input_diversity_shrinks_onto_black_with_its_probability():
    white = np.ones([400, 20, 20, 3], "float32")
    seen = _seen(attacks.InputDiversity(probability=0.3, smallest=0.5), white)
    changed = seen.min((1, 2, 3)) < 0.5
    # Four deviations of the share of 400 are 9.2 %.
    assert abs(changed.mean() - 0.3) < 0.092
    share = seen[changed].mean((1, 2, 3))
    # A white image covers between a quarter (less an edge of half a pixel around) and all of the black.
    assert share.min() > 0.4**2
    assert share.min() < 0.35
    assert share.max() > 0.8
    np.testing.assert_array_equal(seen[~changed], white[~changed])
    assert np.any(_seen(attacks.InputDiversity(), white, tf.constant([0, 6])) != _seen(attacks.InputDiversity(), white))


def test_input_diversity_is_bilinear_resizing():
    ramp = np.tile(np.linspace(0, 1, 21, dtype="float32")[None, :, None, None], [50, 1, 21, 3])
    seen = _seen(attacks.InputDiversity(probability=1.0, smallest=0.5), ramp)
    for image in seen:
        column = image[:, image.sum((0, 2)).argmax(), 0]
        inside = column[np.nonzero(column)]
        # A shrunk ramp is a steeper ramp: evenly spaced.
        np.testing.assert_allclose(np.diff(inside), np.diff(inside).mean(), atol=1e-5)
        assert 1 / 20 - 1e-6 <= np.diff(inside).mean() <= 2 / 20 + 1e-6


def test_translation_invariance_is_the_mean_gradient_of_shifted_images(images):
    """Dong et al., Eq. 7 and 8: the blurred gradient is the weighted sum of shifted gradients."""
    size, reach = 5, 2
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * (reach / np.sqrt(3)) ** 2))
    weights /= weights.sum()
    padded = np.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)])
    expected = sum(weights[i, j] * padded[:, i : i + 8, j : j + 8] for i in range(size) for j in range(size))
    np.testing.assert_allclose(
        attacks.TranslationInvariance(size=size).gradient(tf.constant(images)), expected, atol=1e-6
    )
    np.testing.assert_allclose(attacks.TranslationInvariance(size=1).gradient(tf.constant(images)), images, atol=1e-6)


def test_scale_invariance_is_the_mean_gradient_over_brightnesses(network, images, labels):
    def gradient(scale):
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = network(x / scale, training=False)
            loss = tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return tape.gradient(loss, x).numpy()

    total = sum(gradient(scale) for scale in (1, 2, 4))
    expected = np.clip(images + 0.1 * np.sign(total), 0, 1)
    attack = attacks.BIM(epsilon=0.1, steps=1, transforms=[attacks.ScaleInvariance(copies=3)])
    assert np.mean(np.isclose(attack(network, images, labels), expected, atol=1e-6)) > 0.99


def test_images_pass_the_parts_in_the_order_given():
    images = np.ones([2, 10, 10, 3], "float32")
    model = attacks.ScaleInvariance(copies=2)
    inner = []

    def spy(x, training=False):
        inner.append(x.shape[0])
        return tf.zeros([tf.shape(x)[0], 3])

    spy.gives_logits = True  # So that it sees no probe.

    def first_seen(parts):
        inner.clear()
        attack = attacks.BIM(epsilon=0.1, steps=1, transforms=parts)
        with pytest.raises(ValueError, match="No gradient"):
            attack(spy, images, [0, 1])
        return list(inner)

    assert first_seen((model, attacks.InputDiversity())) == [4]
    assert first_seen((attacks.InputDiversity(), model)) == [4]
    seen = _seen(attacks.ScaleInvariance(copies=2), images)
    np.testing.assert_array_equal(seen, np.concatenate([images, images / 2]))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: attacks.InputDiversity(probability=1.5),
        lambda: attacks.InputDiversity(smallest=0.0),
        lambda: attacks.TranslationInvariance(size=4),
        lambda: attacks.ScaleInvariance(copies=0),
    ],
)
def test_numbers_out_of_range_are_named(mistake):
    with pytest.raises(ValueError, match="Received"):
        mistake()


def test_block_shuffle_keeps_every_pixel_and_moves_it_with_its_block():
    images = np.arange(2 * 12 * 10 * 3, dtype="float32").reshape(2, 12, 10, 3) / 720
    seen = _seen(attacks.BlockShuffle(copies=4, blocks=3, degrees=0.0), images).reshape(4, 2, 12, 10, 3)
    for copy in seen:
        np.testing.assert_allclose(np.sort(copy.ravel()), np.sort(images.ravel()), atol=1e-6)
    assert len({copy.tobytes() for copy in seen}) > 1, "each copy has its own order"
    assert any(np.abs(copy - images).max() > 0.01 for copy in seen)
    turned = _seen(attacks.BlockShuffle(copies=1, blocks=1, degrees=90.0), np.ones([1, 9, 9, 3], "float32"))
    assert turned[0, 4, 4, 0] == pytest.approx(1.0)
    assert turned[0, 0, 0, 0] < 1.0, "black comes in at the corners"


def test_admix_adds_a_share_of_other_images_at_each_brightness():
    images = np.stack([np.full([4, 4, 3], value, "float32") for value in (0.2, 0.4, 0.6)])
    seen = _seen(attacks.Admix(mixed=2, strength=0.5, copies=2), images).reshape(2, 2, 3, 4, 4, 3)[..., 0, 0, 0]
    for bright, dark in seen:
        added = (bright - [0.2, 0.4, 0.6]) / 0.5
        np.testing.assert_allclose(np.sort(added), [0.2, 0.4, 0.6], atol=1e-6)
        np.testing.assert_allclose(dark, bright / 2, atol=1e-7)


@pytest.mark.parametrize(
    "options", [("block_shuffle", {"copies": 0}), ("block_shuffle", {"degrees": 200}), ("admix", {"strength": 2})]
)
def test_numbers_of_the_new_transforms_are_checked(options):
    with pytest.raises(ValueError, match="Received"):
        attacks.transforms.Transform.get(options[0], **options[1])


@pytest.mark.parametrize("name", ["block_shuffle", "admix", "scale_invariance"])
def test_copies_go_to_each_network_of_an_ensemble(network, images, labels, name):
    """With averaged losses, where each network answers for each copy: twice the same network is that network."""
    attack = attacks.BIM(epsilon=0.1, steps=1, transforms=[{"name": name, "copies": 2}])
    twice = attack(attacks.Ensemble([network, network], fuse="losses"), images, labels)
    assert np.mean(np.isclose(twice, attack(network, images, labels), atol=1e-6)) > 0.99
