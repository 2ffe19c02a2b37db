import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

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
    scores = model.logit_scale.exp() * torch.stack(
        [torch.stack([a @ b for b in text]) for a in image]
    )
    expected = 0.0
    for i in range(4):
        expected -= scores[i, i] - scores[i].exp().sum().log()
        expected -= scores[i, i] - scores[:, i].exp().sum().log()
    torch.testing.assert_close(output.loss, expected.squeeze() / 8, atol=1e-5, rtol=1e-5)
    assert 0 <= float(output.accuracy) <= 1


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


def _one_rank(rank, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    from model.experts import router_losses

    model = towers().train()
    part = [t[2 * rank : 2 * rank + 2] for t in batch()]
    loss = model(*part).loss
    loss.backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2
    logits, mask = router_inputs()
    rows = slice(0, 3) if rank == 0 else slice(3, 10)  # uneven on purpose
    weight = torch.eye(4, requires_grad=True)
    losses = torch.stack(router_losses(logits[rows] @ weight, mask[rows], 2))
    losses.sum().backward()
    losses = losses.detach()
    for tensor in (losses, weight.grad):
        dist.all_reduce(tensor)
        tensor /= 2
    if rank == 0:
        gradients = {n: p.grad.numpy() for n, p in model.named_parameters()}
        queue.put((loss.item(), gradients, losses.numpy(), weight.grad.numpy()))
    dist.barrier()
    dist.destroy_process_group()


def router_inputs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(10, 4, generator=generator), torch.arange(10) != 6


@pytest.mark.distributed
def test_two_ranks_give_loss_and_gradients_of_the_joined_batch():
    """InfoNCE, and the router losses over unevenly spread tokens: one start of two processes."""
    import socket

    from model.experts import router_losses

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_one_rank, args=(r, port, queue)) for r in range(2)]
    for process in ranks:
        process.start()
    loss, gradients, router, router_gradient = queue.get(timeout=120)
    for process in ranks:
        process.join(60)

    model = towers().train()
    reference = model(*batch()).loss
    reference.backward()
    assert loss == pytest.approx(reference.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        ours = torch.from_numpy(gradients[name])
        torch.testing.assert_close(ours, parameter.grad, atol=1e-6, rtol=1e-4, msg=name)

    logits, mask = router_inputs()
    weight = torch.eye(4, requires_grad=True)
    losses = torch.stack(router_losses(logits @ weight, mask, 2))
    losses.sum().backward()
    torch.testing.assert_close(torch.from_numpy(router), losses.detach())
    torch.testing.assert_close(torch.from_numpy(router_gradient), weight.grad)
