"""Check who imports whom: `python -m tools.check_imports`. No cycles, and only the edges that the layers allow.

Reads the sources, imports nothing. Imports inside functions count; those for type checkers only do not.
"""

import ast
import sys
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "latentsync"
BASE = {"constants", "config", "utils"}
PARTS = BASE | {"media", "faces", "models", "whisper"}
# What each part of the package may import besides itself. Entry points (scripts, tools) may import all of it.
ALLOWED: dict[str, set[str]] = {
    "options": set(),
    "constants": set(),
    "utils": {"constants"},
    "config": {"constants", "utils"},
    "media": BASE,
    "faces": BASE,
    "models": BASE,
    "whisper": BASE | {"media"},  # to decode the files it is given
    "trepa": BASE | {"models"},
    "pipelines": PARTS,
    "data": PARTS,
    "metrics": PARTS | {"pipelines", "data"},
    "training": PARTS | {"pipelines", "data", "trepa"},
    "loading": PARTS | {"pipelines"},
    "serving": PARTS | {"pipelines", "loading", "data", PACKAGE},
    PACKAGE: PARTS | {"pipelines", "loading"},
}
# Modules that lie in one part for the sake of a public name and belong to another.
BELONGS = {"latentsync.utils.affine_transform": "faces"}

Graph = dict[str, set[str]]


def main() -> int:
    """Print what is wrong, one line each; 1 when anything is."""
    problems = check(PROJECT_ROOT)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check(root: Path) -> list[str]:
    """Cycles and forbidden edges among the package's modules under `root`."""
    graph = import_graph(root)
    cycles = [f"import cycle: {' -> '.join(cycle)}" for cycle in find_cycles(graph)]
    edges = [(source, target) for source, targets in graph.items() for target in targets]
    return cycles + [
        f"{source} must not import {target}: {part_of(source)} may use only {', '.join(sorted(may_use(source)))}"
        for source, target in sorted(edges)
        if part_of(target) not in may_use(source)
    ]


def import_graph(root: Path) -> Graph:
    """Module -> modules of the package that it imports by name."""
    modules = {module_name(path, root): path for path in sorted((root / PACKAGE).rglob("*.py"))}
    return {name: imported_modules(path, name, set(modules)) for name, path in modules.items()}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, name: str, modules: set[str]) -> set[str]:
    """Modules of `modules` that a file names in its imports (`from a import b` names a.b where that is a module)."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    named: set[str] = set()
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(node, package)
            named.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names)
    return (named & modules) - {name}


def runtime_nodes(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    nodes, stack = [], [tree]
    while stack:
        node = stack.pop()
        nodes.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
        else:
            stack.extend(ast.iter_child_nodes(node))
    return nodes


def absolute_base(node: ast.ImportFrom, package: str) -> str:
    """The module after `from`, its leading dots resolved."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def find_cycles(graph: Graph) -> list[list[str]]:
    """One cycle for each edge that closes one, found depth first."""
    cycles: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycles.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, [*path, name])
        done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return cycles


def part_of(module: str) -> str:
    """The part of the package a module counts to: its sub-package, or the package itself."""
    if module in BELONGS:
        return BELONGS[module]
    return module.split(".")[1] if "." in module else PACKAGE


def may_use(module: str) -> set[str]:
    """Parts that a module may import, its own included; a part the table does not know may use the base alone."""
    part = part_of(module)
    return ALLOWED.get(part, BASE) | {part}


if __name__ == "__main__":
    sys.exit(main())
