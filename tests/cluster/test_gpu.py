"""The GPU installation, by metadata: the pinned versions fit what every package asks for, and all guides use them.

`gpu-requires.json` holds what the packages that are not installed here, builds for CUDA, state in their metadata.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
STATED = json.loads((Path(__file__).parent / "gpu-requires.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    """Versions by package."""
    lines = (ROOT / name).read_text().splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in found.items()}


def asked() -> dict[str, list[str]]:
    """What rayrec asks for on GPUs, and what each package of theirs does whose metadata is known."""
    extras, own = PROJECT["optional-dependencies"], "rayrec[gpu,serve]"
    found = {own: [*PROJECT["dependencies"], *extras["gpu"], *extras["serve"]], **STATED}
    for package, version in pins("constraints-gpu.txt").items():
        try:
            dist = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if dist.version == version:
            found[f"{package}=={version}"] = dist.requires or []
    return found


def broken(name: str, python: str) -> list[str]:
    """The requirements that a file of pins breaks or does not know."""
    held, found = pins(name), list[str]()
    env = {"python_version": python, "python_full_version": f"{python}.5", "platform_system": "Linux", "extra": ""}
    env |= {"sys_platform": "linux", "platform_machine": "x86_64", "implementation_name": "cpython"}
    for owner, lines in asked().items():
        for one in map(Requirement, lines):
            if one.marker is not None and not one.marker.evaluate(env):
                continue
            version = held.get(canonicalize_name(one.name))
            if version is None or not one.specifier.contains(version, prereleases=True):
                found.append(f"{owner} asks for {one}, pinned is {version}")
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pinned_versions_fit_each_other(python: str) -> None:
    assert len(asked()) > 100  # most packages of the GPU installation are installed here too
    assert {"vllm==0.32.0", "torch==2.13.0"} <= asked().keys()
    assert broken("constraints-gpu.txt", python) == []


def test_those_of_the_cpu_installation_do_not() -> None:
    """Why there are two files."""
    found = broken("constraints.txt", "3.11")
    assert any("apache-tvm-ffi==0.1.11" in line for line in found) and any("triton==3.7.1" in line for line in found)


def test_every_guide_installs_them() -> None:
    seen = 0
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "cluster").iterdir()):
        for line in path.read_text().splitlines():
            if re.search(r"pip install .*\[gpu[\],]", line):
                seen += 1
                assert re.search(r"-c \S*constraints-gpu\.txt", line), f"{path}: {line}"
    assert seen >= 4
    assert "constraints-gpu.txt" in (ROOT / "cluster" / "Dockerfile").read_text().split("RUN pip")[0]
