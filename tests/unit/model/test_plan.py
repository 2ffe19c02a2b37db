import pytest
import torch

from data_prep.errors import ConfigError
from model.build import plan_flamingo
from model.config import ModelConfig
from model.plan import compute_plan
from pipeline.commands.show_model import format_summary, show_model
from pipeline.config import load_config
from tests.helpers.command import exit_code
from tests.unit.model.tiny import FAMILIES, SIZES, tiny_flamingo

T = 8
VISION = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
RESAMPLER = {"depth": 1, "num_latents": 3, "num_heads": 2, "head_dim": 8}


def plan(kind="llama", language=None, losses=None, num_tokens=T, dtype=torch.float32, **sections):
    config = ModelConfig(
        vision={"path": "-", "architecture": VISION},
        language={"path": "-", "architecture": {"model_type": kind, **SIZES, **FAMILIES[kind]}}
        | (language or {}),
        resampler=RESAMPLER,
        **sections,
    )
    model = plan_flamingo(config, **({"losses": losses} if losses else {}))
    return compute_plan(model.to(dtype), num_tokens=num_tokens)


def test_parameters_are_those_of_a_model_that_was_built():
    sections = {
        "cross_attention": {"every": 1},
        "experts": {"num_experts": 4, "top_k": 2, "every": 2, "shared_expert": True},
    }
    built = tiny_flamingo(losses={"contrastive": 1.0}, **sections)
    table = compute_plan(built.to("meta"), num_tokens=T)
    groups = {
        "image tower": "media_encoders.image.tower.",
        "image resampler": "media_encoders.image.resampler.",
        "new tokens": "new_tokens.",
        "language model": "language.",
        "contrastive head": "contrastive.",
    }
    for name, prefix in groups.items():
        found = [p for n, p in built.named_parameters() if n.startswith(prefix)]
        trainable = sum(p.numel() for p in found if p.requires_grad)
        part = table.part(name)
        assert (part.trainable, part.frozen) == (
            trainable,
            sum(p.numel() for p in found) - trainable,
        )
    blocks = table.part("cross-attention"), table.part("feed-forwards"), table.part("experts")
    assert sum(b.trainable for b in blocks) == sum(
        p.numel() for p in built.gated_blocks.parameters()
    )
    # Block 1 alone has experts: 4 and the shared one, a router, a layer norm and a gate.
    assert table.part("experts").trainable == 5 * 3 * 32 * 64 + 4 * 32 + 2 * 32 + 1
    assert table.total.trainable + table.total.frozen == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("form", ["swiglu", "gelu"])
def test_flops_of_a_dense_feed_forward_are_those_of_its_matrices(form):
    part = plan(cross_attention={"ff_mult": 2, "feed_forward": form}).part("feed-forwards")
    matrices = 3 if form == "swiglu" else 2
    forward = 3 * 2 * matrices * 32 * 64  # three blocks; two operations a weight
    assert part.forward_flops == forward
    assert part.backward_flops == 2 * forward  # for the inputs and for the weights


def test_flops_of_cross_attention_follow_from_its_sizes():
    part = plan(cross_attention={"num_heads": 2, "head_dim": 8, "every": 3}).part("cross-attention")
    query_and_output, keys_values = 2 * 2 * 32 * 16, 2 * 24 * 32 * 3 / T
    products = 2 * 3 * 16  # of a token with three latents
    assert part.forward_flops == pytest.approx(query_and_output + keys_values + 2 * products)
    backward = 2 * (query_and_output + keys_values) + 5 * products
    assert part.backward_flops == pytest.approx(backward)


def test_a_token_computes_in_as_many_experts_as_it_takes():
    sections = {"cross_attention": {"ff_mult": 2}}
    expected = 2 * 2 * 3 * 32 * 64 + 2 * 32 * 8
    experts = {"num_experts": 8, "top_k": 2, "every": 3}
    part = plan(experts=experts, **sections).part("experts")
    assert (part.forward_flops, part.backward_flops) == (expected, 2 * expected)


def test_a_frozen_tower_has_no_backward_and_keeps_nothing():
    tower = plan().part("image tower")
    assert tower.forward_flops > 0
    assert tower.backward_flops == tower.activation_bytes == 0


def test_frozen_layers_cost_one_backward_for_their_inputs_and_none_for_their_weights():
    table = plan(num_tokens=2)
    for forward, backward in table.layer_flops:
        # Three more products of attention, of 32 channels with 2 tokens: 5 where forward has 2.
        assert backward == forward + 3 * 2 * 2 * 32


def test_nothing_is_differentiated_below_the_first_block_without_new_tokens_to_train():
    sections = {"cross_attention": {"first_layer": 1, "every": 2}}
    trained = plan(**sections)
    fixed = plan(language={"train_new_tokens": False}, **sections)
    assert [backward > 0 for _, backward in trained.layer_flops] == [True, True, True]
    assert [backward > 0 for _, backward in fixed.layer_flops] == [False, True, True]
    assert trained.layer_flops[1:] == fixed.layer_flops[1:]
    assert trained.part("language model").activation_bytes > (
        fixed.part("language model").activation_bytes
    )
    assert fixed.part("new tokens").trainable == 0


def test_activations_are_counted_in_bytes_of_their_storages():
    sections = {"cross_attention": {"ff_mult": 2, "feed_forward": "gelu", "every": 3}}
    part = plan(**sections).part("feed-forwards")
    # Input, mean and deviation of the norm, its output, both sides of the activation, the update,
    # its gate as a scalar: fp32. The input is kept by the norm, which is the first to want it.
    floats = T * (32 + 1 + 1 + 32 + 64 + 64)
    assert part.activation_bytes == 4 * floats


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_family_can_be_planned(kind):
    table = plan(kind, dtype=torch.bfloat16)
    assert all(forward > 0 and backward > 0 for forward, backward in table.layer_flops)
    assert len(table.layer_flops) == 3


@pytest.mark.parametrize("preset", ["flamingo_3b", "flamingo_9b_moe", "flamingo_80b"])
def test_presets_of_the_papers_sizes_can_be_looked_at(preset):
    table, summary = show_model(load_config(preset), [8])
    layers, every, billions = {
        "flamingo_3b": (24, 1, (2.5, 3.2)),
        "flamingo_9b_moe": (32, 4, (14, 15)),
        "flamingo_80b": (80, 7, (75, 82)),
    }[preset]
    assert [block.layer for block in table.blocks] == list(range(0, layers, every))
    total = table.total
    assert billions[0] < (total.trainable + total.frozen) / 1e9 < billions[1]
    assert summary["parts"]["total"]["frozen"] == total.frozen
    text = format_summary(summary)
    assert all(part.name in text for part in table.parts)
    assert max(map(len, text.splitlines())) <= 120


def run_cli(monkeypatch, *arguments):
    return exit_code(monkeypatch, "model", "show", *arguments)


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_an_unknown_architecture_is_named_with_a_remedy(monkeypatch, capsys, tower):
    override = f"model.{tower}.architecture={{model_type: nonsense}}"
    assert run_cli(monkeypatch, "flamingo_3b", override) == 2
    message = capsys.readouterr().err
    assert f"model.{tower}.architecture.model_type = 'nonsense'" in message
    assert "Unrecognized model identifier: nonsense" in message
    assert f"or its sizes in model.{tower}.architecture" in message
    assert len(message) < 1000


def test_what_does_not_fit_the_towers_is_told_of_the_whole_model(monkeypatch, capsys):
    assert run_cli(monkeypatch, "flamingo_3b", "model.cross_attention.first_layer=99") == 2
    assert "first_layer = 99, but the language model has 24 layers" in capsys.readouterr().err


def test_counts_that_make_no_sense_are_refused_all_at_once():
    with pytest.raises(ConfigError) as refused:
        show_model(load_config("demo"), [0], num_tokens=2, num_images=3)
    assert [p.key for p in refused.value.problems] == ["--world-size", "--tokens"]
    with pytest.raises(ConfigError, match="--images = 0"):
        show_model(load_config("demo"), [1], num_images=0)


def test_a_row_without_a_token_for_its_image_cannot_be_planned():
    with pytest.raises(ValueError, match="1 images in a row of 0 tokens"):
        plan(num_tokens=0)
