"""Every suite on a tiny model: what is asked, token for token, and what comes out of it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_prep.errors import ConfigError
from model.contrastive_loss import ContrastiveHead
from pipeline.evaluation.asker import Text
from pipeline.evaluation.contrast import similarities
from pipeline.evaluation.demonstrations import draw_random, nearest
from pipeline.evaluation.layouts.record import Record, Records
from pipeline.evaluation.speed import measure_speed
from pipeline.evaluation.suites import (
    captioning,
    classification,
    fewshot,
    perplexity,
    retrieval,
    vqa,
)
from tests.unit.pipeline.evaluation.suites.conftest import captions, noise, words


def figures(outcome):
    return {figure.key: figure.value for figure in outcome.figures}


def questions(count):
    items = [
        Record(
            str(n),
            noise(f"{n // 2}.png"),
            ("red", "red", "red", "red", "blue"),
            question=f"which {words(1)}?",
            kind=("yes/no", "number")[n % 2],
            image_key=str(n // 2),
        )
        for n in range(count)
    ]
    return Records("vqa", items, {})


def classes(count, names=("red", "a large blue star", "two")):
    items = [
        Record(str(n), noise(f"{n}.png"), (names[n % len(names)],), label=n % len(names))
        for n in range(count)
    ]
    return Records("image_folder", items, {}, class_names=[*names])


def test_captioning_scores_what_the_model_says(asker, config):
    records = captions(6)
    said = captioning.ask(asker(), records, config())
    assert said[""] == asker().answers([[r.image] for r in records.items])
    right = {"": [r.texts[0] for r in records.items], "zero_image": said["zero_image"]}
    found = figures(captioning.judge(right, records, config(attributes="scenes")))
    assert found["exact_match"] == 1.0 and found["bleu_1"] == pytest.approx(1.0)
    assert found["cider_d"] > found["cider_d_zero_image"]
    assert "attribute_accuracy" in found and 0 <= found["attribute_accuracy_chance"] <= 1


def test_perplexity_weighs_the_same_text_after_three_images(asker, config):
    records = captions(5)
    weighed = perplexity.ask(asker(), records, config())
    shown = [Text([r.image], r.texts[0]) for r in records.items]
    np.testing.assert_allclose(weighed[""][0], asker().nats(shown)[0], rtol=1e-6)
    black = asker().nats(shown, zero_image=True)[0]
    np.testing.assert_allclose(weighed["zero_image"][0], black, rtol=1e-6)
    assert not np.allclose(weighed["shuffled_image"][0], weighed[""][0])
    outcome = perplexity.judge(weighed, records, config())
    found = figures(outcome)
    nats, tokens = weighed[""]
    assert found["held_out_loss"] == pytest.approx(nats.sum() / tokens.sum())
    assert found["perplexity"] == pytest.approx(np.exp(nats.sum() / tokens.sum()))
    assert outcome.rows[2].scores["held_out_loss"] == pytest.approx(nats[2] / tokens[2])


def test_with_closed_gates_no_image_makes_a_difference(asker, config, objective):
    gates = [(b.attn_gate, b.attn_gate.data.clone()) for b in objective.model.gated_blocks]
    for gate, _ in gates:
        gate.data.zero_()
    weighed = perplexity.ask(asker(), captions(4), config())
    for gate, value in gates:
        gate.data.copy_(value)
    for condition in ("zero_image", "shuffled_image"):
        assert (weighed[condition][0] == weighed[""][0]).all()


@pytest.mark.parametrize("_", range(20))
def test_shuffled_images_are_another_samples(_):
    random = np.random.default_rng()
    keys = [str(k) for k in random.integers(0, random.integers(2, 6), random.integers(2, 12))]
    found = perplexity.another_image(keys)
    if len(set(keys)) < 2:
        assert found is None
    else:
        assert all(keys[n] != keys[m] for n, m in enumerate(found))


def test_all_images_different_are_each_shown_once():
    assert Counter(perplexity.another_image(list("abcdefg"))) == Counter(range(7))


def test_one_image_alone_cannot_be_shuffled_and_it_is_said(asker, config):
    records = captions(1)
    outcome = perplexity.judge(perplexity.ask(asker(), records, config()), records, config())
    assert outcome.notes == ["all samples are of one image: there is none to shuffle"]


def test_vqa_asks_in_its_form_and_counts_by_kind(asker, config):
    records = questions(6)
    said = vqa.ask(asker(), records, config())
    asks = [[r.image, f"Question: {r.question} Short answer:"] for r in records.items]
    assert said[""] == [vqa.first_line(text) for text in asker().answers(asks)]
    answers = {"": ["red"] * 3 + ["blue"] * 3, "zero_image": ["no"] * 6}
    found = figures(vqa.judge(answers, records, config()))
    assert found["vqa_accuracy_zero_image"] == 0.0
    assert found["vqa_accuracy_kind_yes_no"] > found["vqa_accuracy_kind_number"] > 0
    with pytest.raises(ConfigError, match="has questions, for suite vqa; layout coco has none"):
        vqa.ask(asker(), captions(2), config())


def test_an_answer_ends_with_its_line():
    assert vqa.first_line(" red\nQuestion: and?") == "red"


def test_classes_are_compared_by_the_sum_and_by_the_mean(asker, config):
    records = classes(5)
    scores = classification.ask(asker(), records, config(class_form="a {name}"))
    assert scores["sum"].shape == (5, 3)
    text = Text([records.items[2].image], "a a large blue star")
    nats, tokens = asker().nats([text])
    assert scores["sum"][2, 1] == pytest.approx(-nats[0], rel=1e-5)
    assert scores["mean"][2, 1] == pytest.approx(-nats[0] / tokens[0], rel=1e-5)
    right = np.eye(3)[[r.label for r in records.items]]
    found = figures(classification.judge({"sum": right, "mean": -right}, records, config()))
    assert found["accuracy_1"] == 1.0 and found["accuracy_1_mean"] == 0.0
    with pytest.raises(ConfigError, match="has a folder for each class"):
        classification.ask(asker(), captions(2), config())


def test_retrieval_finds_the_pairs_that_are_likely(asker, config):
    records = captions(5)
    found = retrieval.ask(asker(), records, config())
    texts = [t for r in records.items for t in r.texts]
    nats, tokens = asker().nats([Text([records.items[1].image], texts[3])])
    likely = found["likelihood"]
    assert likely.shape == (5, 5)
    assert likely[1, 3] == pytest.approx(-nats[0] / tokens[0], rel=1e-5)
    black, many = asker().nats([Text([records.items[1].image], texts[3])], zero_image=True)
    # A small difference of two likelihoods in fp32.
    gain = likely[1, 3] + black[0] / many[0]
    assert found["gain"][1, 3] == pytest.approx(gain, abs=4e-6)
    perfect = {"likelihood": np.eye(5)}
    told = figures(retrieval.judge(perfect, records, config()))
    assert told["image_to_text_recall_1_likelihood"] == 1.0
    assert told["text_to_image_map_likelihood"] == 1.0


def test_retrieval_compares_each_image_and_each_text_once(config):
    items = [
        Record("a", noise("1"), ("red", "blue"), image_key="1"),
        Record("b", noise("1"), ("green",), image_key="1"),
        Record("c", noise("2"), ("red", "star"), image_key="2"),
        Record("d", noise("3"), ("red",), image_key="3"),
    ]
    kept = retrieval.compared(Records("coco", items, {}), config())
    assert [(r.key, r.texts) for r in kept.items] == [("a", ("red", "blue")), ("c", ("star",))]
    many = captions(10)
    few = retrieval.compared(many, config(retrieval_samples=3))
    assert len(few) <= 3
    outcome = retrieval.judge({"likelihood": np.eye(len(few))}, many, config(retrieval_samples=3))
    assert "are left out (evaluation.retrieval_samples)" in outcome.notes[0]


def test_the_contrastive_head_is_asked_where_there_is_one(asker, config, objective):
    model = objective.model
    resampler = model.media_encoders["image"].resampler
    width, hidden = resampler.latents.shape[-1], model.language.config.hidden_size
    model.contrastive = ContrastiveHead(width, hidden, 8, "info_nce")
    try:
        records = classes(4)
        scores = classification.ask(asker(), records, config())
        assert scores["contrastive"].shape == (4, 3)
        assert (np.abs(scores["contrastive"]) <= 1 + 1e-6).all()
        texts = ["red", "a large blue star"]
        images = [r.image for r in records.items]
        together = similarities(asker(), images, texts)
        single = np.concatenate([similarities(asker(batch_size=1), images, [t]) for t in texts], 1)
        np.testing.assert_allclose(together, single, atol=1e-5)
    finally:
        model.contrastive = None


def test_few_shot_prompts_are_those_of_training_token_for_token(asker, config, objective):
    records, asked = captions(5), []
    spy = asker()
    spy.answers = lambda asks, name="": asked.append(asks) or ["x"] * len(asks)
    settings = config(shots=[0, 2], selections=["random", "rices"])
    told = fewshot.ask(spy, records, settings)
    assert list(told.said) == ["shots_0", "shots_2_random", "shots_2_rices"]
    text = objective.text
    image, end = text.token_ids.media["image"], text.end_ids[0]
    query, prompt = records.items[3], asked[1][3]
    chosen = [records.items[n] for n in draw_random(query, records.items, 2)]
    assert prompt == [
        chosen[0].image,
        chosen[0].texts[0],
        chosen[1].image,
        chosen[1].texts[0],
        query.image,
    ]
    expected = [text.begin_id]
    for record in chosen:
        tokens = text.tokenizer(record.texts[0], add_special_tokens=False)["input_ids"]
        expected += [image, *tokens, end]
    from pipeline.prompts import prompt_ids

    parts = [p if isinstance(p, str) else b"" for p in prompt]
    assert prompt_ids(text, [parts]) == [[*expected, image]]


@pytest.mark.parametrize("make", [captions, questions, classes])
def test_few_shot_of_every_task(asker, config, make):
    records = make(6)
    settings = config(shots=[0, 2], selections=["rices"])
    outcome = fewshot.judge(fewshot.ask(asker(), records, settings), records, settings)
    conditions = {figure.condition for figure in outcome.figures}
    assert conditions == {"shots_0", "shots_2_rices"}
    assert set(outcome.rows[0].said) == conditions


def test_an_example_is_written_as_it_would_be_answered(config):
    (query,) = questions(1).items
    told = fewshot.demonstration(query, "vqa", config())
    assert told == f"Question: {query.question} Short answer: red"
    (one,) = classes(1).items
    assert fewshot.demonstration(one, "classification", config(class_form="a {name}")) == "a red"


def test_more_shots_than_examples_are_refused(asker, config):
    with pytest.raises(ConfigError, match="(?s)evaluation.shots = 8.*than a query's, 3"):
        fewshot.ask(asker(), captions(4), config(shots=[0, 8]))


def test_the_query_with_most_examples_of_its_own_image_says_how_many_shots_there_are(config):
    items = captions(8).items
    items = [replace(r, image_key="same" if n > 4 else r.key) for n, r in enumerate(items)]
    records, pool = Records("coco", items, {}), items
    fewshot.check_shots(records, pool, config(shots=[5]))
    with pytest.raises(ConfigError, match="than a query's, 5"):
        fewshot.check_shots(records, pool, config(shots=[6]))
    others = [replace(r, image_key=f"other {r.key}") for r in items]
    fewshot.check_shots(records, others, config(shots=[8]))


def test_examples_that_have_no_positions_are_left_out_and_counted(asker, config, monkeypatch):
    short = asker()
    monkeypatch.setattr(type(short.model), "max_positions", property(lambda self: 30))
    records, settings = captions(6), config(shots=[0, 5], selections=["random"])
    told = fewshot.ask(short, records, settings)
    assert told.shortened["shots_5_random"] == 6 and told.shortened["shots_0"] == 0
    outcome = fewshot.judge(told, records, settings)
    assert "shots_5_random: of 6 of 6 queries the first examples are left out" in outcome.notes[0]


@pytest.mark.parametrize("_", range(10))
def test_rices_takes_the_nearest_of_other_images_the_most_like_last(_):
    random = np.random.default_rng()
    pool = captions(12).items
    pool = [replace(r, image_key=str(n // 2)) for n, r in enumerate(pool)]
    vectors = random.normal(size=(12, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = pool[random.integers(12)]
    own = vectors[pool.index(query)]
    found = nearest(query, own, pool, vectors, 4)
    others = [n for n in range(12) if pool[n].image_key != query.image_key]
    distances = {n: float(((vectors[n] - own) ** 2).sum()) for n in others}
    assert found == sorted(others, key=distances.get)[:4][::-1]


def test_random_examples_are_the_querys_own_and_never_its_image():
    pool = captions(30).items
    drawn = {q.key: draw_random(q, pool, 8) for q in pool}
    assert len({tuple(d) for d in drawn.values()}) > 25
    for query in pool:
        assert query.image_key not in {pool[n].image_key for n in drawn[query.key]}
        assert draw_random(query, pool, 4) == drawn[query.key][:4]
        assert draw_random(query, pool, 8, seed=1) != drawn[query.key] or len(pool) < 9


def test_speed_is_measured_and_the_model_stays_as_it_was(asker, config, objective, monkeypatch):
    monkeypatch.setattr("pipeline.evaluation.speed.SECONDS", 0.1)
    before = {n: p.clone() for n, p in objective.model.named_parameters()}
    outcome = measure_speed(asker(), captions(3), config(speed_batches=[1, 2], max_new_tokens=3))()
    found = figures(outcome)
    for precision in ("fp32", "bf16"):
        for size in (1, 2):
            here = f"{precision}_batch_{size}"
            assert 0 < found[f"latency_p50_{here}"] <= found[f"latency_p95_{here}"]
            tokens = found[f"queries_per_second_{here}"] * 3
            assert found[f"tokens_per_second_{here}"] == pytest.approx(tokens)
            assert found[f"memory_{here}"] > 0
            first = found[f"first_token_p50_{here}"] / 1000
            # A prompt is its first mark, the image's and nothing else.
            prompt = size * asker().length([noise("a")])
            prefill = found[f"prefill_tokens_per_second_{here}"]
            assert prefill == pytest.approx(prompt / first)
    assert "on " in outcome.notes[0]
    after = dict(objective.model.named_parameters())
    assert all((after[n] == p).all() and after[n].dtype == p.dtype for n, p in before.items())
