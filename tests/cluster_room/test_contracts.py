"""The private names of Ray that rayrec uses: an upgrade that takes one away fails here with its name."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayrec.cluster import connect

#: Module, the name, and a pattern of the line that defines it.
RAY = [
    ("ray._private.worker", "_global_node", r"^_global_node\b"),
    ("ray._private.node", "Node.get_logs_dir_path", r"^    def get_logs_dir_path\(self\)"),
    ("ray._private.node", "Node.all_processes", r"self\.all_processes\b.* = "),
    ("ray._private.node", connect.SLOW, rf'"The current node {connect.SLOW}'),
    ("ray._private.state", "available_resources_per_node", r"^def available_resources_per_node\(\)"),
    ("ray._private.ray_constants", "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", r'"RAY_DISABLE_FAILURE_SIGNAL_HANDLER"'),
    ("ray._private.authentication.authentication_token_setup", "ensure_token_if_auth_enabled", r"^def ensure_token_if"),
    ("ray._private.runtime_env.constants", "RAY_JOB_CONFIG_JSON_ENV_VAR", r'"RAY_JOB_CONFIG_JSON_ENV_VAR"'),
    ("ray._private.auto_init_hook", "RAY_ENABLE_AUTO_CONNECT", r'"RAY_ENABLE_AUTO_CONNECT"'),
    ("ray.train.v2._internal.exceptions", "WorkerGroupStartupTimeoutError", r"^class WorkerGroupStartupTimeoutError\("),
    ("ray.train.v2._internal.constants", "RAY_TRAIN_METRICS_ENABLED", r'"RAY_TRAIN_METRICS_ENABLED"'),
    ("ray.train.v2.api.exceptions", "ControllerError.controller_failure", r"self\.controller_failure = "),
    ("ray.train.v2.api.exceptions", "WorkerGroupError.worker_failures", r"self\.worker_failures = "),
]


@pytest.mark.parametrize(("module", "name", "line"), RAY, ids=[name for _, name, _ in RAY])
def test_ray_still_has(module: str, name: str, line: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module}, for {name}"
    assert re.search(line, Path(spec.origin).read_text(), re.MULTILINE), f"{module} has no {name}"


def test_rays_client_of_the_head_still_lists_the_nodes() -> None:
    line = "from ray._raylet import GcsClient, InnerGcsClient; from ray.core.generated.gcs_pb2 import GcsNodeInfo; "
    line += "GcsClient; InnerGcsClient.get_all_node_info; GcsNodeInfo.ALIVE; "
    line += "GcsNodeInfo().resources_total; GcsNodeInfo().state"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
