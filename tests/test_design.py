"""The rooms of docs/design.md: who imports whom, and who may import Ray, vLLM and DeepSpeed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rayrec").rglob("*.py"))
HEAVY = {"ray", "deepspeed", "vllm"}
#: The rooms that may import those, inside functions.
EDGE = {"cluster", "training", "generation", "recommend", "serving"}


def table() -> tuple[list[str], list[set[str]]]:
    """The rooms from left to right, and the groups that never import one another."""
    found = re.search(r"```imports\n(.*?)```", (ROOT / "docs" / "design.md").read_text(), re.DOTALL)
    assert found, "docs/design.md has no block `imports`"
    rooms: list[str] = []
    apart: list[set[str]] = []
    for level in found[1].split("<"):
        names = [name.strip() for name in re.split(r"[,|]", level)]
        rooms += names
        apart += [set(names)] if "|" in level else []
    return rooms, apart


def room_of(path: Path) -> str:
    """The room of a file, ``rayrec`` for the package itself."""
    name = path.relative_to(ROOT / "rayrec").parts[0].removesuffix(".py")
    return "rayrec" if name == "__init__" else name


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """(module, whether a function imports it) for every import, those under TYPE_CHECKING too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            package = node.module or ""
            yield from ((f"{package}.{alias.name}" if package == "rayrec" else package, inside) for alias in node.names)
        yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def test_every_room_is_in_the_table() -> None:
    rooms, _ = table()
    assert len(set(rooms)) == len(rooms)
    assert {room_of(path) for path in FILES} - {"rayrec"} == {*rooms} - {"jobs"}


def test_imports_point_to_the_left() -> None:
    rooms, apart = table()
    place = {room: number for number, room in enumerate(rooms)}
    wrong = []
    for path in FILES:
        own = room_of(path)
        for module, inside in imports(ast.parse(path.read_text())):
            if not module.startswith("rayrec."):
                assert not module.startswith(("jobs", "tests")), f"{path} imports {module}"
                continue
            other = module.split(".")[1]
            upward = not inside if own == "rayrec" else place[other] > place[own]  # the package gives names when asked
            if other != own and (upward or any({own, other} <= group for group in apart)):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_modules_import_one_another_in_no_circle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    arrows: dict[str, set[str]] = {}
    for name, path in names.items():
        arrows[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rayrec"):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    arrows[name].add(whole if whole in names else node.module)
        # A module of a package imports the package itself by being in it; that is Python's, not an arrow.
        arrows[name] -= {name}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in sorted(arrows[name]):
                walk(other, (*above, name))
            done.add(name)

    for name in names:
        walk(name, ())


def test_only_the_edge_imports_ray_deepspeed_and_vllm_and_inside_functions() -> None:
    wrong = []
    for path in FILES:
        for module, inside in imports(ast.parse(path.read_text())):
            if module.split(".")[0] in HEAVY and not (room_of(path) in EDGE and inside):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


#: An interpreter in which no finder knows the heavy packages, as if they were not installed; prints what was imported.
WITHOUT = """
import importlib, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ("ray", "deepspeed", "vllm") else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in ("ray", "deepspeed", "vllm"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit(f"{name} can be imported")
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv) - 1)
"""


def test_all_modules_import_without_ray_deepspeed_and_vllm() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
    names = [name for name in names if not name.endswith(".__main__")]
    line = [sys.executable, "-c", WITHOUT, *names]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(len(names)) and len(names) > 60
