"""Fixtures of several rooms: real data, which lie beside the project and never inside it, and an object store."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer

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


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    """An S3 server on a free port of this machine."""
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    yield made
    made.stop()
