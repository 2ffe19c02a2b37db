"""The make targets that README and CONTRIBUTING promise."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = {"install", "demo", "openclipart", "test", "test-fast", "lint", "clean", "help"}

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_help_is_the_default_and_lists_every_target():
    assert make() == make("help")
    assert set(re.findall(r"^  make (\S+)", make("help"), re.MULTILINE)) == TARGETS


@pytest.mark.parametrize("target", sorted(TARGETS - {"help", "clean", "install"}))
def test_targets_use_the_environment_of_the_checkout(target):
    commands = make("--dry-run", target).splitlines()
    assert commands[-1].startswith(".venv/bin/")


def test_test_leaves_out_only_what_needs_a_gpu():
    assert 'pytest -m "not gpu"' in make("--dry-run", "test")
    assert '-m "not gpu and not cluster and not end_to_end"' in make("--dry-run", "test-fast")


def test_constraints_pin_every_dependency_without_hosts_or_local_versions():
    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.]+", line), line
            name, _, version = line.partition("==")
            pins[name] = version
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra), "setuptools"]
    # An extra may hold another one, by the project's own name.
    names = {re.match(r"[\w-]+", name)[0] for name in wanted} - {project["name"]}
    assert names <= set(pins)
