"""The code itself: format, lint, types, and the order of the stages."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    ["ruff format --check .", "ruff check .", "mypy", "lint-imports"],
    ids=["format", "lint", "types", "stages"],
)
def test_tools_find_nothing(command):
    name, *arguments = command.split()
    run = subprocess.run([BIN / name, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_stage_contract_is_broken_by_an_import_against_the_flow(tmp_path):
    for name in ("segray", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "segray/data/backwards.py").write_text("import segray.train\n")
    run = subprocess.run(
        [BIN / "lint-imports"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert run.returncode == 1
    assert "segray.data is not allowed to import segray.train" in run.stdout


def test_segray_imports_and_builds_without_torchvision():
    """The package index has a CUDA build of it, which breaks transformers beside CPU torch."""
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import segray.cli, segray.sweep.runner, segray.sweep.engine\n"
        "from segray.models import build_model\n"
        "build_model('segformer', num_classes=7, variant='b0', width=0.1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["sweep", "--help"],
        ["data", "--help"],
        ["data", "cache", "--help"],
        ["bench", "--help"],
        ["patience", "--help"],
        ["compare", "--help"],
        ["predict", "--help"],
        ["submit", "--help"],
    ],
)
def test_importing_segray_and_its_help_load_nothing_large(arguments):
    code = (
        "import contextlib, io, sys, segray\n"
        f"if {arguments}:\n"
        "    import segray.cli\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"        segray.cli.main({arguments})\n"
        "large = ('torch', 'ray', 'optuna', 'wandb', 'transformers', 'numpy', 'segray.config')\n"
        "print([module for module in large if module in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_dependency_is_pinned_in_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    names = [re.match(r"[a-zA-Z0-9-]+", requirement)[0] for requirement in wanted]
    declared = [name for name in names if name != project["name"]]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert len(declared) > 10
    assert [name for name in declared if name.lower() not in pinned] == []
