"""A run for the tests of the report that change it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run without weights and report, to be changed."""
    ignored = shutil.ignore_patterns("policy", "*.safetensors", "tensorboard", "report.html")
    return shutil.copytree(finished, tmp_path / finished.name, ignore=ignored)
