from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from satm_tf.attacks.gallery import write_gallery


def test_a_row_for_each_image_up_to_the_limit(images, tmp_path):
    heights = []
    for most in (1, 3):
        path = tmp_path / f"{most}.png"
        write_gallery(path, images, images, list("abcdefg"), list("abcdefz"), title="none", most=most)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            heights.append(picture.height)
    # Half an inch for the title and 2.3 inches a row, at 110 dots an inch.
    np.testing.assert_allclose(heights, [(0.5 + 2.3) * 110, (0.5 + 3 * 2.3) * 110], atol=1)


def test_a_gallery_that_fails_leaves_the_old_one_and_nothing_beside_it(images, tmp_path, monkeypatch):
    path = tmp_path / "gallery.png"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_gallery(path, images, images, list("abcdefg"), list("abcdefg"), title="none")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
