"""The attack of the trainer's tests, written out from the formula."""

import keras
import numpy as np
import tensorflow as tf

from satm_tf.attacks import RandomisedStep

EPSILON = 0.05
# No random step, so that the formula needs none of the attack's random numbers.
ATTACK = RandomisedStep(epsilon=EPSILON, alpha=0.0)


def craft(network, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        probabilities = tf.nn.softmax(network(images, training=False))
        least_likely = tf.argmin(probabilities, -1)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(least_likely, probabilities))
    return np.clip(images - EPSILON * np.sign(tape.gradient(loss, images)), 0.0, 1.0)
