"""What a file, a title or an address that somebody else wrote can make rayrec do: nothing."""

from __future__ import annotations

import ast
import json
import pickle
import re
import threading
import traceback
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rayrec.config import BaselinesConfig
from rayrec.data import load
from rayrec.data.settings import DataConfig
from rayrec.deciding import to_dict
from rayrec.driver import baselines
from rayrec.driver.checks import resolve
from rayrec.generation import chat, resolve_engine
from rayrec.generation.engine import Part, Setup
from rayrec.methods import parse
from rayrec.models import policy, weights
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.prompts import make_template
from rayrec.report import trackers
from rayrec.report.build import build_report
from rayrec.runs.manifest import write_json
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage

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
    for path in sorted([*(ROOT / "rayrec").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}.{one.name}" for one in node.names] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in names if name.split(".")[0] in MODULES or name in CALLS]
            if isinstance(node, ast.Call):
                found += [(path.name, call) for call in [ast.unparse(node.func)] if call in CALLS]
                shell = [word for word in node.keywords if word.arg in ("shell", "trust_remote_code", "allow_pickle")]
                found += [(path.name, w.arg) for w in shell if ast.unparse(w.value) != "False"]
                # Left out, it is a question at the terminal, and a yes runs the folder's code.
                asks = re.fullmatch(r"Auto\w+\.from_(pretrained|config)", ast.unparse(node.func))
                found += [(path.name, asks[0])] if asks and "trust_remote_code" not in [w.arg for w in shell] else []
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


class Payload:
    """What marks a file once it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_a_pickle_is_no_data_and_no_weights(tmp_path: Path) -> None:
    mark, bad = tmp_path / "mark", pickle.dumps(Payload(tmp_path / "mark"))
    pickle.loads(bad)
    mark.unlink()  # it would have worked
    for name in (
        "ratings.csv",
        "ratings.dat",
        "u.data",
        "ratings.parquet",
        "ratings.jsonl",
        "ratings.json",
        "data.pkl",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(bad)
        for path in (tmp_path / name, tmp_path / name / name):
            with pytest.raises(ValueError, match=str(tmp_path)):
                load(DataConfig(data=str(path)))
    make_tiny(["Heat (1995)"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=280), tmp_path / "base", 0)
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(bad)
    with pytest.raises(ValueError, match="safetensors"):
        policy.load_base(tmp_path / "base")
    with pytest.raises(ValueError, match="safetensors"):
        list(weights.tensors(str(tmp_path / "base")))  # what vLLM is handed
    (tmp_path / "base" / "model.safetensors").write_bytes(bad)
    with pytest.raises((ValueError, SafetensorError)):
        policy.load_base(tmp_path / "base")
    with pytest.raises((ValueError, SafetensorError)):
        list(weights.tensors(str(tmp_path / "base")))
    assert not mark.exists()


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


class Echo(BaseHTTPRequestHandler):
    """Refuses every request with the headers that it had."""

    def do_GET(self) -> None:
        body = json.dumps({"error": {"message": f"wrong: {self.headers['Authorization']}"}}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_endpoint_that_repeats_the_key_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        config = resolve(parse("", ["--method", "ChatRec", "--endpoint", url, "--served", "m"]))
        make_tiny(["Heat"], config.model, tmp_path, 0)
        template = make_template("compact", policy.load_tokenizer(tmp_path))
        setup = Setup(config, Storage(""), "", template, (), False, chat.ChatEngine, 1)
        with pytest.raises(ValueError, match=r"wrong: Bearer \*\*\*") as refused:
            resolve_engine(config, gpu=False)
        with pytest.raises(ConnectionError, match=r"wrong: Bearer \*\*\*") as failed:
            chat.ChatEngine(setup).answer(Part("00/evaluate", 0, "base", "", [[1]], "greedy"))
        server.shutdown()
    told = [line for info in (refused, failed) for line in traceback.format_exception(info.value)]
    assert "s3cret" not in "".join(told)


def test_tokens_are_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in SECRETS.split():
        monkeypatch.setenv(name, "s3cret")
    config = resolve(parse("", ["--runs", str(tmp_path), "--name", "r"]))
    seen = []
    curves = trackers.Curves(print, print, "r1")
    monkeypatch.setitem(trackers._STARTERS, "wandb", lambda *given: seen.append(given) or curves)
    run = Run(Storage(str(tmp_path)), tmp_path / "r", config, {"data": ""})
    run.trace.attempt(left=[])
    tracker = trackers.Tracker(run.root, ("wandb",), to_dict(config))
    tracker.phase({"records": [{"kind": "sft", "phase": "00/sft", "iteration": 0, "loss": 1.0}]})
    tracker.close()
    write_json(run.root / "plan.json", {"phases": []})
    run.write_metrics([])
    build_report(run.root)
    written = {path.name: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    assert {"config.json", "trace.json", "report.html"} <= written.keys()
    assert not [name for name, text in written.items() if b"s3cret" in text]
    assert "s3cret" not in repr(seen) + "".join(capfd.readouterr())
