"""Runs the fuzzers of the tests for as long as you like: outcomes, times and memory growth.

    python -m benchmarks.fuzz [BOUNDARY ...] [--times 10] [--seed 1]

Run it from the root of the repository. A failed assertion prints the input that failed.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from tests.data import fuzzing as data
from tests.experiment.fuzzing import fuzz_configurations
from tests.models.fuzzing import fuzz_weights
from tests.serving.fuzzing import fuzz_answers, fuzz_http

BOUNDARIES = {
    "images": (data.fuzz_images, 2_000),
    "fold_files": (data.fuzz_fold_files, 1_000),
    "weights": (fuzz_weights, 400),
    "configurations": (fuzz_configurations, 200),
    "answers": (fuzz_answers, 10_000),
    "http": (fuzz_http, 500),
}
"""The fuzzers, and the number of inputs for `--times 1`. Each function takes a seed, a count and an empty folder."""


def megabytes() -> int:
    """The peak memory of the process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("boundaries", nargs="*", metavar="BOUNDARY", help=f"of {', '.join(BOUNDARIES)}; all if none")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in options.boundaries or BOUNDARIES:
        fuzz, count = BOUNDARIES[name]
        for seed, inputs in ((0, 50), (options.seed, options.times * count)):  # the first warms up
            with tempfile.TemporaryDirectory() as scratch:
                started, before = time.perf_counter(), megabytes()
                outcomes = fuzz(seed, inputs, Path(scratch).resolve())
                seconds = time.perf_counter() - started
        print(
            f"{name}: {inputs:,} inputs in {seconds:.0f} s, the slowest {outcomes.slowest:.2f} s, "
            f"at most {megabytes() - before} MB more",
            flush=True,
        )
        for outcome, times in outcomes.most_common():
            print(f"  {times:6,} {outcome}")


if __name__ == "__main__":
    main()
