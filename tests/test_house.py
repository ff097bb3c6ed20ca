"""The house's rules, read off the source: arrows, cycles, sizes, annotations."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sorted((ROOT / "src").rglob("*.py"))}


class _WithoutTypeChecking(ast.NodeTransformer):
    """Imports for the type checker alone load nothing, so they make no arrow."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


TREES = {name: _WithoutTypeChecking().visit(ast.parse(path.read_text())) for name, path in FILES.items()}
HEAVY = {"torch", "botorch", "gpytorch", "numba", "wandb", "optuna", "plotly", "scipy", "transformers"}


def imported(name: str, nodes: list[ast.stmt] | None = None) -> set[str]:
    """Modules that ``name`` imports, absolute; ``nodes`` restricts the search (module level only, say)."""
    found: set[str] = set()
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes if nodes is not None else ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


EDGES = {name: {target for target in imported(name) if target in TREES and target != name} for name in TREES}


@pytest.mark.parametrize("name", TREES)
def test_arrows(name: str) -> None:
    app = name.split(".")[2] if name.startswith("src.apps.") else None
    for target in EDGES[name]:
        if app is None and name.startswith("src.nanollama"):
            assert not target.startswith("src.apps."), f"the core module {name} imports the app module {target}"
        elif app and target.startswith("src.apps."):
            assert target.split(".")[2] == app, f"{name} imports another app: {target}"
    if name.startswith("src.nanollama.config"):
        assert all(target.startswith("src.nanollama.config") for target in EDGES[name])
    if name in ("src.nanollama.train.schedule", "src.nanollama.checkpoint.retention", "src.nanollama.profiler.flops"):
        assert not {t for t in EDGES[name] if not t.startswith("src.nanollama.config")} and "torch" not in imported(name)
    assert not any(target.split(".")[0] in ("nanollama", "apps") for target in imported(name)), "one import root only: src"


def reachable_when_loaded(name: str, seen: set[str]) -> set[str]:
    """Third-party packages that importing ``name`` loads."""
    if name in seen:
        return set()
    seen.add(name)
    direct = imported(name, TREES[name].body)
    packages = {target.split(".")[0] for target in direct if not target.startswith("src")}
    for target in direct & TREES.keys():
        packages |= reachable_when_loaded(target, seen)
        parent = target.rpartition(".")[0]
        if parent in TREES:
            packages |= reachable_when_loaded(parent, seen)
    return packages


ENTRIES = [n for n in TREES if n.startswith("src.nanollama.launcher") or (n.startswith("src.apps.") and n.endswith(".config"))]


@pytest.mark.parametrize("name", ENTRIES)
def test_launcher_and_configs_load_nothing_heavy(name: str) -> None:
    assert not reachable_when_loaded(name, set()) & HEAVY


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in EDGES[name]:
                if not name.startswith(target + "."):  # a module's own package
                    visit(target, (*path, name))
            done.add(name)

    for name in TREES:
        visit(name, ())


@pytest.mark.parametrize("name", TREES)
def test_sizes_and_annotations(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{name}.{node.name} is too long"
            if not node.name.startswith("_") and not name.endswith("_native"):  # numba finds its own types
                assert node.returns is not None, f"{name}.{node.name} has no return annotation"
    for node in TREES[name].body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


UNSAFE = re.compile(
    r"(builtins\.)?(eval|exec|__import__)|(dill|joblib|marshal|pickle|shelve)\.(load|loads|open|Unpickler)|subprocess\.get\w*output"
    r"|(numpy|pandas)\.read_pickle|torch\.(hub\.)?load|yaml\.(unsafe_|full_)?load(_all)?|os\.(system|popen|exec\w+|spawn\w+)"
)


def unsafe(tree: ast.AST) -> set[str]:
    """What in a module evaluates or unpickles data or gives it to a shell: uses of a name, whatever it was imported as, not calls alone."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):  # a field may be called eval
            first, dot, rest = ast.unparse(node).partition(".")
            found |= {name for name in [known.get(first, first) + dot + rest] if UNSAFE.fullmatch(name)}
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle", "weights_only"):
            safe = isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only")
            found |= set() if safe else {ast.unparse(node)}
    return found


@pytest.mark.parametrize("name", TREES)
def test_nothing_is_evaluated_or_unpickled(name: str) -> None:
    allowed = {"pickle.Unpickler"} if name == "src.nanollama.checkpoint.reader" else set()  # its base of an allow-list
    assert unsafe(TREES[name]) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "run = exec", "import pickle as p; p.loads(b)", "from pickle import Unpickler; Unpickler(f).load()",
        "import torch; torch.load(p)", "from torch import load; load(p)", "import yaml; yaml.load(t, yaml.Loader)", "os.popen(c)",
        "subprocess.run(c, shell=True)", "np.load(p, allow_pickle=True)", "torch.hub.load(r, m)", "subprocess.getoutput(c)",
    ],
)  # fmt: skip
def test_the_rule_sees_every_way(source: str) -> None:
    assert unsafe(ast.parse(source))
