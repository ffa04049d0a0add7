"""Metadata, dependencies and extras; the tools are configured in pyproject.toml."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "satm_tf" / "__init__.py").read_text(), re.MULTILINE)[1]

# `SATM_TF_TENSORFLOW=tensorflow-cpu pip install .` leaves out the wheel with GPU support.
TENSORFLOW = os.environ.get("SATM_TF_TENSORFLOW", "tensorflow")

# tensorflow-serving-api requires the wheel that is called tensorflow, which must not be installed over another one:
# there it is `pip install --no-deps tensorflow-serving-api`.
# onnx 1.19.0 needs a newer ml_dtypes than TensorFlow 2.18 takes, and does not say so.
SERVING = {
    "client": ["grpcio>=1.62", *(["tensorflow-serving-api>=2.18"] if TENSORFLOW == "tensorflow" else [])],
    "lite": ["ai-edge-litert>=1.4"],
    "onnx": ["tf2onnx>=1.17", "onnx!=1.19.0", "onnxruntime>=1.19"],
}
SCIKIT_LEARN = "scikit-learn>=1.4"

setup(
    name="satm_tf",
    version=VERSION,
    description="Simultaneous adversarial training in TensorFlow and Keras: networks that learn from others' mistakes",
    # Links to files lead to the repository where the text stands by itself.
    long_description=re.sub(
        r"\]\((?!https?:)",
        "](https://github.com/satm-tf/satm_tf/raw/main/",
        (HERE / "README.md").read_text(encoding="utf-8"),
    ),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["satm_tf", "satm_tf.*"]),
    package_data={
        "satm_tf": [
            "experiment/presets/*.yaml",
            "evaluation/report/report.html.j2",
            "serving/model_card.md.j2",
            "serving/tf_2_15_ops.txt",
            "py.typed",
        ]
    },
    entry_points={"console_scripts": ["satm-tf = satm_tf.__main__:main"]},
    install_requires=[
        f"{TENSORFLOW}>=2.18",
        "keras>=3.8",
        "numpy>=2.0",
        "pandas>=2.2",
        "scipy>=1.11",
        "h5py>=3.11",
        "pyyaml>=6.0",
        "jsonargparse[signatures]>=4.53",
        "tqdm>=4.66",
        "tensorboard>=2.18",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]"],
        **SERVING,
        "detectors": [SCIKIT_LEARN],
        "test": [
            *(package for packages in SERVING.values() for package in packages),
            SCIKIT_LEARN,
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "foolbox>=3.3.4",
            "ipykernel>=6.29",
            "ipywidgets>=8.1",
            "keras-vggface==0.6",
            "keras-applications==1.0.8",
            "nbclient>=0.10",
            "pillow>=10.0",
            "requests>=2.31",
            "markdown-it-py>=3.0",
            "playwright>=1.40",
            "statsmodels>=0.14",
            "keras-hub>=0.18; python_version < '3.13'",  # it needs tensorflow-text
        ],
        "dev": [
            "ruff>=0.9",
            "mypy>=1.11",
            "codespell>=2.4",
            "pandas-stubs",
            "types-PyYAML",
            "types-tqdm",
            "pre-commit",
            "build",
        ],
        # Material ends in May 2027, and MkDocs 2 has no plugins. Zensical 0.0.73 builds the site from the same file,
        # but has no hooks: pages of notebooks and tables of the leaderboard are missing then.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=1.0"],
    },
    project_urls={
        "Source": "https://github.com/satm-tf/satm_tf",
        "Documentation": "https://github.com/satm-tf/satm_tf/tree/main/docs",
        "Changelog": "https://github.com/satm-tf/satm_tf/blob/main/CHANGELOG.md",
        "Issues": "https://github.com/satm-tf/satm_tf/issues",
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
