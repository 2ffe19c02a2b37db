import pytest
from pydantic import BaseModel, ValidationError

from data_prep import config as sections
from data_prep.config import IngestConfig, policy
from data_prep.schema import canonical_hash


def make(**changes):
    return IngestConfig(**{"output": "out", "sources": {"a": {"table": "t.tsv"}}, **changes})


def test_every_field_is_described():
    models = [m for m in vars(sections).values() if isinstance(m, type) and m is not BaseModel]
    for model in (m for m in models if issubclass(m, BaseModel)):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_schema_is_the_yaml_key_and_survives_a_round_trip():
    config = make(sources={"a": {"table": "t.tsv", "layout": "cc3m"}})
    assert config.sources["a"].layout == "cc3m"
    assert IngestConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"shard_rows": 0},
        {"typo": 1},
        {"image": {"mode": "stretch"}},
        {"sources": {"../up": {"table": "t"}}},
        {"filter": {"max_aspect_ratio": float("inf")}},
    ],
)
def test_wrong_values_are_refused(changes):
    with pytest.raises(ValidationError):
        make(**changes)


def policy_hash(config, source):
    return canonical_hash(policy(config, source))


def test_policy_hash_changes_with_what_is_stored_and_nothing_else():
    base = policy_hash(make(), "a")
    assert policy_hash(make(image={"quality": 90}), "a") != base
    assert policy_hash(make(shard_rows=7), "a") != base
    assert policy_hash(make(download={"concurrency": 2}, ray={"num_workers": 9}), "a") == base
