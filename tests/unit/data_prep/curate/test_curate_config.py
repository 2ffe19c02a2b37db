import pytest
from pydantic import ValidationError

from data_prep.curate.config import CurateConfig


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"width": {"min": 3, "max": 2}}, "min is not above max, and 3 is above 2"),
        ({"characters": {"least": 2}}, "Extra inputs are not permitted"),
        ({"columns": {"similarity": {"min": float("nan")}}}, "finite number"),
        ({"hash_distance": 8}, "less than or equal to 7"),
        ({"same_text": 0}, "greater than or equal to 1"),
        ({"name": "../curated"}, "match pattern"),
    ],
)
def test_what_cannot_be_is_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        CurateConfig.model_validate(values)
