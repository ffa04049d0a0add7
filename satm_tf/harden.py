"""satm-tf harden: defends a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from satm_tf import command_line
from satm_tf.experiment.hardening import Hardened, harden

__all__ = ["Hardened", "harden", "main"]


def _harden(
    model: str,
    images: str,
    *,
    output: str | None = None,
    input_range: tuple[float, float] = (0, 255),
    class_names: list[str] | None = None,
    format: str = "folder",
    data: dict[str, Any] | None = None,
    epsilon: float = 8 / 255,
    scheme: str = "recommended",
    partners: list[str] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    detector: bool | str = False,
) -> None:
    """Defends a trained classifier, measures it before and after, and exports it for serving.

    Partners are fine-tuned on the same images and then train together with the model. Re-run the same command to resume
    after an interruption.

    Args:
        model: The .keras file.
        images: The folder of the images.
        output: The run folder; runs/<model>_<images> if not given.
        input_range: The range of pixel values that the model expects, [lowest, highest].
        class_names: The classes in the order of the model's outputs; alphabetical if not given.
        format: What the folder holds: folder (a sub-folder for each class), adience, utkface, idx, table or
            synthetic_faces.
        data: Options of the format, such as {"test_share": 0.3}, or {"table": "faces.csv"} for table.
        epsilon: The size of the perturbations, in units of images in [0, 1].
        scheme: The training scheme: recommended, satm, ensemble and so on.
        partners: Backbones that train together with the model; if not given, two that fit the images.
        epochs: Passes over the images; chosen by their number if not given.
        minutes: The estimated time that the run may take; epochs and partners are chosen to fit.
        seed: The seed of all random numbers.
        detector: Export a detector of adversarial examples with the model: true for feature_classifier, or the name of
            another kind, such as density_uncertainty.
    """
    name = f"{Path(model).stem}_{Path(images).resolve().name}"
    hardened = harden(
        model,
        images,
        output=output or Path("runs") / name,
        input_range=input_range,
        class_names=class_names,
        format=format,
        data_options=data,
        epsilon=epsilon,
        scheme=scheme,
        partners=partners,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        detector=detector,
    )
    print(f"\n{hardened}")


main = command_line.command(_harden, prog="satm-tf harden", resumes=True)

if __name__ == "__main__":
    sys.exit(main())
