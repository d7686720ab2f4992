"""Private interfaces of vLLM that the engine uses; a test that fails names the one that the installed version lacks.

vLLM's sources are read and not imported, which would take half a minute.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from rayrec.generation.vllm_worker import Extension


def source(module: str) -> ast.Module:
    """The syntax tree of one of vLLM's modules."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None, "vllm is not installed"
    file = Path(spec.origin).parent / f"{module}.py"
    assert file.exists(), f"vllm has no module {module}"
    return ast.parse(file.read_text(encoding="utf-8"))


def members(module: str, name: str) -> dict[str, ast.AST]:
    """The classes and functions of a class, and its fields; empty if there is no such class."""
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = {
                n.target.id: n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            }
            return fields | {n.name: n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {}


def parameters(function: ast.AST) -> list[str]:
    """The names of a function's parameters."""
    assert isinstance(function, ast.FunctionDef)
    return [one.arg for one in (*function.args.args, *function.args.kwonlyargs)]


RUNNER = ("v1/worker/gpu_model_runner", "GPUModelRunner")
EMBEDDING = "model_executor/layers/vocab_parallel_embedding"
#: Methods and the parameters with which they are called.
METHODS = [
    (*RUNNER, "reload_weights", ["weights_iterator"]),
    (*RUNNER, "get_model", []),
    ("v1/worker/gpu_worker", "Worker", "reload_weights", []),
    (EMBEDDING, "UnquantizedEmbeddingMethod", "process_weights_after_loading", ["layer"]),
]


@pytest.mark.parametrize(("module", "owner", "method", "wanted"), METHODS, ids=lambda value: str(value))
def test_a_method_that_takes_a_policy(module: str, owner: str, method: str, wanted: list[str]) -> None:
    found = members(module, owner)
    assert method in found, f"vllm.{module}: {owner} has no {method}"
    assert {*wanted} <= {*parameters(found[method])}, f"vllm.{module}: {owner}.{method} has other parameters"


def test_cpus_have_the_model_runner_of_gpus() -> None:
    bases = [
        ast.unparse(base)
        for node in ast.walk(source("v1/worker/cpu_model_runner"))
        if isinstance(node, ast.ClassDef) and node.name == "CPUModelRunner"
        for base in node.bases
    ]
    assert bases == ["GPUModelRunner"], f"vllm: CPUModelRunner derives from {bases}"


def test_layers_have_a_quant_method() -> None:
    attributes = {ast.unparse(node.target) for node in ast.walk(source(EMBEDDING)) if isinstance(node, ast.AnnAssign)}
    assert "self.quant_method" in attributes, "vllm: VocabParallelEmbedding has no quant_method"


@pytest.mark.parametrize(
    "name", ["worker_extension_cls", "kv_cache_memory_bytes", "enable_sleep_mode", "load_format", "max_logprobs"]
)
def test_an_argument_of_the_engine(name: str) -> None:
    assert name in members("engine/arg_utils", "EngineArgs"), f"vllm: EngineArgs has no {name}"


def test_workers_have_an_extensions_methods_and_none_of_their_names() -> None:
    base = "v1/worker/worker_base"
    assert "worker_extension_cls" in ast.unparse(source(base)), f"vllm.{base}: WorkerBase reads no worker_extension_cls"
    own = {name for name in vars(Extension) if not name.startswith("_")}
    for module, name in (
        (base, "WorkerBase"),
        ("v1/worker/gpu_worker", "Worker"),
        ("v1/worker/cpu_worker", "CPUWorker"),
    ):
        found = members(module, name)
        assert found, f"vllm.{module}: there is no {name}"
        assert not own & {*found}, f"vllm.{module}: {name} has a method of its own of the name {own & {*found}}"


def test_a_dead_engine_has_an_error_of_its_own() -> None:
    module = "v1/engine/exceptions"
    names = {node.name for node in source(module).body if isinstance(node, ast.ClassDef)}
    assert "EngineDeadError" in names, f"vllm.{module}: there is no EngineDeadError"


@pytest.mark.parametrize("name", ["VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_LOGGING_LEVEL"])
def test_an_environment_variable(name: str) -> None:
    known = {node.value for node in ast.walk(source("envs")) if isinstance(node, ast.Constant)}
    assert name in known, f"vllm.envs: there is no {name}"


def test_the_registry_of_architectures_names_those_that_vllm_has_itself() -> None:
    text = ast.unparse(source("model_executor/models/registry"))
    assert "'LlamaForCausalLM': ('llama', 'LlamaForCausalLM')" in text, "vllm: another form of the registry"
    assert "'PhiForCausalLM': ('transformers', " in text, "vllm: PhiForCausalLM is not run by transformers"
