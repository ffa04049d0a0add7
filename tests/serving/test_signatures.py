import pytest
import tensorflow as tf

from satm_tf import ImageClassifier
from satm_tf.serving import signatures


@pytest.mark.parametrize("backbone", ["tramer_a", "compact_resnet"])
def test_no_image_passes_convolutions_and_batch_normalisation(backbone):
    """oneDNN fails on an empty batch in the former's second convolution and in the latter's batch normalisation."""
    network = ImageClassifier.from_backbone(backbone, num_classes=3, image_shape=(28, 28, 3))
    run = tf.function(
        lambda images: signatures._run(lambda batch: network(batch, training=False), images),
        input_signature=[tf.TensorSpec([None, 28, 28, 3])],
    )
    assert run(tf.zeros([0, 28, 28, 3])).shape == (0, 3)
    images = tf.random.stateless_uniform([5, 28, 28, 3], [0, 1])
    tf.debugging.assert_near(run(images), network(images, training=False), atol=1e-5)
