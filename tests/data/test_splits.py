import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satm_tf.data import Account
from satm_tf.data.splits import assemble, by_subject, carve, check_exclusive, joined

SUBJECTS = st.lists(st.integers(0, 12), min_size=2, max_size=80).filter(lambda names: len(set(names)) > 1)


@settings(deadline=None)
@given(SUBJECTS, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_no_subject_is_on_both_sides_and_the_share_is_met(subjects, share, seed):
    subjects = np.array(subjects)
    drawn = by_subject(subjects, share, seed)
    assert not set(subjects[drawn]) & set(subjects[~drawn])
    assert 0 < drawn.sum() < len(subjects)
    # The nearest that whole subjects can come: within half of the largest, or the one subject that each side must have.
    largest = np.unique(subjects, return_counts=True)[1].max()
    slack = max(largest / 2, largest - share * len(subjects), largest - (1 - share) * len(subjects))
    assert abs(drawn.sum() - share * len(subjects)) <= slack + 1e-9


@settings(deadline=None)
@given(SUBJECTS, st.integers(0, 2**32))
def test_the_draw_follows_from_the_seed(subjects, seed):
    np.testing.assert_array_equal(by_subject(np.array(subjects), 0.3, seed), by_subject(np.array(subjects), 0.3, seed))


def test_another_seed_draws_others():
    draws = {tuple(by_subject(np.arange(50), 0.5, seed)) for seed in range(10)}
    assert len(draws) == 10


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_share_outside_its_range(share):
    with pytest.raises(ValueError, match=f"above 0 and below 1. Received: {share}"):
        by_subject(np.arange(5), share, 0)


def test_one_subject_cannot_be_split():
    with pytest.raises(ValueError, match="Received: 1 subjects, 3 images"):
        by_subject(np.array(["a", "a", "a"]), 0.5, 0)


@settings(deadline=None, max_examples=30)
@given(SUBJECTS, st.integers(0, 1000))
def test_carve_leaves_other_sides_alone(subjects, seed):
    subjects = pd.Series(["test subject", *map(str, subjects)])
    sides = carve(pd.Series(["test"] + ["train"] * (len(subjects) - 1)), subjects, {"validation": 0.3}, seed)
    assert sides.eq("test").to_list() == [True] + [False] * (len(sides) - 1)
    check_exclusive(sides, subject=subjects)
    assert set(sides) == {"test", "train", "validation"}


def test_joined_follows_subjects_and_images_to_the_end():
    subjects, images = pd.Series(list("abcde"), index=[3, 1, 4, 9, 5]), pd.Series(list("12231"), index=[3, 1, 4, 9, 5])
    assert joined(subjects, images).to_dict() == {3: "a", 1: "b", 4: "b", 9: "d", 5: "a"}
    assert joined(pd.Series(list("abcab")), pd.Series(list("12345"))).to_list() == list("abcab")
    assert joined(pd.Series(list("aabb")), pd.Series(list("1223"))).to_list() == list("aaaa")


def test_check_exclusive_names_what_is_torn():
    with pytest.raises(ValueError, match=r"No subject may be on two sides.* Received: 1 .* first 'b' on \[0, 1\]"):
        check_exclusive(pd.Series([0, 0, 1, 1]), subject=pd.Series(["a", "b", "b", "c"]))
    check_exclusive(pd.Series([0, 0, 1]), subject=pd.Series(["a", "a", "b"]), image=pd.Series(["1", "2", "3"]))


@pytest.fixture
def rows():
    names = list("abcd")
    return pd.DataFrame({"file": names, "image": names, "orientation": [1, 1, 1, 3], "label": [0, 1, 1, 0]})


def test_assemble(rows):
    rows = rows.assign(side=["train", "train", "validation", "test"])
    data = assemble(rows, Account(4, 4), ("no", "yes"), False, {}, 0)
    assert data.train.subjects.tolist() == ["a", "b"]
    assert data.train.paths.tolist() == ["a", "b"]
    assert data.validation.labels.tolist() == [1]
    assert data.test.orientations.tolist() == [3]
    assert data.train.orientations is None


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (["train", "train", "train", "test"], "Received: {'train': 3, 'validation': 0, 'test': 1}"),
        (["validation", "train", "train", "test"], r"at least two classes. Received: only \['yes'\]"),
    ],
)
def test_assemble_refuses(rows, sides, message):
    with pytest.raises(ValueError, match=message):
        assemble(rows.assign(side=sides), Account(4, 4), ("no", "yes"), False, {}, 0)
