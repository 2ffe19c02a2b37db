"""8-bit moments by blocks of the logical parameter: what is quantised, what the update computes."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.blocks import lay_out
from pipeline.engine.blockwise import BlockwiseOptimizer
from pipeline.engine.fragments import BLOCK, Fragment


def optimizer_over(key, fragments, *, rule="adam", bits=8, kept=None, **settings):
    optimizer = BlockwiseOptimizer(
        [{"params": [key]}], rule, lr=1e-2, betas=(0.9, 0.98), min_8bit_numel=1, **settings
    )
    optimizer.place([key], fragments, [bits], kept)
    return optimizer


def random_steps(optimizer, key, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        key.grad = torch.randn(key.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("rule", ["adam", "lion"])
def test_aligned_blocks_are_bitsandbytes_own_to_the_bit(rule):
    start = torch.randn(8 * BLOCK)
    ours = torch.nn.Parameter(start.clone())
    optimizer = optimizer_over(ours, [Fragment("w", len(start), 0, len(start), 0, 0)], rule=rule)
    theirs = torch.nn.Parameter(start.clone())
    kind = {"adam": bnb.optim.AdamW8bit, "lion": bnb.optim.Lion8bit}[rule]
    peer = kind([theirs], lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0, min_8bit_size=1)
    random_steps(optimizer, ours, 5, 1)
    random_steps(peer, theirs, 5, 1)
    assert torch.equal(ours, theirs)
    assert torch.equal(optimizer.state[ours]["codes1"], peer.state[theirs]["state1"])
    assert torch.equal(optimizer.state[ours]["absmax1"], peer.state[theirs]["absmax1"])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_exact_moments_are_adamw_in_double_precision(decay):
    start = torch.randn(1000)
    ours, reference = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    fragments = [Fragment("a", 400, 0, 400, 0, 0), Fragment("b", 600, 0, 600, 0, 400)]
    optimizer = optimizer_over(ours, fragments, bits=32)
    optimizer.param_groups[0]["weight_decay"] = decay
    peer = torch.optim.AdamW([reference], lr=1e-2, betas=(0.9, 0.98), weight_decay=decay)
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        gradient = torch.randn(1000, generator=generator)
        ours.grad, reference.grad = gradient, gradient.double()
        optimizer.step()
        peer.step()
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6)
    assert optimizer.state[ours]["codes1"].numel() == 0


@settings(max_examples=60)
@given(st.data())
def test_every_element_has_one_place_and_no_cut_block_is_quantised(data):
    total = data.draw(st.integers(1, 5000))
    start = data.draw(st.integers(0, total - 1))
    numel = data.draw(st.integers(1, total - start))
    kept = data.draw(st.sets(st.integers(0, total // BLOCK), max_size=4))
    layout = lay_out([Fragment("w", total, start, numel, 0, 7)], 8, 1, {"w": kept})
    covered = []
    for piece in layout.pieces:
        part = piece.fragment
        covered += range(part.start, part.start + part.numel)
        assert part.offset == 7 + part.start - start
        stop = part.start + part.numel
        if piece.bits == 8:
            assert part.start % BLOCK == 0
            assert stop % BLOCK == 0 or stop == total
            assert not kept & set(range(part.start // BLOCK, -(-stop // BLOCK)))
        else:
            blocks = {part.start // BLOCK, (stop - 1) // BLOCK}
            for block in blocks - kept:
                end = min((block + 1) * BLOCK, total)
                assert block * BLOCK < start or end > start + numel, "a whole block in 32 bits"
    assert covered == list(range(start, start + numel))
    assert layout.num_codes + layout.num_exact == numel


def test_a_block_ending_with_its_parameter_ends_the_call_too():
    fragments = [Fragment("a", 300, 0, 300, 0, 0), Fragment("b", 512, 0, 512, 0, 300)]
    layout = lay_out(fragments, 8, 1, {})
    assert layout.quantised_runs() == [(0, 0, 0, 300), (300, 300, 2, 512)]
    aligned = [Fragment("a", 256, 0, 256, 0, 0), Fragment("b", 512, 0, 512, 0, 256)]
    assert lay_out(aligned, 8, 1, {}).quantised_runs() == [(0, 0, 0, 768)]


def test_a_parameter_below_the_smallest_size_keeps_32_bits():
    layout = lay_out([Fragment("w", 4095, 0, 4095, 0, 0)], 8, 4096, {})
    assert layout.num_codes == 0 and layout.num_exact == 4095


def test_a_closure_is_refused():
    key = torch.nn.Parameter(torch.zeros(4))
    optimizer = optimizer_over(key, [Fragment("w", 4, 0, 4, 0, 0)])
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: None)


def test_its_own_state_comes_back_to_the_bit():
    def fresh():
        key = torch.nn.Parameter(torch.arange(600.0))
        return key, optimizer_over(key, [Fragment("w", 600, 0, 600, 0, 0)])

    key, optimizer = fresh()
    random_steps(optimizer, key, 3, 1)
    other_key, other = fresh()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state[other_key]["codes1"].dtype == torch.uint8
    other_key.data.copy_(key.data)
    random_steps(optimizer, key, 2, 5)
    random_steps(other, other_key, 2, 5)
    assert torch.equal(key, other_key)


@pytest.mark.parametrize("rule", ["adam", "lion"])
@pytest.mark.parametrize("bits", [8, 32])
def test_more_elements_than_a_call_may_be_given_are_updated_in_parts(rule, bits, monkeypatch):
    start = torch.randn(12 * BLOCK + 100)
    # 5 blocks that follow one another, a parameter that ends within a block, and padding.
    fragments = [
        Fragment("a", 5 * BLOCK, 0, 5 * BLOCK, 0, 3),
        Fragment("b", 6 * BLOCK + 17, 0, 6 * BLOCK + 17, 0, 3 + 5 * BLOCK),
    ]
    ended = []
    for largest in (2**30, 2 * BLOCK):
        monkeypatch.setattr("pipeline.engine.blocks.LARGEST_RUN", largest)
        key = torch.nn.Parameter(start.clone())
        optimizer = optimizer_over(key, fragments, rule=rule, bits=bits)
        runs = optimizer.layouts[key].quantised_runs()
        assert all(numel <= largest for *_, numel in runs)
        assert sum(numel for *_, numel in runs) == (0 if bits == 32 else 11 * BLOCK + 17)
        random_steps(optimizer, key, 4, 2)
        ended.append(
            [key.detach(), *(t for t in optimizer.state[key].values() if torch.is_tensor(t))]
        )
    assert not torch.equal(ended[0][0], start)
    for one, other in zip(*ended, strict=True):
        assert torch.equal(one, other)
