import pytest
import torch
from torch import nn

from model.batch_norm import BatchNorm2d, keep_statistics
from model.config import TowerConfig
from model.contrastive import ContrastiveTowers
from model.vision import load_vision

RESNET = TowerConfig(
    vision_kind="resnet", image_size=32, vision_width=16, vision_layers=2, vision_heads=2, text_width=16,
    text_layers=1, embed_dim=8, max_text_tokens=6,
)  # fmt: skip


def norms(dtype):
    """One of PyTorch's in fp64 and ours with weights in a precision, with the same values."""
    torch.manual_seed(0)
    reference = nn.BatchNorm2d(8)
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    ours = keep_statistics(nn.Sequential(nn.BatchNorm2d(8)))[0]
    ours.load_state_dict(reference.state_dict())
    for parameter in ours.parameters():
        parameter.data = parameter.data.to(dtype)
    with torch.no_grad():
        reference.weight.copy_(ours.weight)
        reference.bias.copy_(ours.bias)
    return reference.double(), ours


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_statistics_are_those_of_fp64_whatever_the_weights_are(dtype):
    reference, ours = norms(dtype)
    assert isinstance(ours, BatchNorm2d)
    rounding = torch.finfo(dtype).eps
    for training in (True, True, False):
        x = (3 * torch.randn(4, 8, 5, 5) + 1).to(dtype)
        other = x.double().requires_grad_()
        x.requires_grad_()
        expected, found = (m.train(training)(i) for m, i in ((reference, other), (ours, x)))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=4 * rounding)
        weights = torch.randn(4, 8, 5, 5).to(dtype)
        for parameter in (*reference.parameters(), *ours.parameters()):
            parameter.grad = None
        (expected * weights).sum().backward()
        (found * weights).sum().backward()
        assert ours.weight.grad.dtype == dtype
        for name, parameter in ours.named_parameters():
            wanted = reference.get_parameter(name).grad
            torch.testing.assert_close(
                parameter.grad.double(), wanted, rtol=0.05, atol=40 * rounding
            )
        torch.testing.assert_close(x.grad.double(), other.grad, rtol=0.05, atol=8 * rounding)
    assert ours.running_mean.dtype == torch.float32
    for name in ("running_mean", "running_var"):
        expected = reference.get_buffer(name)
        torch.testing.assert_close(ours.get_buffer(name).double(), expected, rtol=1e-5, atol=1e-5)
    assert ours.num_batches_tracked == reference.num_batches_tracked == 2


def test_a_resnet_tower_trains_in_bf16_and_is_read_in_any_precision(tmp_path):
    """As DeepSpeed leaves it: parameters in bf16, buffers in fp32."""
    torch.manual_seed(0)
    model = ContrastiveTowers(RESNET, vocab_size=20).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    images, ids = torch.randn(4, 3, 32, 32), torch.randint(0, 20, (4, 6))
    model(images, ids, torch.ones(4, 6, dtype=torch.bool)).loss.backward()
    assert all(p.grad is not None for p in model.vision.parameters())
    means = [b for n, b in model.named_buffers() if n.endswith("running_mean")]
    assert means and all(b.dtype == torch.float32 and b.any() for b in means)
    model.save_vision(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        tower = load_vision(str(tmp_path), dtype=dtype).eval()
        features = tower(images.to(dtype))
        assert features.dtype == dtype and features.isfinite().all()
