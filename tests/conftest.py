"""Fixtures of several rooms: real data beside the project, an object store, and a comparison with one real run."""

import fcntl
import logging
import os
import subprocess
import sys
import urllib.request
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

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
#: One run of a choice from candidates, which has every metric, in a comparison.
ONE_CELL = "--methods SPRec --against Popular --seeds 0 --scale toy --k 5 --name compared --engine torch --ratings "
ONE_CELL += "--protocol candidates --objective sdpo --negatives candidates --num-negatives 2 --reweight genre "
ONE_CELL += "--iterations 1 --pretrain-steps 4 --first-rows 16 --valid-rows 16 --rows-per-iteration 16 --test-rows 24 "
ONE_CELL += "--batch 8 --prefer-batch 8 --micro-batch 8"


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


@pytest.fixture
def bucket(server: ThreadedMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty bucket of that server, for which the environment has address and keys."""
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "me"}
    for name, value in (settings | {"AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    name = tmp_path.name.replace("_", "-")
    urllib.request.urlopen(urllib.request.Request(f"{settings['AWS_ENDPOINT_URL']}/{name}", method="PUT")).close()
    return name


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison, to be read only; processes that test side by side share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "compared.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "compared.txt").exists():
            line = [sys.executable, "jobs/compare.py", *ONE_CELL.split(), "--runs", str(base)]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            (base / "compared.txt").write_text(done.stdout)
    return base / "compared"


@pytest.fixture(scope="session")
def finished(compared: Path) -> Path:
    """The folder of the comparison's run, to be read only; what the run printed lies beside it, with ``.log``."""
    return compared / "SPRec-seed0"
