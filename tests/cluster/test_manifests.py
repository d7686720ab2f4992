"""The files in cluster/ against what reads them: KubeRay's schemas, Ray's own checks, our command line.

`kuberay-v1.json.gz` holds the schemas of KubeRay's custom resources RayCluster and RayJob, version v1 (Apache-2.0).
That of RayService is made of its Go type: a text for Ray Serve, which Ray checks, and the settings of a RayCluster.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rayrec.driver.checks import resolve
from rayrec.methods import parse
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny

CLUSTER = Path(__file__).parents[2] / "cluster"
SCHEMAS = json.loads(gzip.decompress((Path(__file__).parent / "kuberay-v1.json.gz").read_bytes()))
_SERVICE = {"serveConfigV2": {"type": "string"}, "rayClusterConfig": SCHEMAS["RayCluster"]["properties"]["spec"]}
_ANY = {name: {"type": "string"} for name in ("apiVersion", "kind")} | {"metadata": {"type": "object"}}
SCHEMAS["RayService"] = {"type": "object", "properties": _ANY | {"spec": {"type": "object", "properties": _SERVICE}}}


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused: Kubernetes would drop them without a word."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if "properties" in made and isinstance(made["properties"], dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    return made


def manifest(name: str) -> dict:
    """The first document of a file."""
    return next(yaml.safe_load_all((CLUSTER / name).read_text()))


def checked(found: dict) -> None:
    schema = strict(SCHEMAS[found["kind"]])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(found, schema)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml"])
def test_manifests_fit_kuberays_schemas(name: str) -> None:
    found = manifest(name)
    assert found["apiVersion"] == "ray.io/v1"
    checked(found)


def test_a_misspelt_field_is_refused() -> None:
    found = manifest("raycluster.yaml")
    found["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="imagePullPolice"):
        checked(found)


def specs() -> list[dict]:
    found = [manifest(name)["spec"] for name in ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")]
    return [found[0], found[1]["rayClusterSpec"], found[2]["rayClusterConfig"]]


#: Names of the three.
KINDS = ["raycluster", "rayjob", "rayservice"]


@pytest.mark.parametrize("spec", specs(), ids=KINDS)
def test_tokens_are_asked_for_and_nothing_is_open_to_the_world(spec: dict) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and "ingressOptions" not in spec["headGroupSpec"]
    # KubeRay's submitter and its operator are other pods, which ask the dashboard of a RayJob and a RayService: there
    # the token keeps others out.
    host = spec["headGroupSpec"]["rayStartParams"]["dashboard-host"]
    assert host == ("127.0.0.1" if spec == specs()[0] else "0.0.0.0")


@pytest.mark.parametrize("spec", specs(), ids=KINDS)
def test_every_node_sees_the_shared_folder(spec: dict) -> None:
    storage, _, copying = yaml.safe_load_all((CLUSTER / "storage.yaml").read_text())
    claim, (user,) = storage["metadata"]["name"], re.findall(r"--uid (\d+)", (CLUSTER / "Dockerfile").read_text())
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in [copying["spec"], *(group["template"]["spec"] for group in groups)]:
        assert pod["securityContext"]["fsGroup"] == int(user)
        claims = {v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == claim}
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounted["/shared"] in claims


@pytest.mark.parametrize("spec", specs(), ids=KINDS)
def test_pods_have_an_account_a_pull_secret_and_a_cache_of_models(spec: dict) -> None:
    account = list(yaml.safe_load_all((CLUSTER / "storage.yaml").read_text()))[1]
    assert account["kind"] == "ServiceAccount"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == account["metadata"]["name"] and len(pod["imagePullSecrets"]) == 1
        (container,) = pod["containers"]
        given = {one["name"]: one.get("value") for one in container["env"]}
        assert given["HF_HOME"].startswith("/shared/")
        asks_for_cards = "nvidia.com/gpu" in container["resources"]["limits"]
        tolerated = [(one["key"], one["operator"], one["effect"]) for one in pod.get("tolerations", [])]
        assert tolerated == [("nvidia.com/gpu", "Exists", "NoSchedule")] * asks_for_cards


@pytest.mark.parametrize("name", KINDS)
def test_pods_take_a_priority_once_there_is_one(name: str) -> None:
    priority, text = manifest("priority.yaml"), (CLUSTER / f"{name}.yaml").read_text()
    assert priority["kind"] == "PriorityClass" and priority["preemptionPolicy"] == "Never"
    found = yaml.safe_load(text.replace("# priorityClassName", "priorityClassName"))
    checked(found)
    spec = found["spec"].get("rayClusterSpec") or found["spec"].get("rayClusterConfig") or found["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["priorityClassName"] == priority["metadata"]["name"]


def test_versions_are_the_packages() -> None:
    pinned = re.findall(r'"ray\[.*?\]==([\d.]+)"', (CLUSTER.parent / "pyproject.toml").read_text())
    assert {spec["rayVersion"] for spec in specs()} == {*pinned} and len({*pinned}) == 1


def test_the_job_is_a_command_that_we_understand() -> None:
    words = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:2] == ["python", "/opt/rayrec/jobs/sprec.py"]
    config = resolve(parse("", words[2:]))
    spec = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]
    cards = sum(
        group["maxReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in spec["workerGroupSpecs"]
    )
    assert config.placement.train_workers + config.placement.generators * config.placement.tensor_parallel <= cards
    assert config.output.runs is not None and config.output.runs.startswith("/shared/")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules
def test_the_service_is_an_application_of_ours_that_wants_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.serve.schema import ServeDeploySchema

    from rayrec.serving.deploy import PROXY, TOKEN, build

    spec = manifest("rayservice.yaml")["spec"]
    found = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = found.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    args = application.args
    assert args["policy"].startswith("/shared/") and args["state"].startswith("/shared/")
    groups = [spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]]
    for (container,) in [group["template"]["spec"]["containers"] for group in groups]:
        given = {one["name"]: one.get("value") for one in container["env"]}
        assert TOKEN in given and given[PROXY[0]] == PROXY[1]
        assert found.http_options.port in {one["containerPort"] for one in container["ports"]}
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ValueError, match=TOKEN):
        build(args)
    with pytest.raises(ValueError, match=r"found \['polici'\]"):
        build({"polici": 1, **args})

    make_tiny(["Heat", "Alien"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), tmp_path / "policy", 0)
    (tmp_path / "titles.csv").write_text("title\nHeat\nAlien\n")
    monkeypatch.setenv(TOKEN, "word")
    here = {"policy": str(tmp_path / "policy"), "state": str(tmp_path / "state"), "template": "compact"}
    made = build(args | here | {"catalogue": str(tmp_path / "titles.csv")})
    assert made._bound_deployment.name == "Front" and (tmp_path / "state" / "versions" / "000001.json").exists()


def test_ray_up_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = manifest("ray-up.yaml")
    validate_config(prepare_config(config))
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [line for line in starts if " start " in line]
    # A submitted `python` is looked for on the PATH that Ray was started with.
    assert len(starts) == 2 and all(line.startswith("PATH=~/rayrec/bin:$PATH RAY_AUTH_MODE=token ") for line in starts)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    config["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))


def test_the_slurm_script_gives_ray_what_it_takes() -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    script = (CLUSTER / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True)
    assert "RAY_AUTH_MODE=token" in script
    call = script[script.index("symmetric-run") :].replace("\\\n", " ").splitlines()[0]
    words = [re.sub(r"\$\w+|\$\{[^}]*\}|\$@", "2", word) for word in shlex.split(call)][1:]
    start, entry = words[: words.index("--")], words[words.index("--") + 1 :]
    given = symmetric_run.make_context("_", list(start), resilient_parsing=True).params
    assert given["address"] == "2:2" and given["min_nodes"] == 2
    assert curate_and_validate_ray_start_args(start) == ["--num-cpus", "2", "--num-gpus", "2"]
    assert entry[1] == "jobs/sprec.py" and entry[-2:] == ["2", "&"]  # what the user adds comes last
    resolve(parse("", entry[2:-2]))


STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo node1; else echo "$@" > requeued; touch end; fi',
    "srun": """case "$*" in *hostname*) echo 10.0.0.1; exit;; esac
command -v ray > begun; until [ -e end ]; do sleep 0.02; done; exit 7""",
}


@pytest.mark.parametrize("warned", [True, False])
def test_a_slurm_job_that_is_nearly_out_of_time_is_queued_again(tmp_path: Path, warned: bool) -> None:
    for name, does in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    ray = tmp_path / "rayrec" / ".venv" / "bin" / "ray"  # which `symmetric-run` calls by its name
    ray.parent.mkdir(parents=True)
    ray.touch(0o755)
    given = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1"}
    given |= {"SLURM_GPUS_ON_NODE": "0", "SHARED": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", str(CLUSTER / "slurm.sh")], env=os.environ | given)
    begun, token = tmp_path / "rayrec" / "begun", tmp_path / ".ray-token-42"
    deadline = time.monotonic() + 10
    while not (begun.exists() and begun.read_text()):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert begun.read_text() == f"{ray}\n"
    assert len(token.read_text()) == 64 and token.stat().st_mode & 0o77 == 0
    if warned:
        job.send_signal(signal.SIGUSR1)
    else:
        (tmp_path / "rayrec" / "end").touch()
    assert job.wait(10) == 7  # the run's own
    assert not token.exists()
    requeued = tmp_path / "rayrec" / "requeued"
    assert requeued.read_text() == "requeue 42\n" if warned else not requeued.exists()


def test_the_image_copies_what_there_is() -> None:
    """The packages are installed before the code is there, so that another revision does not install them again."""
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    assert all((CLUSTER.parent / source).exists() for sources in copies for source in sources), copies
    installs = max(at for at, line in enumerate(lines) if "pip install" in line)
    assert {"COPY rayrec rayrec", "COPY jobs jobs"} <= {*lines[installs:]}
