"""Every sweep file that ships loads; a new one is found by itself."""

from pathlib import Path

import pytest

from segray.config import dump, load_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"
FILES = sorted(SWEEPS.rglob("*.yaml"))


def test_sweeps_are_shipped() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SWEEPS)))
def test_a_shipped_sweep_loads_and_round_trips(file: Path, tmp_path: Path) -> None:
    config = load_sweep(file, env={"CITYSCAPES_ROOT": str(tmp_path), "IMAGES_ROOT": str(tmp_path)})
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_sweep(copy, env={}) == config


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SWEEPS)))
def test_a_shipped_sweep_opens_with_its_schema_and_a_header(file: Path) -> None:
    first, second = file.read_text(encoding="utf-8").splitlines()[:2]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert (file.parent / "schema.json").is_file()
    assert second.startswith("# ")
    assert second.strip("# ")
