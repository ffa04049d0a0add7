"""satm-tf evaluate: measures networks on each other's adversarial examples, and checks for gradient masking."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from satm_tf import command_line
from satm_tf import data as data_room
from satm_tf.configurable import look_up, plural
from satm_tf.data import formats
from satm_tf.evaluation import Assessment, assess
from satm_tf.evaluation.assessment import check_names
from satm_tf.evaluation.folder import ResultsFolder
from satm_tf.evaluation.predictions import CLEAN
from satm_tf.evaluation.suite import read_suite
from satm_tf.experiment.config import make_attack
from satm_tf.models import LoadedModel, load_model
from satm_tf.serving import Endpoint

_EPSILON = 16 / 256
_FEW = 200
_WITH_SUITE = ("targets", "output", "suite", "input_range", "requests", "pause", "batch_size")


def evaluate(
    *,
    targets: dict[str, str],
    output: str,
    images: str | None = None,
    suite: str | None = None,
    sources: dict[str, str] | None = None,
    attacks: dict[str, dict[str, Any]] | None = None,
    epsilon: list[float] | None = None,
    format: str = "folder",
    data: dict[str, Any] | None = None,
    split: Literal["train", "validation", "test"] | None = None,
    limit: int | None = None,
    image_size: int | None = None,
    queries: list[int] | None = None,
    query_limit: int = 100,
    input_range: dict[str, list[float]] | None = None,
    check_limit: int = 200,
    check_options: dict[str, int] | None = None,
    undefended: list[str] | None = None,
    before: dict[str, str] | None = None,
    requests: int | None = None,
    pause: float = 0.0,
    batch_size: int = 50,
    seed: int = 0,
) -> Assessment:
    """Measures networks on clean images and on each other's adversarial examples, and checks for gradient masking.

    Writes results.csv (a row for each attack, epsilon, source and target), checks.csv (a row for each check and
    network), predictions.npz (the class predicted for every image), report.html and the figures in it. Re-run the same
    command to resume after an interruption.

    Args:
        targets: The networks to measure, by name: .keras, .onnx or .tflite files, or folders of SavedModels, optionally
            followed by # and the output to use; or addresses on TensorFlow Serving servers,
            http://host:8501/v1/models/NAME or grpc://host:8500/v1/models/NAME, optionally followed by /versions/N. With
            names of the form <scheme>/<network> and holdout/<network> you also get the paper's tables.
        output: The folder to write.
        images: The folder of the images.
        suite: Instead of images, the folder of a suite that satm-tf attack wrote. The targets are measured on its
            adversarial images, after its digests are verified. You can combine it only with targets, output,
            input_range, requests, pause and batch_size.
        sources: The networks that craft, by name; the targets if not given. The name <rung>/<network> says which
            attacker has it: unseen, public_weights, start (of the target with that network name), defended, same_scheme
            or twin.
        attacks: The attacks by name, with their options: {"pgd": {"steps": 20}, "ll": {"name": "step_ll"}}; fgsm and
            pgd if not given. An attack with its own epsilon uses only that one.
        epsilon: One or several, in units of images in [0, 1]; 16/256 if not given.
        format: What the folder holds: folder (a sub-folder for each class), adience, utkface, idx, table, imagenet or
            synthetic_faces.
        data: Options of the format's loader, such as {"fold": 1} for adience or {"table": "faces.csv"} for table.
        split: Which split of the data set to use. null is the test split; for a folder without splits, every image.
        limit: Maximum number of images; null is all.
        image_size: Height and width; null takes the networks' own.
        queries: Numbers of queries, such as 50 100 1000, for query attacks on each target; no query attacks if not
            given.
        query_limit: Number of images for the query attacks.
        input_range: The range of pixel values that a network expects, by the network's name, such as {"mine": [0,
            255]}; [0, 1] for the others.
        check_limit: Number of images for the checks; 0 skips the checks.
        check_options: The effort of the checks: steps and targets of the iterative attacks, queries of those without
            gradients. The standard AutoAttack is {"steps": 100, "targets": 9, "queries": 5000}.
        undefended: The networks without a defence, for the checks to compare with; those named holdout/... if not
            given.
        before: For each target, the network as it was before its defence.
        requests: Maximum number of requests sent to each address, over all runs on this output folder; required if a
            target is an address.
        pause: Seconds between a server's answer and the next request.
        batch_size: Number of images in a batch.
        seed: The seed of all random numbers.

    Returns:
        The assessment.

    Raises:
        ValueError: If a name is unknown, or the networks and images do not match.
        FileNotFoundError: If a file is missing.
        FloatingPointError: If a network's logits are not numbers.
        ServingError: If a server does not answer, sends an invalid answer, or has been sent all allowed requests. Its
            answers so far are kept for a re-run.
    """
    given = locals()
    # More requests, or a longer pause, continue the same measurement.
    config = {name: value for name, value in given.items() if name not in ("output", "requests", "pause")}
    if (images is None) == (suite is None):
        raise ValueError(f"Give either --images or --suite. Received: --images {images}, --suite {suite}")
    if suite is not None:
        usual = {name: each.default for name, each in inspect.signature(evaluate).parameters.items()}
        without = [name for name in given if name not in _WITH_SUITE and given[name] != usual[name]]
        if without:
            raise ValueError(f"A suite has its own images, attacks and sources. Received: --{' --'.join(without)}")
        return _score(suite, targets, output, input_range or {}, requests, pause, batch_size, config)
    sources, before, radii = sources or {}, before or {}, sorted(epsilon or [_EPSILON])
    configured = {
        name: make_attack({"name": name, **options}, radii[-1])
        for name, options in (attacks or {"fgsm": {}, "pgd": {}}).items()
    }
    paths = {**targets, **sources}
    endpoints = _endpoints(paths.values(), output, requests, pause, batch_size)
    check_names(
        *({name: endpoints.get(path, path) for name, path in each.items()} for each in (targets, sources)),
        undefended=undefended,
        before=before,
    )
    earlier = {name: look_up("network", other, paths) for name, other in before.items()}
    ranges = _ranges(input_range or {}, paths, endpoints)
    networks = {
        path: load_model(path, image_size=image_size, input_range=ranges.get(path, (0, 1)))
        for path in paths.values()
        if path not in endpoints
    }
    shapes = {name: networks[path].image_shape for name, path in paths.items() if path in networks}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Networks that are measured together must have the same image_shape. Received: {shapes}")
    if not shapes and image_size is None:
        raise ValueError("A server does not report its image size; give --image_size. Received: none")
    shape = next(iter(shapes.values()), (image_size or 0, image_size or 0, 3))
    look_up("data format", format, {name: each for name, each in formats.FORMATS.items() if each.labelled})
    images_by_split = formats.load_to_measure(format, str(images), split, **(data or {}))
    examples = getattr(images_by_split, split or "test")
    examples = examples if limit is None else examples.limit(limit, seed)
    account = f"{images_by_split.account}\nmeasured: {plural(len(examples), 'image')} of the {split or 'test'} split"
    print(account)
    few = _batches(examples.limit(_FEW, seed), shape, batch_size)
    for name, path in paths.items():
        if path in networks and networks[path].num_classes == images_by_split.num_classes and path not in ranges:
            _check_range(name, networks[path], few)
    # Last, after all other checks, because this queries the servers.
    networks |= {path: load_model(endpoint, image_shape=shape) for path, endpoint in endpoints.items()}
    assessment = assess(
        {name: networks[path] for name, path in targets.items()},
        {name: networks[path] for name, path in sources.items()},
        dataset=_batches(examples, shape, batch_size),
        attacks=configured,
        epsilons={name: radii for name in configured if "epsilon" not in (attacks or {}).get(name, {})},
        ordered=images_by_split.ordered,
        queries=queries or (),
        query_limit=query_limit,
        check_limit=check_limit,
        check_epsilon=radii[-1],
        undefended=undefended,
        before={name: networks[path] for name, path in earlier.items()},
        effort=check_options,
        class_names=images_by_split.class_names,
        account=account,
        seed=seed,
        folder=Path(output),
        config=config,
        stage="evaluate",
    )
    served = [name for name, path in targets.items() if path in endpoints]
    return _shown(assessment, endpoints, served, images_by_split.class_names)


def _score(
    folder: str,
    targets: dict[str, str],
    output: str,
    input_range: dict[str, list[float]],
    requests: int | None,
    pause: float,
    batch_size: int,
    config: dict[str, Any],
) -> Assessment:
    """Measures the targets on a suite."""
    endpoints = _endpoints(targets.values(), output, requests, pause, batch_size)
    ranges = _ranges(input_range, targets, endpoints)
    suite = read_suite(folder)
    print(suite)
    networks = {
        name: load_model(endpoints.get(path, path), image_shape=suite.image_shape, input_range=ranges.get(path, (0, 1)))
        for name, path in targets.items()
    }
    assessment = suite.assess(networks, folder=output, config=config, batch_size=batch_size)
    return _shown(assessment, endpoints, targets, suite.class_names)


def _shown(
    assessment: Assessment, endpoints: dict[str, Endpoint], unknown: Iterable[str], class_names: Iterable[str]
) -> Assessment:
    """Prints an assessment and the requests that it took, and warns of targets at chance that are not known better."""
    print(f"\n{assessment}\n\nwritten: {assessment.report()}")
    for path, endpoint in endpoints.items():
        print(f"{path} was sent {endpoint.sent:,} of {endpoint.requests:,} requests")
    for name in unknown:
        right = assessment.predictions.correct(CLEAN, 0.0, "", name)
        if _at_chance(int(right.sum()), len(right), assessment.predictions.num_classes):
            print(
                f"warning: {name} classifies {right.mean():.0%} of {len(right)} clean images correctly, no better than "
                "chance. "
                f"Are its classes these, in this order: {', '.join(class_names)}? Does it take images in [0, 1]?",
                file=sys.stderr,
            )
    return assessment


def _ranges(
    input_range: dict[str, list[float]], paths: dict[str, str], endpoints: dict[str, Endpoint]
) -> dict[str, tuple[float, float]]:
    """The input range of the network at a path, if one is given."""
    ranges = {}
    for name, values in input_range.items():
        if len(values) != 2:
            raise ValueError(f"An input_range must be [lowest, highest]. Received: {values}")
        ranges[look_up("network", name, paths)] = values[0], values[1]
    if on_servers := [path for path in ranges if path in endpoints]:
        raise ValueError(f"Models on servers take images in [0, 1]. Received: input_range of {on_servers}")
    return ranges


def _endpoints(
    paths: Iterable[str], output: str, requests: int | None, pause: float, batch_size: int
) -> dict[str, Endpoint]:
    """The paths that are addresses, with their endpoints."""
    addresses = [path for path in dict.fromkeys(paths) if "://" in path]
    if bool(addresses) != (requests is not None) or (pause and not addresses):
        raise ValueError(
            "--requests and --pause are for targets on servers, and such targets require --requests. "
            f"Received: requests={requests}, pause={pause:g}, with targets on servers: {', '.join(addresses) or 'none'}"
        )
    folder = ResultsFolder(output).requests
    return {
        address: Endpoint(
            address,
            requests=requests or 0,
            pause=pause,
            batch_size=batch_size,
            journal=folder / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.jsonl",
        )
        for address in addresses
    }


def _check_range(name: str, network: LoadedModel, batches: tf.data.Dataset) -> None:
    """Warns of a network that is at chance on clean images in [0, 1] but much better in [0, 255]."""
    right, right_wide, count = 0, 0, 0
    for images, labels in batches:
        right += int(np.sum(np.argmax(network(images), -1) == labels))
        right_wide += int(np.sum(np.argmax(network(255 * images), -1) == labels))
        count += len(labels)
    if count and (_at_chance(right, count, network.num_classes) or right_wide - right > count / 5):
        print(
            f"warning: {name} classifies {right / count:.0%} of {plural(count, 'clean image')} in [0, 1] correctly, "
            f"where chance is {1 / network.num_classes:.0%}, and {right_wide / count:.0%} in [0, 255]. If it expects "
            f"another range, give --input_range '{{\"{name}\": [0, 255]}}'",
            file=sys.stderr,
        )


def _at_chance(right: int, count: int, classes: int) -> bool:
    # Twice the standard error of guessing.
    return right / count <= 1 / classes + 2 * ((classes - 1) / count) ** 0.5 / classes


def _batches(examples: data_room.Examples, shape: tuple[int, int, int], batch_size: int) -> tf.data.Dataset:
    batches = data_room.batches(examples, image_size=shape[:2], batch_size=batch_size, cache=False)
    if shape[2] == 3:
        return batches
    # The loaders give three channels; a grey image has three equal ones.
    return batches.map(lambda images, labels: (tf.reduce_mean(images, -1, keepdims=True), labels))


main = command_line.command(evaluate, resumes=True)

if __name__ == "__main__":
    sys.exit(main())
