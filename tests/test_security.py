"""What a file, a title or an address that somebody else wrote can make rayrec do: nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rayrec.methods import parse
from rayrec.plan import resolve

ROOT = Path(__file__).parents[1]
#: Modules that run what a file says, and calls of others that do.
RUNNING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load", "eval", "exec", "os.system"}


def test_nothing_runs_what_a_file_says() -> None:
    found = []
    for path in sorted([*(ROOT / "rayrec").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in names if name.split(".")[0] in RUNNING]
            if isinstance(node, ast.Call):
                found += [(path.name, call) for call in [ast.unparse(node.func)] if call in CALLS]
                shell = [word for word in node.keywords if word.arg in ("shell", "trust_remote_code", "allow_pickle")]
                found += [(path.name, w.arg) for w in shell if ast.unparse(w.value) != "False"]
    assert found == []


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/tmp/x", "..", ".", ""])
def test_a_run_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not a plain folder name"):
        resolve(parse("", ["--name", name]))


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
        resolve(parse("", ["--method", "ChatRec", "--endpoint", "http://me:s3cret@host/v1", "--served", "m"]))
    assert "s3cret" not in str(error.value)
