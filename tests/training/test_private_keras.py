"""Private Keras stands in one file, and what that file does is what Keras itself would have done."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest

import satm_tf
from satm_tf.training import private_keras

PACKAGE = Path(satm_tf.__file__).parent
OWNER = PACKAGE / "training" / "private_keras.py"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHONS_OWN = {"_asdict", "_fields", "_make", "_replace", "_exit"}  # of named tuples and of os
KNOWN = {"_flatten_layers", "_maybe_symbolic_build", "_value", "_iterations"}


def private_names(tree):
    """Each private attribute that is read or written, and each method defined, with whether `self` or `cls` has it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.attr, isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.startswith("_"):
            yield node.name, True


def uses_of_private_keras(text, own):
    """The private names of Keras in a source, where `own` are the package's."""
    found = {name for name, _ in private_names(ast.parse(text)) if name in KNOWN or name not in own | PYTHONS_OWN}
    return found | ({"keras.src"} if "keras.src" in text else set())


def own_names():
    """Private names that the package defines: functions, classes, and attributes of `self`."""
    trees = [ast.parse(path.read_text()) for path in SOURCES if path != OWNER]
    names = {name for tree in trees for name, own in private_names(tree) if own}
    targets = {
        node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id.startswith("_")
    }
    return names | targets


def test_private_keras_stands_in_one_file():
    own = own_names()
    found = {
        str(path.relative_to(PACKAGE)): uses
        for path in SOURCES
        if path != OWNER and (uses := uses_of_private_keras(path.read_text(), own))
    }
    assert found == {}
    assert uses_of_private_keras(OWNER.read_text(), own) >= KNOWN | {"keras.src"}


@pytest.mark.parametrize(
    "text", ["from keras.src import tree", "x._flatten_layers()", "self._iterations", "model._new_in_keras_4"]
)
def test_the_search_would_find_it(text):
    assert uses_of_private_keras(text, own_names())


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
