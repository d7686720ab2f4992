"""What a file, a title or an address that somebody else wrote can make rayrec do: nothing."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rayrec import baselines, tracking
from rayrec.config import BaselinesConfig, ModelConfig, to_dict
from rayrec.folders import write_json
from rayrec.methods import parse
from rayrec.models import policy
from rayrec.models.tiny import make_tiny
from rayrec.plan import resolve
from rayrec.report import build_report
from rayrec.runs import Run
from rayrec.storage import Storage

ROOT = Path(__file__).parents[1]
#: Modules that run what a file says or write where it says, and calls of others that do.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "tarfile", "zipfile"}
CALLS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load", "eval", "exec", "os.system"}
CALLS |= {"shutil.unpack_archive"}

#: What holds a secret in the environment of a run: of stores, trackers, hubs, endpoints and Ray.
SECRETS = """AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AZURE_STORAGE_KEY AZURE_CLIENT_SECRET
GOOGLE_APPLICATION_CREDENTIALS HF_TOKEN HUGGING_FACE_HUB_TOKEN MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN
OPENAI_API_KEY RAY_AUTH_TOKEN WANDB_API_KEY"""


def test_nothing_does_what_a_file_says() -> None:
    found = []
    for path in sorted([*(ROOT / "rayrec").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}.{one.name}" for one in node.names] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in names if name.split(".")[0] in MODULES or name in CALLS]
            if isinstance(node, ast.Call):
                found += [(path.name, call) for call in [ast.unparse(node.func)] if call in CALLS]
                shell = [word for word in node.keywords if word.arg in ("shell", "trust_remote_code", "allow_pickle")]
                found += [(path.name, w.arg) for w in shell if ast.unparse(w.value) != "False"]
    assert found == []


def test_pickled_weights_of_an_adapter_are_refused(tmp_path: Path) -> None:
    """peft reads adapter_model.bin where it finds no safetensors."""
    make_tiny(["Heat (1995)"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=280), tmp_path / "base", 0)
    policy.add_lora(policy.load_base(tmp_path / "base"), 2, 4, 0.0).save_pretrained(str(tmp_path / "own"))
    policy.load_policy(tmp_path / "own")
    weights = load_file(tmp_path / "own" / policy.ADAPTER)
    (tmp_path / "own" / policy.ADAPTER).unlink()
    torch.save(weights, tmp_path / "own" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin.*no adapter_model\.safetensors\. Convert the adapter"):
        policy.load_policy(tmp_path / "own")


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/tmp/x", "..", ".", "", ".shared", "a\nb", "a\0b"])
def test_a_run_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain folder name"):
        resolve(parse("", ["--name", name]))


def test_baselines_stay_in_their_folder(tmp_path: Path) -> None:
    given = BaselinesConfig()
    given = replace(given, output=replace(given.output, runs=str(tmp_path / "runs"), name="../x"))
    with pytest.raises(ValueError, match="is not a plain folder name"):
        baselines.run(given)


@pytest.mark.parametrize("url", ["http://me:s3cret@host/v1", "http://host/v1?api_key=s3cret", "http://host/v1#s3cret"])
def test_an_address_with_a_password_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
        resolve(parse("", ["--method", "ChatRec", "--endpoint", url, "--served", "m"]))
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:s3cret@bucket/runs",
        "abfs://container/runs?client_secret=s3cret",
        "file:///runs?region=x&secret_key=s3cret",
        "file:///runs?s3cret",
        "file:///runs#s3cret",
    ],
)
def test_a_store_with_a_key_in_its_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as error:
        Storage(url).check()
    assert "s3cret" not in str(error.value)


def test_a_store_may_say_where_it_is() -> None:
    Storage("s3://bucket/runs?region=us-east-1&endpoint_override=127.0.0.1:9&scheme=http").check()


def test_tokens_are_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in SECRETS.split():
        monkeypatch.setenv(name, "s3cret")
    config = resolve(parse("", ["--runs", str(tmp_path), "--name", "r"]))
    seen = []
    curves = tracking.Curves(print, print)
    monkeypatch.setitem(tracking._STARTERS, "wandb", lambda run, settings: seen.append((run, settings)) or curves)
    run = Run(Storage(str(tmp_path)), tmp_path / "r", config, "data")
    run.trace.attempt(left=[])
    tracker = tracking.Tracker(run.root, ("wandb",), to_dict(config))
    tracker.phase({"records": [{"kind": "sft", "phase": "00/sft", "iteration": 0, "loss": 1.0}]})
    tracker.close()
    write_json(run.root / "plan.json", {"phases": []})
    run.write_metrics([])
    build_report(run.root)
    written = {path.name: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    assert {"config.json", "trace.json", "report.html"} <= written.keys()
    assert not [name for name, text in written.items() if b"s3cret" in text]
    assert "s3cret" not in repr(seen) + "".join(capfd.readouterr())
