"""The rooms of the house and what ties them: `python tests/rooms.py` prints each room, its imports, and what goes up.

A room is a folder of `pipeline`; imports go down `ROOMS`, never up. `repnets` knows nothing of `pipeline`.
"""

import ast
import importlib
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).resolve().parents[1]
ROOMS = (
    "cli",
    "stages",
    "deploy",
    "report",
    "verification",
    "benchmark",
    "quantization",
    "backends",
    "models",
    "data",
    "tasks",
    "config",
    "devices",
    "artifacts",
    "pipeline",  # errors, exit codes, quiet: what every room may use
    "repnets",
)
"""From the top floor down."""


def sources() -> list[Path]:
    """Every Python file of the two packages, but what is shipped to devices as it is."""
    found = sorted([*PROJECT.glob("pipeline/**/*.py"), *PROJECT.glob("repnets/**/*.py")])
    return [path for path in found if "shipped" not in path.parts]


def module_of(path: Path) -> str:
    """Dotted name of a file of this project."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room that a module lies in: the folder below `pipeline`, `pipeline` itself, or `repnets`."""
    if module == "pipeline.__main__":  # the door to the stages
        return "stages"
    first, *rest = module.split(".")
    return rest[0] if first == "pipeline" and rest and (PROJECT / "pipeline" / rest[0]).is_dir() else first


def users() -> list[Path]:
    """Every file of the project that uses modules of ours."""
    found = [*sources(), *PROJECT.glob("tests/**/*.py"), *PROJECT.glob("benchmarks/**/*.py")]
    return sorted(path for path in found if "from pipeline" in (text := path.read_text()) or "from repnets" in text)


def missing_names(path: Path) -> list[str]:
    """What a file reads of a module of ours by `module.name`, and that module does not have."""
    tree = ast.parse(path.read_text())
    modules: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("pipeline", "repnets"):
            for name in node.names:
                with suppress(ModuleNotFoundError):  # it is a class or a function
                    modules[name.asname or name.name] = importlib.import_module(f"{node.module}.{name.name}")
    own = {one.arg for one in ast.walk(tree) if isinstance(one, ast.arg)}
    own |= {one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return [
        f"{node.value.id}.{node.attr}, line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules.keys() - own
        and not hasattr(modules[node.value.id], node.attr)
    ]


def imports_of(path: Path) -> set[str]:
    """Full names of the first-party things that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.split(".")[0] in ("pipeline", "repnets")}


def between_rooms() -> Counter[tuple[str, str]]:
    """How many files of a room import from another, by both names."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sources():
        here = room_of(module_of(path))
        found.update({(here, there) for name in imports_of(path) if (there := room_of(name)) != here})
    return found


def upwards() -> list[str]:
    """Each import that goes up, or that names a room which is not in `ROOMS`, in words."""
    floor = {room: number for number, room in enumerate(ROOMS)}
    found = []
    for path in sources():
        module = module_of(path)
        here = room_of(module)
        for name in sorted(imports_of(path)):
            there = room_of(name)
            if here not in floor or there not in floor or floor[there] < floor[here]:
                found.append(f"{module} ({here}) imports {name} ({there})")
    return found


def main() -> int:
    """Print the table; 1 where an import goes up."""
    ties = between_rooms()
    lines = {room: sum(len(p.read_text().splitlines()) for p in sources() if room_of(module_of(p)) == room)
             for room in ROOMS}  # fmt: skip
    for room in ROOMS:
        below = ", ".join(f"{there} {ties[room, there]}" for there in ROOMS if ties[room, there])
        print(f"{room:13} {lines[room]:5} lines   {below}")
    wrong = upwards()
    print(f"\n{len(ROOMS)} rooms, {len(ties)} pairs of rooms tied by {sum(ties.values())} files' imports, "
          f"{len(wrong)} upwards")  # fmt: skip
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
