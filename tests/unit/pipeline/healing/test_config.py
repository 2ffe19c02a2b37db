import pytest
from pydantic import ValidationError

from pipeline.healing.config import HealingConfig


def test_every_field_says_what_it_is():
    assert all(field.description for field in HealingConfig.model_fields.values())


@pytest.mark.parametrize(
    "key, value",
    [
        ("skip_budget", -1),
        ("skip_window", 0),
        ("rollback_budget", -1),
        ("spike_z", -1),
        ("spike_steps", 0),
        ("spike_window", 8),
        ("spike_margin", -1),
        ("hang_seconds", -1),
    ],
)
def test_a_value_out_of_bounds_is_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        HealingConfig(**{key: value})
