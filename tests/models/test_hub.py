"""A hub that does not answer is told within seconds, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayrec.models import hub

ROOT = Path(__file__).parents[2]
SETTLE = "import sys; from rayrec.models import hub; hub.settle(sys.argv[1]); print('settled')"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("org/name", True), ("gpt2", True), ("./name", False), ("/a/b", False), ("a/b/c", False), ("~x", False)],
)
def test_names_of_the_hub(name: str, is_one: bool) -> None:
    assert hub.is_id(name) == is_one


def test_a_folder_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not hub.is_id("org/name")


@pytest.mark.parametrize("offline", [False, True])
def test_a_silent_hub_is_told_at_once_with_two_ways_out(tmp_path: Path, offline: bool) -> None:
    # 192.0.2.1 is an address for documents: nothing answers there.
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": "http://192.0.2.1", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    begun = time.monotonic()
    line = [sys.executable, "-c", SETTLE, "org/name"]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and time.monotonic() - begun < hub.SECONDS + 7
    told = done.stderr.splitlines()[-1]
    assert told.startswith("ValueError: model org/name: no such folder here")
    assert ("HF_HUB_OFFLINE is set" if offline else "http://192.0.2.1 does not answer within 8 s") in told
    assert "hf download org/name --local-dir FOLDER" in told and "HF_HOME" in told and "Retrying" not in done.stderr


def test_a_copy_in_the_cache_is_taken(tmp_path: Path) -> None:
    copy = tmp_path / "hub" / "models--org--name"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text("abc")
    (copy / "snapshots" / "abc").mkdir(parents=True)
    (copy / "snapshots" / "abc" / "config.json").write_text("{}")
    env = os.environ | {"HF_ENDPOINT": "http://192.0.2.1", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", SETTLE, "org/name"]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "settled\n", done.stderr
