import pytest
import torch

from model.identity import frozen_identity
from tests.unit.model.tiny import tiny_vision, tiny_vit


def small_tower():
    """A factory of a vision tower."""
    torch.manual_seed(0)
    return tiny_vision()


def other_tower():
    torch.manual_seed(1)
    return tiny_vision()


def test_the_identity_changes_with_the_weights(tmp_path):
    identities = []
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        torch.manual_seed(seed)
        tiny_vit().save_pretrained(tmp_path / folder)
        identities.append(frozen_identity(str(tmp_path / folder)))
    assert identities[0] == identities[1] != identities[2]


def test_a_folder_without_weights_has_no_identity(tmp_path):
    with pytest.raises(ValueError, match="no weight file .*; save the model there, or correct"):
        frozen_identity(str(tmp_path))


def test_what_a_factory_returns_is_identified_by_its_weights():
    one, again, other = (
        frozen_identity(f"{__name__}:{name}")
        for name in ("small_tower", "small_tower", "other_tower")
    )
    assert one == again and one.startswith(f"factory {__name__}:small_tower ")
    assert one.split()[-1] != other.split()[-1]


def no_tower():
    return torch.nn.Linear(2, 2)


def test_a_factory_that_gives_no_tower_has_no_identity():
    with pytest.raises(ValueError, match="returned a Linear; it must return"):
        frozen_identity(f"{__name__}:no_tower")


def half_tower():
    return small_tower().to(torch.bfloat16)


def zero_tower(dtype=torch.float32):
    tower = small_tower()
    for parameter in tower.parameters():
        parameter.data.zero_()
    return tower.to(dtype)


def zero_half_tower():
    return zero_tower(torch.float16)


def zero_bfloat16_tower():
    return zero_tower(torch.bfloat16)


def test_the_identity_of_a_factory_knows_the_dtype():
    """Zeros have the same bytes in both halves."""
    names = ("small_tower", "half_tower", "zero_half_tower", "zero_bfloat16_tower")
    digests = {frozen_identity(f"{__name__}:{name}").split()[-1] for name in names}
    assert len(digests) == len(names)


def test_a_gguf_file_is_identified_by_its_bytes(tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"one")
    first = frozen_identity(str(file))
    file.write_bytes(b"two")
    assert frozen_identity(str(file)) != first
    with pytest.raises(ValueError, match="no GGUF file at .*missing.gguf'; download it"):
        frozen_identity(str(tmp_path / "missing.gguf"))


def test_a_hub_id_is_its_own_identity():
    assert frozen_identity("someone/model") == "hub id someone/model"
