"""The plan of the house, checked on the source: rooms, imports, names, sizes, no hidden input or noise."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sidestep"

# From the top down; a module imports from its own room and from rooms below (docs/architecture.md).
ROOMS = (
    ("cli", "__main__", "__init__"),
    ("bench", "integrations", "testing"),
    ("presets", "federated"),
    ("training",),
    ("checkpoint", "steplog", "world"),
    ("rules",),
    ("gradients",),
    ("nets",),
    ("data", "measure"),
    (
        "checks",
        "files",
        "machine",
        "noise",
        "permutation",
        "philox",
        "probes",
        "schedule",
        "seeded_sets",
        "tensorfile",
        "ternary",
        "update",
    ),
    ("errors", "keywords", "later", "notices", "version", "wording"),
)
LEVEL = {name: len(ROOMS) - index for index, room in enumerate(ROOMS) for name in room}
ONE_ROOM_EACH = {
    "bench",
    "integrations",
    "testing",
    "data",
    "measure",
}  # at one height, apart
NEVER_NAME_A_RULE = {"bench", "testing", "federated", "training", "checkpoint", "steplog", "world", "data", "measure"}
LONGEST_FUNCTION, LONGEST_EXCUSED, LONGEST_FILE = 40, 60, 300
HIDDEN_DRAWS = {"bernoulli_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"}

# a launcher says who a process is in its environment, and nowhere else; and where data sets lie is said there once
READS_THE_ENVIRONMENT = {"sidestep.world.launched", "sidestep.data.default_folder"}
PICKLING = {
    "all_gather_object", "broadcast_object_list", "gather_object", "recv_object_list", "scatter_object_list",
    "send_object_list",
}  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    path: Path

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return self.path.relative_to(SOURCE).with_suffix("").parts

    @property
    def room(self) -> str:
        return self.parts[0]

    @property
    def dotted(self) -> str:
        return ".".join(("sidestep", *self.parts)).removesuffix(".__init__")

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def calls(self) -> Iterator[ast.Call]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(SOURCE.parent)}:{getattr(node, 'lineno', 0)}"


RULES = Module(SOURCE / "rules" / "__init__.py")
MODULES = [Module(path) for path in sorted(SOURCE.rglob("*.py"))]
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.dotted)


def is_module(dotted: str) -> bool:
    place = SOURCE.parent.joinpath(*dotted.split("."))
    return place.with_suffix(".py").is_file() or place.is_dir()


def imported_modules(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every module of the package that `module` imports, also inside functions and for types only."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sidestep":
                    yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.at(node)}: write the import in full"
            if (node.module or "").split(".")[0] == "sidestep":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield node, inner if is_module(inner) else str(node.module)


def docstrings(tree: ast.AST) -> set[ast.Constant]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
            found.add(node.body[0].value)
    return found


def body_lines(function: Function) -> int:
    """Lines of a function without its docstring: an example in a docstring makes nothing harder to read."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def dotted_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def table_of_rules() -> dict[str, str]:
    """The dict in rules/__init__.py: the command line's name of each rule -> the name of its class."""
    if not RULES.path.exists():
        return {}
    table: dict[str, str] = {}
    for node in RULES.tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict) and value.keys:
            table |= {key.value: rule.value for key, rule in zip(value.keys, value.values, strict=True)}
    assert table, "rules/__init__.py holds no dict from names to rules"
    return table


def rule_files() -> set[str]:
    """The modules from which rules/__init__.py takes the rules of its table."""
    classes = set(table_of_rules().values())
    nodes = (node for node in ast.walk(RULES.tree) if isinstance(node, ast.ImportFrom)) if classes else ()
    return {str(node.module) for node in nodes if classes & {alias.name for alias in node.names}}


def test_the_source_is_found():
    assert MODULES, f"no Python files under {SOURCE}"


@each_module
def test_every_module_belongs_to_a_room(module):
    assert module.room in LEVEL, f"{module.dotted}: give it a room in ROOMS, and in docs/architecture.md"


@each_module
def test_imports_go_downwards(module):
    wrong = []
    for node, target in imported_modules(module):
        room = target.split(".")[1] if "." in target else "__init__"
        same_room = room == module.room
        upwards = LEVEL[room] > LEVEL[module.room]
        across = LEVEL[room] == LEVEL[module.room] and room in ONE_ROOM_EACH
        if not same_room and (upwards or across):
            wrong.append(f"{module.at(node)} imports {target}")
    assert not wrong, "\n".join(wrong)


@each_module
def test_no_rule_imports_another_rule(module):
    if module.room != "rules" or module.parts[-1] == "__init__":
        return
    others = (rule_files() | {"sidestep.rules"}) - {module.dotted}
    wrong = [f"{module.at(node)} imports {t}" for node, t in imported_modules(module) if t in others]
    assert not wrong, "\n".join(wrong)


@each_module
def test_the_loop_and_its_neighbours_never_name_a_rule(module):
    if module.room not in NEVER_NAME_A_RULE:
        return
    table, prose, wrong = table_of_rules(), docstrings(module.tree), []
    names = {*table, *table.values(), *(name.replace("-", "_") for name in table)}
    for node in ast.walk(module.tree):
        said: set[str] = set()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            said = set(re.findall(r"[\w-]+", node.value))
        elif isinstance(node, ast.Name):
            said = {node.id}
        elif isinstance(node, ast.Attribute):
            said = {node.attr}
        elif isinstance(node, ast.alias):
            said = set(node.name.split("."))
        wrong += [f"{module.at(node)} says {name}" for name in sorted(said & names)]
    assert not wrong, "a rule's name here means that the protocol lacks something:\n" + "\n".join(wrong)


@each_module
def test_all_is_explicit_and_resolves(module):
    if module.parts[-1] == "__main__":
        return
    loaded = importlib.import_module(module.dotted)
    assert "__all__" in vars(loaded), f"{module.dotted} has no __all__"
    missing = [name for name in loaded.__all__ if not hasattr(loaded, name)]
    assert not missing, f"{module.dotted}.__all__ names {missing}, which are not there"
    assert len(set(loaded.__all__)) == len(loaded.__all__), f"{module.dotted}.__all__ names something twice"


@each_module
def test_names_that_come_later_are_those_that_a_type_checker_sees(module):
    if not any(dotted_name(call.func) == "later" for call in module.calls()):
        return
    package, seen = importlib.import_module(module.dotted), set()
    for block in (node for node in module.tree.body if isinstance(node, ast.If)):
        for line in (node for node in block.body if isinstance(node, ast.ImportFrom)):
            seen |= {alias.name for alias in line.names}
            for alias in line.names:
                assert getattr(package, alias.name) is getattr(importlib.import_module(line.module), alias.name)
    tables = [call.args[1] for call in module.calls() if dotted_name(call.func) == "later"]
    assert sorted(name for names in ast.literal_eval(tables[0]).values() for name in names.split()) == sorted(seen)


@each_module
def test_no_name_that_comes_later_is_that_of_a_module(module):
    """An import of `nets.norm` would put the module where `nets` has a function of that name."""
    tables = [call.args[1] for call in module.calls() if dotted_name(call.func) == "later" and len(call.args) == 2]
    names = {name for table in tables for entry in ast.literal_eval(table).values() for name in entry.split()}
    assert not names & {path.stem for path in module.path.parent.iterdir()}


@each_module
def test_files_and_functions_are_short(module):
    lines = module.text.splitlines()
    wrong = [f"{module.dotted}: {len(lines)} lines; split it"] if len(lines) > LONGEST_FILE else []
    for function in module.functions():
        size = body_lines(function)
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        heading = "".join(lines[first - 2 : function.body[0].lineno - 1])
        excused = "long:" in (ast.get_docstring(function) or "") or "# long:" in heading
        if size > (LONGEST_EXCUSED if excused else LONGEST_FUNCTION):
            wrong.append(f"{module.at(function)} {function.name}: {size} lines")
    assert not wrong, (
        f"without its docstring a function has up to {LONGEST_FUNCTION} lines, or {LONGEST_EXCUSED} with "
        f"'# long: why' above or beside its name; a file up to {LONGEST_FILE}:\n" + "\n".join(wrong)
    )


@each_module
def test_only_the_command_line_prints_or_reads_its_surroundings(module):
    if module.room in {"cli", "__main__"}:
        return
    outside = {"os.environ", "os.getenv", "os.environb", "sys.argv", "sys.stdout", "sys.stdin"}
    outside -= {"os.environ"} if module.dotted in READS_THE_ENVIRONMENT else set()
    wrong = [f"{module.at(call)} calls print" for call in module.calls() if dotted_name(call.func) == "print"]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and dotted_name(node) in outside:
            wrong.append(f"{module.at(node)} uses {dotted_name(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module in {"os", "sys"}:
            taken = {f"{node.module}.{alias.name}" for alias in node.names} & outside
            wrong += [f"{module.at(node)} imports {name}" for name in sorted(taken)]
    assert not wrong, "take it as an argument; only the command line may:\n" + "\n".join(wrong)


@each_module
def test_no_random_filling_without_a_generator(module):
    """The linter bans torch.rand and its kin; tensor.normal_() and dropout by name are found here."""
    if module.dotted == "sidestep.noise":
        return
    wrong = []
    for call in module.calls():
        name = dotted_name(call.func)
        fills = name.split(".")[-1] in HIDDEN_DRAWS and ".init." not in f".{name}"
        drops = name in {
            "F.dropout",
            "torch.dropout",
            "torch.nn.functional.dropout",
            "nn.Dropout",
            "torch.nn.Dropout",
        }
        if drops or (fills and "generator" not in {keyword.arg for keyword in call.keywords}):
            wrong.append(f"{module.at(call)} calls {name}")
    assert not wrong, "hidden randomness; pass generator=, or draw from sidestep.noise:\n" + "\n".join(wrong)


@each_module
def test_nothing_that_ranks_exchange_is_pickled(module):
    """The linter knows these by their full names; here they are found however the module was imported."""
    names = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & PICKLING, f"{module.dotted} exchanges pickles, which run code: gather bytes (sidestep.world)"


def test_two_modules_alone_read_the_environment():
    asking = {
        module.dotted for module in MODULES if "os.environ" in module.text and module.room not in {"cli", "__main__"}
    }
    assert asking <= READS_THE_ENVIRONMENT
