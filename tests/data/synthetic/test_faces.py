"""Synthetic faces: the data set on disk is Adience's to the letter, repeatable, whole or absent, and ageing shows."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.data.synthetic import faces
from satm_tf.data.synthetic import renderer as face_renderer
from satm_tf.data.synthetic.traits import NUISANCES, age_of_stage, face_traits, stage_of_age

SUBJECTS, EACH, SIZE = 80, 2, 32
PUBLISHED_HEADER = (
    "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy\ttilt_ang\tfiducial_yaw_angle\tfiducial_score"
)
PUBLISHED_AGES = ["(0, 2)", "(4, 6)", "(8, 12)", "(15, 20)", "(25, 32)", "(38, 43)", "(48, 53)", "(60, 100)"]


def write(root: Path, **options) -> Path:
    return faces.write_adience(
        root, **{"num_subjects": SUBJECTS, "images_per_subject": EACH, "image_size": SIZE, "progress": False, **options}
    )


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def root(synthetic_faces):
    return synthetic_faces


@pytest.fixture(scope="module")
def folds(root):
    """The rows of each fold file below its header, by column."""
    names = PUBLISHED_HEADER.split("\t")
    texts = [(root / f"fold_{fold}_data.txt").read_text() for fold in range(5)]
    return [[dict(zip(names, line.split("\t"), strict=True)) for line in text.splitlines()[1:]] for text in texts]


def face_file(root: Path, row: dict[str, str]) -> Path:
    return root / "aligned" / row["user_id"] / f"landmark_aligned_face.{row['face_id']}.{row['original_image']}"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(root, tmp_path):
    again, other = contents(write(tmp_path / "again")), contents(write(tmp_path / "other", seed=1))
    assert again == contents(root)
    assert not set(other.values()) & set(again.values())


def test_fold_files_read_as_the_published_ones(root, folds):
    for fold, rows in enumerate(folds):
        assert (root / f"fold_{fold}_data.txt").read_text().split("\n")[0] == PUBLISHED_HEADER
        for row in rows:
            assert set(row["user_id"][:-4]) <= set("0123456789")
            assert row["user_id"][-4:-2] == "@N"
            assert row["original_image"].endswith("_o.jpg")
            assert row["age"] in PUBLISHED_AGES
            assert row["gender"] in ("m", "f")
            for name in ("face_id", "x", "y", "dx", "dy", "tilt_ang", "fiducial_yaw_angle", "fiducial_score"):
                assert str(int(row[name])) == row[name]


def test_every_row_has_its_jpeg_and_every_jpeg_its_row(root, folds):
    named = [face_file(root, row) for rows in folds for row in rows]
    assert len(named) == SUBJECTS * EACH
    assert sorted(named) == sorted(root.rglob("*.jpg"))
    assert tf.io.decode_jpeg(named[0].read_bytes()).shape == (SIZE, SIZE, 3)
    assert named[0].read_bytes()[:2] == b"\xff\xd8"


def test_folds_share_no_subject_and_hold_all_groups_and_genders_alike(folds):
    people = [{row["user_id"] for row in rows} for rows in folds]
    assert sum(map(len, people)) == len(set.union(*people)) == SUBJECTS
    for rows in folds:
        counts = Counter((row["age"], row["gender"]) for row in rows)
        assert counts == {(age, gender): EACH for age in PUBLISHED_AGES for gender in "mf"}


def test_the_smallest_set_still_has_every_group_in_every_fold(tmp_path):
    root = write(tmp_path / "small", num_subjects=40, images_per_subject=1)
    for fold in range(5):
        lines = (root / f"fold_{fold}_data.txt").read_text().splitlines()[1:]
        assert sorted(line.split("\t")[3] for line in lines) == sorted(PUBLISHED_AGES)
        assert {line.split("\t")[4] for line in lines} == {"m", "f"}


def test_a_subject_keeps_age_and_gender_while_the_images_differ(root, folds):
    albums = defaultdict(list)
    for row in (row for rows in folds for row in rows):
        albums[row["user_id"], row["face_id"], row["age"], row["gender"]].append(face_file(root, row).read_bytes())
    assert len(albums) == SUBJECTS
    assert all(len(set(album)) == EACH for album in albums.values())


def test_images_of_one_person_resemble_each_other_more_than_others():
    # All of one age and gender. Pose, light and background differ in each image, so the middle of the face is compared.
    # Measured over four seeds: 0.52 to 0.60 times as far apart as different people, with a standard error of 0.04.
    people = np.repeat(np.arange(60), 2)
    drawn = faces.render([28] * 120, ["f"] * 120, identity=people, image_size=SIZE) / 255.0
    middle = drawn[:, 8:24, 8:24]
    same = np.abs(middle[0::2] - middle[1::2]).mean()
    other = np.abs(middle[0::2] - np.roll(middle[1::2], 1, axis=0)).mean()
    assert same < 0.75 * other


def test_a_person_does_not_depend_on_who_else_is_drawn():
    alone = face_traits([28], ["f"], identity=[7])
    together = face_traits([50, 28, 3], ["m", "f", "m"], identity=[2, 7, 30])
    person = [name for name in alone if name not in NUISANCES]
    assert len(person) > 40
    assert all(alone[name][0] == together[name][1] for name in person)


def test_gender_shows_and_may_be_a_string_or_a_list():
    women, men = (face_traits([28] * 200, gender * 200)["hair_length"] for gender in "fm")
    assert np.array_equal(men, face_traits([28] * 200, ["m"] * 200)["hair_length"])
    # The same people but for the means in `IDENTITY`, 0.8 apart, and a few who look too young for all of it.
    assert women.mean() - men.mean() == pytest.approx(0.8, abs=0.03)
    assert women.min() < men.max()


def test_neighbouring_groups_lie_closer_than_distant_ones():
    # Pixels of 40 people in the same 40 photographs at every age, so that age alone differs. Measured over four seeds:
    # three and more steps lie 2.2 to 2.8 times as far apart as one; beyond four, white hair nears a bald baby's scalp
    # again, so only the first four steps are asked to rise.
    means = [
        faces.render([age] * 40, ["m", "f"] * 20, identity=range(40), image_size=SIZE).mean(0)
        for age in age_of_stage(np.arange(8))
    ]
    distance = [np.mean([np.abs(means[k] - means[k + step]).mean() for k in range(8 - step)]) for step in range(1, 8)]
    assert all(near < far for near, far in pairwise(distance[:4]))
    assert min(distance[2:]) > 1.6 * distance[0]


def test_neighbouring_groups_overlap_in_every_cue_that_changes_and_distant_ones_do_not_in_eye_height():
    stages = np.repeat(np.arange(8), 400)
    eyes = face_traits(age_of_stage(stages), ["m", "f"] * 1600)["eye_y"].reshape(8, 400)
    assert all(eyes[k].min() < eyes[k + 1].max() for k in range(7))
    assert eyes[0].min() > eyes[5].max()


def test_stages_and_ages_are_inverse_and_a_group_is_one_stage_wide():
    assert stage_of_age([0, 2, 4, 60]) == pytest.approx([-0.4, 0.4, 0.6, 6.6])
    assert age_of_stage(stage_of_age([1, 7, 30, 70])) == pytest.approx([1, 7, 30, 70])


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    drawn = []

    def interrupted(*args, **options):
        if drawn:
            assert list(tmp_path.rglob("*.jpg")), "nothing was written yet, so nothing could be left behind"
            raise KeyboardInterrupt
        drawn.append(1)
        return face_renderer.draw_faces(*args, **options)

    monkeypatch.setattr(faces, "draw_faces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_leaves_the_set_alone(tmp_path, monkeypatch):
    root = write(tmp_path / "set", num_subjects=40, images_per_subject=1)
    before = {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}
    monkeypatch.setattr(faces, "draw_faces", lambda *args, **options: pytest.fail("drew again"))
    assert write(root, num_subjects=40, images_per_subject=1) == root
    assert {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))} == before


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "set").mkdir()
    assert (write(tmp_path / "set", num_subjects=40, images_per_subject=1) / "fold_4_data.txt").is_file()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"files other than synthetic faces.*--data\.format.*Received: root="):
        write(tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(FileExistsError, match="Choose another folder"):
        write(tmp_path / "set")


def test_a_set_with_other_parameters_is_refused(root):
    with pytest.raises(FileExistsError, match=r"other parameters, .*'seed': 0.*Received: .*'seed': 9"):
        write(root, seed=9)


def test_a_set_with_a_missing_image_is_refused(tmp_path):
    root = write(tmp_path / "set", num_subjects=40, images_per_subject=1)
    next(root.rglob("*.jpg")).unlink()
    with pytest.raises(FileExistsError, match="39 of 40 images"):
        write(root, num_subjects=40, images_per_subject=1)


def test_the_parameters_are_on_record(root):
    record = json.loads((root / faces.PARAMETERS_FILE).read_text())
    assert (
        record.items() >= {"num_subjects": SUBJECTS, "images_per_subject": EACH, "image_size": SIZE, "seed": 0}.items()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_subjects": 39}, r"`num_subjects` must be an integer of 40 or more\. Received: num_subjects=39"),
        ({"images_per_subject": 0}, r"`images_per_subject` must .* 1 or more\. Received: images_per_subject=0"),
        ({"image_size": 31}, r"`image_size` must be an integer from 32 to 816\. Received: image_size=31"),
        ({"image_size": 64.0}, r"Received: image_size=64\.0"),
        ({"seed": -1}, r"`seed` must be .* Received: seed=-1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("age", "gender", "identity", "message"),
    [
        ([-1.0], "m", None, "`age` must be"),
        ([float("nan")], "m", None, "`age` must be"),
        ([], "", None, "`age` must be"),
        ([3], "mf", None, r"`gender` must hold .* Received: gender='mf'"),
        ([3], "u", None, "`gender` must hold"),
        ([3, 4], "mf", [1], r"`identity` must hold .* Received: identity=\[1\]"),
        ([3], "m", [-1], "`identity` must hold"),
        ([3], "m", [0.5], "`identity` must hold"),
    ],
)
def test_bad_faces_are_refused(age, gender, identity, message):
    with pytest.raises(ValueError, match=message):
        faces.render(age, gender, identity=identity)
