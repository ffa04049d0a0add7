"""Answers that are none: every one is a ServingError that says what came, or is as good as the true one."""

import json

import numpy as np
import pytest

from satm_tf.serving import ServingError
from satm_tf.serving.answers import check, from_json, from_lists, shown
from tests.serving.fuzzing import GOOD, fuzz_answers


def read(outputs, signature="serving_default", images=3):
    return check(signature, from_lists(from_json(json.dumps({"outputs": outputs}).encode())["outputs"]), images)


def test_a_good_answer_is_given_as_arrays():
    answer = read({**GOOD, "more": "of another model's"})
    assert {name: value.tolist() for name, value in answer.items()} == GOOD
    assert read({"features": [[1, 2.5]] * 2, "valid": [True] * 2}, "features", 2)["features"].tolist() == [[1, 2.5]] * 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid": ["false", False, True]}, r"valid must be true or false \[images\]. Received: \['false'"),
        ({"valid": [1, 0, 1]}, "valid must be true or false"),
        ({"valid": [True, False]}, r"for 3 images. Received: bool \[2\]"),
        ({"class_id": [1.0, -1, 0]}, "class_id must be whole numbers"),
        ({"class_id": [True, -1, 0]}, "class_id must be whole numbers"),
        ({"class_id": [2**70, -1, 0]}, "class_id must be whole numbers"),
        ({"class_id": [2, -1, 0]}, "one of 2 classes"),
        ({"class_id": [1, 0, 0]}, "an invalid one -1"),
        ({"label": ["b", 1, "a"]}, "label must be strings"),
        ({"label": None}, "label must be strings .* Received: None"),
        ({"probabilities": None}, "probabilities must be numbers"),
        ({"probabilities": [[0.25, 0.75], [0.0], [1.0, 0.0]]}, "probabilities must be numbers"),
        ({"probabilities": [[0.25, 0.75]] * 4}, r"for 3 images. Received: float64 \[4, 2\]"),
        ({"probabilities": [0.25, 0.75, 0.5]}, "probabilities must be numbers"),
        ({"probabilities": [[0.25, "0.75"], [0, 0], [1, 0]]}, "probabilities must be numbers"),
        ({"probabilities": [[25, 75], [0, 0], [100, 0]]}, r"lie in \[0, 1\]. Received: 0 to 100"),
        ({"probabilities": [[1e999, 0.0]] * 3}, "must be finite"),
        ({"probabilities": {"0": [1, 2]}}, "probabilities must be numbers"),
        ({"label": ["b", "\ud800", "a"]}, r"label must be strings in UTF-8. Received: \['b', '\\ud800', 'a'\]"),
    ],
)
def test_a_wrong_output_is_named_with_what_came(changed, message):
    with pytest.raises(ServingError, match=message):
        read({**GOOD, **changed})


def test_a_detectors_outputs_are_given_both_or_refused():
    detected = {**GOOD, "adversarial_score": [0.5, 0.0, -2.0], "suspicious": [True, False, False]}
    assert {name: value.tolist() for name, value in read(detected).items()} == detected
    for changed, message in (
        ({"suspicious": [1, 0, 0]}, "suspicious must be true or false"),
        ({"adversarial_score": [[0.5]] * 3}, "adversarial_score must be numbers"),
        ({"adversarial_score": [0.5]}, "for 3 images"),
    ):
        with pytest.raises(ServingError, match=message):
            read({**detected, **changed})
    del detected["suspicious"]
    with pytest.raises(ServingError, match="lacks suspicious"):
        read(detected)


@pytest.mark.parametrize("outputs", [[1, 2], None, "outputs", 3, [GOOD]])
def test_outputs_that_are_no_object(outputs):
    with pytest.raises(ServingError, match="must be an object"):
        read(outputs)


def test_what_is_no_json():
    for body in (b"", b"\xff\xfe", b"{", b"[1]", b"3", b"<html>", b'{"outputs": ' + b"9" * 5000 + b"}"):
        assert from_json(body) == {}
    with pytest.raises(ServingError, match="nested too deeply"):
        from_json(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(ServingError, match=r"finite\. Received: NaN"):
        from_json(b'{"outputs": {"probabilities": [[NaN]]}}')


def test_a_message_is_short_and_one_line_whatever_came():
    assert shown(b"\x1b[2J\nA\xff") == "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}A\N{REPLACEMENT CHARACTER}"
    assert shown(list(range(10**6))) == "[0, 1, 2, 3, 4, 5, ...]"
    with pytest.raises(ServingError, match=r"Received: x{200}\.{3}$"):
        check("features", {"x" * 10**6: np.zeros(1)}, 1)


def test_labels_of_bytes_are_texts_or_refused():
    good = {name: np.array(value) for name, value in GOOD.items()}
    labels = np.array([b"b", b"", "Ä".encode()], object)
    assert check("serving_default", {**good, "label": labels}, 3)["label"].tolist() == ["b", "", "Ä"]
    labels[0] = b"\xff"
    with pytest.raises(ServingError, match="label must be strings in UTF-8"):
        check("serving_default", {**good, "label": labels}, 3)


def test_arrays_of_other_kinds():
    good = {"features": np.zeros((2, 3), np.float32), "valid": np.array([True, False])}
    assert set(check("features", good, 2)) == set(good)
    for changed in (
        {"features": np.zeros((2, 3), complex)},
        {"features": np.zeros((2, 3, 1), np.float32)},
        {"features": np.full((2, 3), np.nan, np.float32)},
        {"valid": np.array([1, 0])},
        {"valid": np.array(True)},
    ):
        with pytest.raises(ServingError, match="Received"):
            check("features", {**good, **changed}, 2)
    with pytest.raises(ServingError, match=r"lacks valid\. Received: features"):
        check("features", {"features": good["features"]}, 2)


def test_a_changed_answer_is_refused_or_means_what_it_says():
    assert fuzz_answers(seed=0, count=400)["refused"] > 200
