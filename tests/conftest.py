"""Where tests find real data: beside the project, never inside it."""

import logging
import warnings
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline measures the machine, not the code.
settings.register_profile("rayrec", deadline=None)
settings.load_profile("rayrec")

logging.getLogger("rayrec").setLevel(logging.INFO)

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path | None:
    """The folder of real data sets; without it a warning says so and the test has nothing to check."""
    if DATA.is_dir():
        return DATA
    warnings.warn(f"{DATA} is absent: real data sets are not checked", stacklevel=1)
    return None
