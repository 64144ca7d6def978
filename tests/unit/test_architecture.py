"""The arrows of docs and design: who may import whom, who alone uses a package, who prints, who is documented."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for part in ("runner", "image_builder", "infra") for path in (ROOT / part).rglob("*.py"))

# A package, and the only modules that may import it (or what lies under it).
HOMES = {
    "boto3": ["runner.aws", "image_builder.fetch_data"],  # fetch_data runs on the machine that is built
    # A rehearsal answers by botocore's model of a service.
    "botocore": ["runner.aws", "image_builder.fetch_data", "runner.rehearsal"],
    "paramiko": ["runner.transport.ssh"],
    "dask": ["runner.dask", "runner.workers.dask"],
    "distributed": ["runner.dask", "runner.workers.dask"],
    "dask_cloudprovider": ["runner.dask"],
    "cryptography": ["runner.dask.certificates", "runner.transport.ssh"],
    "asyncssh": ["runner.rehearsal"],
    "moto": ["runner.rehearsal"],
    "rich": ["runner.console", "image_builder.view"],
    "watchfiles": ["runner.inbox"],
    "yaml": ["runner.yaml_lines", "runner.reference", "image_builder.documents", "runner.rehearsal.awstoe"],
    "alembic": ["runner.migrate", "runner.migrations"],
    "rampwf": ["runner.kit_probe"],
    "pulumi": ["infra"],
    "pulumi_aws": ["infra"],
    "invoke": ["runner.front_door", "runner.tasks", "runner.dask.tasks", "image_builder.tasks", "infra.tasks"],
    "requests": [],
}
# Nothing of ours, or nothing but these, is imported by the modules at the bottom.
BOTTOM: dict[str, set[str]] = {
    "runner.states": set(),
    "runner.errors": set(),
    "runner.processes": set(),
    "runner.traceback_text": set(),
    "runner.kit_probe": set(),
    "runner.stack": set(),
    "runner.schema": set(),
    "runner.supervise": set(),
    "runner.records": {"runner.states"},
    "runner.retry": {"runner.states"},
    "runner.yaml_lines": {"runner.errors"},
    "runner.config_types": set(),
    "runner.config_image": {"runner.config_types"},
    "runner.config_infra": {"runner.config_types"},
    "runner.config_worker": {"runner.config_types"},
    "runner.config_cluster": {"runner.config_types"},
    "runner.config_dask": {"runner.config_cluster", "runner.config_types", "runner.config_worker"},
    # config_file only inside load_config, the one way in
    "runner.config": {
        "runner.config_dask",
        "runner.config_file",
        "runner.config_image",
        "runner.config_infra",
        "runner.config_types",
        "runner.config_worker",
    },
    "runner.config_file": {
        "runner.config",
        "runner.config_image",
        "runner.config_infra",
        "runner.config_types",
        "runner.config_worker",
        "runner.errors",
        "runner.yaml_lines",
    },
    "runner.layout": {"runner.config", "runner.errors"},
    "runner.archive": {"runner.errors"},
    "runner.transfer": {"runner.archive", "runner.errors"},
    "runner.transport.base": {"runner.errors"},
    "runner.watch": set(),
    "runner.watch_frames": {"runner.errors", "runner.transport.base"},
    "runner.workers.base": {"runner.states", "runner.errors"},
}
ABOVE_WORKERS = {"dispatcher", "store", "life", "event", "database", "schema", "migrate", "migrations", "console"}
ABOVE_WORKERS |= {"inbox", "status", "scores", "new_event"}
OURS = {"runner", "infra", "image_builder", "tasks", "tests"}
FRONT_DOOR = {"runner.front_door", "runner.tasks", "runner.dask.tasks", "image_builder.tasks", "infra.tasks"}
PRINTERS = {"runner.console", "image_builder.view", *FRONT_DOOR}
STANDARD_LIBRARY_ONLY = ["runner.stack", "runner.states", "runner.errors", "runner.retry", "runner.traceback_text"]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
each_module = pytest.mark.parametrize("module", MODULES)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> Iterator[str]:
    """Yield every module that a module imports, anywhere in it."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports do not say where they lead; write the whole name"
            base = node.module or ""
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def is_within(module: str, homes: list[str] | set[str]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in OURS}


def test_modules_are_found() -> None:
    expected = {"runner.config", "runner.workers.base", "runner.dispatcher", "image_builder.recipe", "infra.program"}
    assert expected <= MODULES.keys()


@each_module
def test_runner_imports_nothing_from_the_other_parts(module: str) -> None:
    if is_within(module, {"runner"}):
        assert {name for name in ours(module) if not name.startswith("runner")} == set()


@each_module
def test_images_are_built_without_what_runs_events(module: str) -> None:
    if is_within(module, {"image_builder"}) and module not in FRONT_DOOR:
        strangers = {"infra", "tasks", "tests", "runner.workers", "runner.dispatcher", "runner.life", "runner.event"}
        assert {name for name in ours(module) if is_within(name, strangers)} == set()


@each_module
def test_the_stack_is_declared_without_what_runs_events(module: str) -> None:
    if is_within(module, {"infra"}) and module not in {
        "infra.automation",
        "infra.pending",
        "infra.remains",
        *FRONT_DOOR,
    }:
        allowed = {"infra", "image_builder", "runner.config", "runner.stack", "runner.errors"}
        allowed |= {"runner.config_image", "runner.config_infra", "runner.aws.tags"}
        assert {name for name in ours(module) if not is_within(name, allowed)} == set()


@each_module
def test_packages_have_one_home(module: str) -> None:
    strangers = {
        name
        for name in imports(module)
        if name.split(".")[0] in HOMES and not is_within(module, HOMES[name.split(".")[0]])
    }
    assert strangers == set()


@each_module
def test_the_bottom_imports_only_what_lies_below(module: str) -> None:
    if module in BOTTOM:
        assert ours(module) <= BOTTOM[module]


@each_module
def test_workers_do_not_know_who_calls_them(module: str) -> None:
    if is_within(module, {"runner.workers", "runner.transport", "runner.aws", "runner.conda_env"}):
        assert {name for name in ours(module) if is_within(name, {f"runner.{part}" for part in ABOVE_WORKERS})} == set()


@each_module
def test_transport_and_aws_do_not_know_the_workers(module: str) -> None:
    if is_within(module, {"runner.transport", "runner.aws"}):
        assert {name for name in ours(module) if is_within(name, {"runner.workers"})} == set()


@each_module
def test_built_in_workers_are_imported_only_when_an_event_uses_them(module: str) -> None:
    built_in = {name for name in MODULES if name.startswith("runner.workers.") and name != "runner.workers.base"}
    if not is_within(module, {"runner.workers", "runner.conda_env", "runner.rehearsal"}):
        assert ours(module) & built_in == set()


@each_module
def test_rehearsal_is_for_the_front_door_and_tests(module: str) -> None:
    if not is_within(module, {"runner.rehearsal", "image_builder.emulated", *FRONT_DOOR}):
        assert {name for name in ours(module) if is_within(name, {"runner.rehearsal", "runner.testing"})} == set()


@each_module
def test_only_the_console_prints(module: str) -> None:
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    printing = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert module in PRINTERS or printing == []


@pytest.mark.parametrize("module", [name for name in STANDARD_LIBRARY_ONLY if name in MODULES])
def test_needs_only_the_standard_library(module: str) -> None:
    top = {name.split(".")[0] for name in imports(module)} - {"runner"}
    assert top <= sys.stdlib_module_names


@each_module
def test_import_cycles(module: str) -> None:
    """Only config.py and config_file.py know each other, and the former only once it is called."""

    def reach(start: str, seen: set[str]) -> set[str]:
        for name in ours(start) & MODULES.keys():
            if name not in seen and {start, name} != {"runner.config", "runner.config_file"}:
                reach(name, seen | {start})
                seen.add(name)
        return seen

    assert module not in reach(module, set())


def undocumented(tree: ast.AST, prefix: str) -> Iterator[str]:
    """Yield the public names without a docstring, those inside functions and private classes left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{prefix}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node, f"{prefix}.{node.name}")


@each_module
def test_public_names_have_docstrings(module: str) -> None:
    tree = tree_of(module)
    assert list(undocumented(tree, module)) == []
    is_empty_package = MODULES[module].name == "__init__.py" and not tree.body
    assert is_empty_package or ast.get_docstring(tree), f"{module} does not say what it is for"


@each_module
def test_commands_are_never_strings_for_a_shell(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            assert not any(
                keyword.arg == "shell" and getattr(keyword.value, "value", True) for keyword in node.keywords
            ), f"{module}:{node.lineno}: give a list"
            called = ast.unparse(node.func)
            assert called not in {"os.system", "os.popen", "subprocess.getoutput"}, f"{module}:{node.lineno}"
