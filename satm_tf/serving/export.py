"""SavedModels in the folders that TF Serving polls."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from satm_tf.models import ImageClassifier


def export_saved_model(
    model: ImageClassifier, folder: str | Path, *, labels: Sequence[str], version: int | None = None
) -> Path:
    """Writes `<folder>/<version>/`, a SavedModel that needs nothing beside it, as a whole or not at all.

    Its signature `serving_default` takes `images`, float32 `[batch, height, width, 3]` in [0, 1], and gives
    `probabilities` float32 `[batch, classes]`, `class_id` int64 `[batch]` and `label` string `[batch]`.

    Args:
        model: The classifier.
        folder: Folder of the model, which TF Serving calls its base path.
        labels: A name for each class, in the order of the logits.
        version: A positive number; None takes one more than the highest there is.

    Returns:
        The folder of the version.

    Raises:
        ValueError: If the number of labels is not the number of classes, or the version is not positive.
        FileExistsError: If the version exists: a server may have it loaded.

    Example:
        >>> export_saved_model(network, "exported_models/vgg", labels=["young", "old"])
        PosixPath('exported_models/vgg/1')
    """
    folder = Path(folder)
    if len(labels) != model.num_classes:
        raise ValueError(f"There must be a label for each of {model.num_classes} classes. Received: {list(labels)}")
    if version is None:
        present = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
        version = max(present, default=0) + 1
    if version < 1:
        raise ValueError(f"A version is a positive number. Received: {version}")
    final = folder / str(version)
    if final.exists():
        raise FileExistsError(f"{final} exists; choose another version, or none for the next free one.")

    names = tf.constant(list(labels))

    def serving_default(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # The signature alone does not enforce height and width at run time.
        images = tf.ensure_shape(images, [None, *model.image_shape])
        probabilities = tf.nn.softmax(model(images, training=False))
        class_id = tf.argmax(probabilities, axis=-1)
        return {"probabilities": probabilities, "class_id": class_id, "label": tf.gather(names, class_id)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        serving_default,
        input_signature=[tf.TensorSpec([None, *model.image_shape], tf.float32, name="images")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    # A sibling whose name is no number: on the same disk, and invisible to a server that polls the folder.
    temporary = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder))
    try:
        archive.write_out(str(temporary / "saved_model"), verbose=False)
        (temporary / "saved_model").rename(final)
    finally:
        shutil.rmtree(temporary)
    return final
