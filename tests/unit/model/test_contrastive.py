import pytest
import torch

from model.config import TowerConfig
from model.contrastive import ContrastiveTowers
from model.vision import load_vision

TOWER = TowerConfig(
    image_size=16, patch_size=8, vision_width=16, vision_layers=1, vision_heads=2, text_width=16,
    text_layers=2, embed_dim=8, max_text_tokens=6,
)  # fmt: skip


def towers():
    torch.manual_seed(0)
    return ContrastiveTowers(TOWER, vocab_size=20)


def batch(size=4):
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(6) < torch.randint(2, 7, (size, 1), generator=generator)
    images = torch.randn(size, 3, 16, 16, generator=generator)
    return images, torch.randint(0, 20, (size, 6), generator=generator), mask


def test_the_loss_equals_a_naive_info_nce():
    model = towers()
    images, ids, mask = batch()
    output = model(images, ids, mask)
    image, text = model.embed_images(images), model.embed_text(ids, mask)
    scores = model.pairs.log_scale.exp() * torch.stack(
        [torch.stack([a @ b for b in text]) for a in image]
    )
    expected = 0.0
    for i in range(4):
        expected -= scores[i, i] - scores[i].exp().sum().log()
        expected -= scores[i, i] - scores[:, i].exp().sum().log()
    torch.testing.assert_close(output.loss, expected.squeeze() / 8, atol=1e-5, rtol=1e-5)
    assert 0 <= float(output.accuracy) <= 1


def test_the_sigmoid_form_equals_its_formula():
    torch.manual_seed(0)
    model = ContrastiveTowers(TOWER, vocab_size=20, form="sigmoid")
    images, ids, mask = batch()
    image, text = model.embed_images(images), model.embed_text(ids, mask)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            score = 10 * image[i] @ text[j] - 10
            expected -= torch.sigmoid(score if i == j else -score).log()
    torch.testing.assert_close(model(images, ids, mask).loss, expected / 4, atol=1e-5, rtol=1e-5)


def test_padding_tokens_do_not_matter():
    model = towers().eval()
    _, ids, mask = batch()
    other = torch.where(mask, ids, 7)
    expected = model.embed_text(ids, mask)
    torch.testing.assert_close(model.embed_text(other, mask), expected, atol=1e-6, rtol=0)


def test_text_layers_start_different():
    first, second = towers().text.encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert not torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)


def test_a_saved_image_tower_gives_the_same_patches_as_a_frozen_encoder(tmp_path):
    model = towers().eval()
    model.save_vision(tmp_path)
    vision = load_vision(str(tmp_path))
    images = batch()[0]
    expected = model.vision(images).last_hidden_state[:, 1:]
    assert torch.equal(vision(images), expected.detach())
    assert vision.mean == vision.std == (0.5, 0.5, 0.5)


def test_a_saved_resnet_tower_gives_patches_of_8_pixels(tmp_path):
    tower = TOWER.model_copy(update={"vision_kind": "resnet", "image_size": 32})
    model = ContrastiveTowers(tower, vocab_size=20)
    images = torch.randn(4, 3, 32, 32)
    model(images, *batch()[1:]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_vision(tmp_path)
    vision = load_vision(str(tmp_path))
    assert (vision.image_size, vision.num_patches, vision.width) == (32, 16, 16)
    images = images.contiguous(memory_format=torch.channels_last)  # as the encoder does: equal bits
    expected = model.eval().vision(images).last_hidden_state.flatten(2).transpose(1, 2)
    assert torch.equal(vision(images), expected.detach())


def test_a_resnet_tower_with_other_patches_is_refused():
    with pytest.raises(ValueError, match="patch_size = 4, but a resnet tower has patches of 8"):
        TowerConfig(vision_kind="resnet", patch_size=4)


def test_a_text_longer_than_the_position_table_is_refused():
    images, ids, mask = batch()
    long = torch.cat([ids, ids], 1), torch.cat([mask, mask], 1)
    with pytest.raises(ValueError, match="12 text tokens, but max_text_tokens = 6"):
        towers()(images, *long)
