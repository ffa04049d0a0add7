"""What the one file with private Keras does is what Keras itself would have done."""

import keras
import numpy as np
import pytest

from satm_tf.training import private_keras


def test_all_layers_are_those_at_any_depth(make_network):
    network = make_network("a", batch_norm=True)
    layers = private_keras.all_layers(network)
    assert network in layers
    assert network.backbone.get_layer("norm") in layers


@pytest.mark.parametrize("steps", [1, 3])
def test_a_counted_step_is_a_step_of_keras(steps):
    ours, theirs = (keras.optimizers.SGD(gradient_accumulation_steps=2) for _ in range(2))
    variable = keras.Variable([1.0])
    theirs.build([variable])
    for _ in range(steps):
        private_keras.count_step(ours)
        theirs.apply([np.float32([1.0])], [variable])
    assert int(ours.iterations) == int(theirs.iterations)


def test_a_copy_excludes_from_weight_decay_what_the_original_does():
    kernel, bias, scale = (keras.Variable([1.0], name=name) for name in ("kernel", "bias", "scale"))
    original, copy = (keras.optimizers.SGD(0.1, weight_decay=0.5) for _ in range(2))
    original.exclude_from_weight_decay(var_list=[kernel], var_names=["bias"])
    private_keras.copy_weight_decay_exclusions(original, copy)
    copy.build([kernel, bias, scale])
    copy.apply([np.float32([0.0])] * 3)
    # Weight decay takes the learning rate times the decay: 1 - 0.1 * 0.5.
    np.testing.assert_allclose([v.numpy()[0] for v in (kernel, bias, scale)], [1.0, 1.0, 0.95], rtol=1e-6)
