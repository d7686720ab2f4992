"""Which cluster a run joins, and whose GPUs `--device auto` means."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rayrec.cluster.address import check_address, find_address
from rayrec.methods import parse
from tests.edge.conftest import ROOT


@pytest.mark.parametrize("named", ["--address", "RAY_ADDRESS"])
def test_auto_is_a_cluster_made_by_ray_start_alone(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.utils import write_ray_address

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto" if named == "RAY_ADDRESS" else "elsewhere:1")
    config = parse("", ["--address", "auto"] if named == "--address" else [])
    with pytest.raises(ValueError, match=f"{named} auto: no cluster made by `ray start` .* Give HOST:PORT"):
        check_address(config)
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        write_ray_address(address)  # what `ray start` does
        check_address(config)
        assert find_address(config) == address
        with monkeypatch.context() as other:  # of another user
            other.setattr("os.getuid", lambda: tmp_path.stat().st_uid + 1)
            assert find_address(config) is None
    assert find_address(config) is None  # that cluster is gone, its file is not
    with pytest.raises(ValueError, match=f"{named} auto"):
        check_address(config)


SCRIPT = """
import atexit, os, time
import psutil
from rayrec.cluster import address, connect  # before Ray
from rayrec.methods import parse
from rayrec.cluster.reserve import reserve
from rayrec.report.terminal import show_log
import ray

show_log()

for cards in (0, 3):
    room = {"num_cpus": 6, "num_gpus": cards, "resources": {"gen": 1}}
    ray.init(address="local", include_dashboard=False, logging_level="ERROR", **room)
    config = parse("", ["--preset", "toy", "--address", ray.get_runtime_context().gcs_address])
    print("RESULT", cards, address.has_gpu(config), address.runs_at_once(config))
    reserve(config, False, train=False)
    if cards:
        spread = parse("", ["--preset", "toy", "--train-workers", "1", "--generators", "1", "--tensor-parallel", "2",
                            "--generate-resource", "gen"])
        held = reserve(spread, True)
        print("RESULT", [group.bundle_specs for group in (held.trainers, *held.generators)])
        print("RESULT", ray.available_resources().get("GPU", 0))
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        class Orphan:
            def here(self):
                return True

        (old,) = held.generators
        room = PlacementGroupSchedulingStrategy(old, placement_group_bundle_index=1)
        own = {"num_gpus": 1, "lifetime": "detached", "name": "orphan"}
        orphan = ray.remote(Orphan).options(scheduling_strategy=room, **own).remote()
        assert ray.get(orphan.here.remote())
        held.renew(0)
        assert held.generators[0].wait(20) and held.generators[0].id != old.id
        try:
            ray.get(orphan.here.remote(), timeout=20)
        except ray.exceptions.RayActorError:
            print("RESULT gone")
        # An actor that nobody holds leaves its node, and is still busy with its own end as that one ends.
        class Slow:
            def stay(self):
                atexit.register(time.sleep, 600)
                return os.getpid()

        slow = psutil.Process(ray.get(ray.remote(Slow).options(num_cpus=0).remote().stay.remote()))
        time.sleep(2)
        print("RESULT", slow.is_running())
        connect.leave()
        print("RESULT", psutil.wait_procs([slow], timeout=5)[1])
    else:
        ray.shutdown()
print("RESULT", address._resources("127.0.0.1:1"), address._resources("somewhere"))
"""


def test_auto_asks_the_cluster_and_not_the_drivers_machine() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line.startswith(("RESULT", "warning"))]
    assert said[:2] == ["RESULT 0 False 3", "RESULT 3 True 1"] and said[-1] == "RESULT None None", said
    # A plan on CPUs in a cluster whose GPUs came after it was made.
    assert said[2].startswith("warning: --device auto took CPUs: this cluster's 3 GPUs joined later")
    # A generator over two cards is one placement group with a bundle for each card, as vLLM's Ray executor wants it.
    card = {"CPU": 1.0, "GPU": 1.0}
    half = card | {"gen": 0.5}
    assert said[3:5] == [f"RESULT {[[card], [half, half]]}", "RESULT 0"] and said[5] == "RESULT gone", said
    assert said[6:8] == ["RESULT True", "RESULT []"]
