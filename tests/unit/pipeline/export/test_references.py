"""Towers that an export names instead of holding them."""

import pytest

from data_prep.errors import ConfigError
from model.identity import frozen_identity
from pipeline.export.references import find_references
from tests.unit.pipeline.export.cases import opened


@pytest.fixture
def trained(trained_root):
    return opened(trained_root)


def test_both_towers_are_named_by_path_and_sum(trained, trained_root):
    found = find_references(trained)
    assert found == {
        part: {
            "path": str(trained_root / part),
            "sha256": frozen_identity(str(trained_root / part)),
        }
        for part in ("vision", "language")
    }


def test_towers_that_are_no_folders_are_refused_together(trained):
    model = trained.config.model
    paths = {"vision": "efficientnet_lite0", "language": "tiny.gguf"}
    towers = {p: getattr(model, p).model_copy(update={"path": path}) for p, path in paths.items()}
    model = model.model_copy(update=towers)
    trained.config = trained.config.model_copy(update={"model": model})
    with pytest.raises(ConfigError, match="is a folder of transformers") as raised:
        find_references(trained)
    assert [p.key for p in raised.value.problems] == ["model.vision.path", "model.language.path"]
    assert {p.remedy for p in raised.value.problems} == {"export with --towers include"}


def test_a_tower_that_was_trained_is_refused(trained):
    trained.objective.model.language.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    with pytest.raises(ConfigError, match="1 weights were trained, e.g. .*mlp.up_proj") as raised:
        find_references(trained)
    assert [p.key for p in raised.value.problems] == ["model.language.path"]
