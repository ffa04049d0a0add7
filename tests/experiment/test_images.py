"""What a configuration's images are: folders and tables of files, and what is asked for."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from satm_tf.experiment import images as loading
from satm_tf.experiment.run_folder import RunFolder
from tests.experiment.conftest import SIZE


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 30 PNGs, dark, middling and bright, and a CSV file that names them."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for index in range(30):
        name = ("dark", "middling", "bright")[index % 3]
        (folder / name).mkdir(exist_ok=True)
        image = np.full((SIZE, SIZE, 3), 40 + 80 * (index % 3), np.uint8)
        image[-1, -1] = index  # equal files would be one image
        (folder / name / f"{index}.png").write_bytes(tf.io.encode_png(image).numpy())
        rows.append({"path": f"{name}/{index}.png", "label": name, "fold": index // 3 % 5, "subject": index})
    pd.DataFrame(rows).to_csv(folder.with_suffix(".csv"), index=False)
    return folder


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_folder_and_a_table_of_images_reach_the_networks(config, pictures, kind, tmp_path):
    names = ["dark", "middling", "bright"]
    options = {"format": kind, "root": str(pictures), "class_names": names, "ordered": True, "test_share": 0.2}
    table = {"table": str(pictures.with_suffix(".csv")), "fold": 1} if kind == "table" else {}
    described = dataclasses.replace(config.data, validation_share=0.2, **options, **table)
    images = loading.load_data(described, RunFolder(tmp_path), seed=0)
    assert (images.class_names, images.ordered, len(images.test)) == (tuple(names), True, 6)
    for split in (images.train, images.validation, images.test):
        for batch, labels in loading.make_batches(split, dataclasses.replace(config, data=described)):
            np.testing.assert_allclose(batch[:, 0, 0, 0], (40 + 80 * labels.numpy()) / 255, atol=1e-6)


def test_a_table_that_is_not_named_is_asked_for(config, pictures, tmp_path):
    described = dataclasses.replace(config.data, format="table", root=str(pictures))
    with pytest.raises(ValueError, match="needs `table`, the CSV file"):
        loading.load_data(described, RunFolder(tmp_path), seed=0)
