import pandas as pd

from satm_tf.evaluation import label_leaking


def frame(*rates, images=1000):
    names = ["clean", "fgsm", "fgsm"]
    rows = [
        {"attack": name, "source": source, "target": "a", "accuracy": rate, "images": images}
        for name, source, rate in zip(names, ("", "b", "c"), rates, strict=True)
    ]
    return pd.DataFrame(rows)


def test_the_colluding_pair_of_the_papers_printed_recipe_is_caught():
    checked = label_leaking(frame(0.878, 0.966, 0.765))
    assert checked[["source", "clean_accuracy", "leaks"]].values.tolist() == [["b", 0.878, True], ["c", 0.878, False]]


def test_a_difference_within_the_noise_is_no_leak():
    # The 95 % interval of a difference at 0.878 and 1,000 images is 1.96 * sqrt(2 * 0.878 * 0.122 / 1000) = 0.029.
    assert not label_leaking(frame(0.878, 0.89, 0.90)).leaks.any()
    assert label_leaking(frame(0.878, 0.89, 0.90, images=10_000)).leaks.all()


def test_each_fold_is_held_against_its_own_clean_images():
    folds = pd.concat([frame(0.878, 0.966, 0.765).assign(fold=0), frame(0.960, 0.966, 0.99).assign(fold=1)])
    checked = label_leaking(folds)
    assert checked[["fold", "source", "clean_accuracy", "leaks"]].values.tolist() == [
        [0, "b", 0.878, True],
        [0, "c", 0.878, False],
        [1, "b", 0.960, False],
        [1, "c", 0.960, True],
    ]
