"""The house's rules on imports, disk, clock and printing, read off the source (docs/architecture.md)."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "fedq").rglob("*.py"))

LAYERS = [
    {"errors", "ids", "spelling", "config", "fs"},
    {"plan"},
    {"queue"},
    {"trust"},
    {"device", "client"},
    {"local", "checking", "learn"},
    {"cli"},
]
"""Imports go to the same room or downward. ``fedq/__init__`` is the door: it loads all of them lazily."""

PLAN_WITH_TORCH = """
trace rehearse rules contracts preflight replay kernels plan tensors training given optimizers unchanged held capture
recorder recording settle sizes blame prove emit statistics control once loops variants nesting drawing
untouched twice dtypes roles kinds steps foresee
""".split()
WITH_TORCH = {
    *(f"fedq.plan.{m}" for m in PLAN_WITH_TORCH),
    "fedq.client.pointers", "fedq.client.lazy", "fedq.client.hook",
    "fedq.device.worker", "fedq.device.folding", "fedq.device.keeping", "fedq.device.finite",
    "fedq.device.typist",
    "fedq.local",
}  # fmt: skip
"""Modules that may import torch, or one another, when they are imported. All others do so in functions."""

AT_THE_RIM = ("fedq.fs", "fedq.device.store", "fedq.device.journal", "fedq.client.outbox")
FILE_MODULES = {"sqlite3", "shutil", "glob", "fcntl"}
FILE_CALLS = {
    "open", "remove", "unlink", "rename", "renames", "replace", "link", "symlink", "mkdir", "makedirs", "rmdir",
    "removedirs", "listdir", "scandir", "walk", "stat", "lstat", "access", "chmod", "chown", "utime", "truncate",
    "ftruncate", "fsync", "fdatasync", "mkfifo", "mknod", "readlink",
}  # fmt: skip
"""Of ``os``. Reading and writing what is open already (pipes, inotify) is no business of the disk."""
TEMP_CALLS = {"mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryDirectory"}
"""Of ``tempfile``. A TemporaryFile has no name: it is memory that can be handed to a worker."""
PATH_CALLS = {"read_text", "write_text", "write_bytes", "hardlink_to", "symlink_to", "rglob"}
PATH_CALLS_ALONE = {
    "read_bytes", "exists", "is_file", "is_dir", "is_symlink", "iterdir", "unlink", "rmdir", "touch", "mkdir",
    "lstat",
}  # fmt: skip
"""Of ``pathlib.Path``; the latter where they are called without arguments by position."""
DISK_EXCEPTIONS = {
    ("fedq.config", "is_file"): "finds fedq.toml, before anything else is known",
    ("fedq.cli.call", "open"): "/dev/null in the place of a closed standard output",
    ("fedq.cli.load", "is_file"): "the user's own source file, which Python's import then reads",
    ("fedq.device.home", "exists"): "whether the queue root is there; to become a call of queue.pair",
    ("fedq.device.wire", "fcntl"): "seals of anonymous memory",
    ("fedq.device.wire", "ftruncate"): "the size of anonymous memory",
    ("fedq.local", "shutil"): "the private temporary root of a VirtualWorker, and its end",
    ("fedq.local", "mkdtemp"): "as above",
}
CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "ctime", "localtime", "gmtime"}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


@cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text("utf-8"))


def names_of(node, module):
    """The modules an import statement names; ``from fedq.plan import spec`` is ``fedq.plan.spec``."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    assert node.level == 0, f"{module}: a relative import"
    return [full if (full := f"{node.module}.{a.name}") in MODULES else str(node.module) for a in node.names]


def imports(module):
    """Everything it ever imports, also in functions and for type checkers."""
    return {
        n
        for node in ast.walk(tree_of(module))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for n in names_of(node, module)
    }


@cache
def at_once(module):
    """What it imports when it is imported: nothing in functions, nothing for type checkers only."""
    found, rest = set(), list(tree_of(module).body)
    while rest:
        node = rest.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(names_of(node, module))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            rest += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            rest += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return frozenset(found)


def packages_of(module):
    """A module and the packages whose ``__init__`` runs before it."""
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


@cache
def loads(module):
    """All modules, of fedq and others, that importing this one loads."""
    seen, rest = set(), [module]
    while rest:
        for name in packages_of(rest.pop()) - seen:
            seen.add(name)
            rest += at_once(name) if name in MODULES else ()
    return seen


def layer_of(module):
    room = module.split(".")[1] if "." in module else None
    return next((i for i, rooms in enumerate(LAYERS) if room in rooms), None)


def is_fedq(name):
    return name == "fedq" or name.startswith("fedq.")


def calls(module):
    """Every call in a module, as ``(base, name, line, arguments)``: ``os.open(a, b)`` is ``("os", "open", 3, 2)``."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(name):
                    yield "", name, node.lineno, len(node.args)
                case ast.Attribute(ast.Name(base), name):
                    yield base, name, node.lineno, len(node.args)
                case ast.Attribute(_, name):
                    yield "?", name, node.lineno, len(node.args)


def touches_disk(base, name, arguments):
    return (
        (base == "" and name == "open")
        or (base == "os" and name in FILE_CALLS)
        or (base == "tempfile" and name in TEMP_CALLS)
        or (base not in ("", "os") and name in PATH_CALLS)
        or (base not in ("", "os", "fs") and name in PATH_CALLS_ALONE and not arguments)
    )


every_module = pytest.mark.parametrize("module", list(MODULES))


@every_module
def test_every_module_has_a_layer(module):
    assert module == "fedq" or layer_of(module) is not None, f"{module} stands in no room of the house"


@every_module
def test_imports_go_downward(module):
    if module == "fedq":
        return
    mine, room = layer_of(module), module.split(".")[1]
    for name in sorted(filter(is_fedq, imports(module))):
        if name == "fedq":  # for __version__
            continue
        assert name.split(".")[1] == room or layer_of(name) < mine or mine == layer_of(name) == 0, (
            f"{module} imports {name}"
        )


def test_client_and_device_never_load_each_other():
    for module in MODULES:
        for a, b in (("fedq.client", "fedq.device"), ("fedq.device", "fedq.client")):
            if module.startswith(a):
                assert not [n for n in loads(module) | imports(module) if n == b or n.startswith(b + ".")], module


@every_module
def test_torch_is_loaded_only_by_those_who_need_it(module):
    if module not in WITH_TORCH:
        assert not {"torch", "sympy"} & loads(module), f"{module} loads torch; import it in the function that needs it"


def disk_uses(module):
    """What a module has to do with the disk: name -> line."""
    uses = {n.split(".")[0]: 0 for n in imports(module)}
    uses = {name: line for name, line in uses.items() if name in FILE_MODULES}
    return uses | {name: line for base, name, line, count in calls(module) if touches_disk(base, name, count)}


@every_module
def test_only_the_rim_touches_the_disk(module):
    found = {} if module.startswith(AT_THE_RIM) else disk_uses(module)
    odd = [f"{module}:{line}: {name}" for name, line in found.items() if (module, name) not in DISK_EXCEPTIONS]
    assert not odd, f"{odd}: let fedq.fs do it"


def test_no_exception_from_the_rule_on_disks_outlives_its_use():
    for module, name in DISK_EXCEPTIONS:
        assert module not in MODULES or name in disk_uses(module), (module, name)


@every_module
def test_only_fs_reads_the_clock(module):
    if module in ("fedq.fs.steps", "fedq.ids"):  # a fresh id holds the milliseconds
        return
    for base, name, line, _ in calls(module):
        assert not (base in ("time", "datetime", "date") and name in CLOCKS), f"{module}:{line}: {base}.{name}()"


@every_module
def test_only_the_command_line_prints(module):
    if module.startswith("fedq.cli"):
        return
    assert "typer" not in {n.split(".")[0] for n in imports(module)}, module
    for base, name, line, _ in calls(module):
        assert not (base == "" and name in ("print", "input")), f"{module}:{line}: {name}()"
    assert not {"sys.stdout", "sys.stderr"} & {
        ast.unparse(n) for n in ast.walk(tree_of(module)) if isinstance(n, ast.Attribute)
    }


@every_module
def test_nothing_is_unpickled_or_evaluated(module):
    assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"} & {
        n.split(".")[0] for n in imports(module)
    }
    for base, name, line, _ in calls(module):
        assert not (base == "torch" and name in ("load", "save")), f"{module}:{line}: torch.{name}()"
        assert not (base == "" and name == "eval"), f"{module}:{line}: eval()"
        assert not (base == "" and name == "exec") or module.startswith("fedq.plan."), f"{module}:{line}: exec()"


def test_the_lists_name_modules_that_exist():
    planned = {"fedq.plan.trace", "fedq.plan.preflight", "fedq.plan.replay", "fedq.plan.kernels", "fedq.plan.plan",
               "fedq.client.pointers", "fedq.client.hook", "fedq.local"}  # fmt: skip
    assert MODULES.keys() | planned >= WITH_TORCH.union(AT_THE_RIM)


def test_the_data_folders_are_no_packages():
    for folder in ("queue", "devices"):
        assert not list((ROOT / folder).rglob("__init__.py"))
    code = "import queue, torch; print(queue.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(sys.base_prefix)
