"""What the T5 family says about itself: texts in, answers out, padding that never counts."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from mingle.adaptation import second_moments
from mingle.backbones import BACKBONES, Head, take
from mingle.backbones.seq2seq import Seq2seq, write
from mingle.errors import CheckpointError, ConfigError, MismatchError, SeedsError
from mingle.evaluation import accuracy, accuracy_matrix, gate_activations, mixed_accuracy
from mingle.evaluation.final import final_metrics
from mingle.evaluation.matrix import ScoredTask
from mingle.layers import LowRankExpert, wrap
from mingle.methods import Base
from mingle.state import MergeRun
from mingle.weights import check_against

from .t5 import ANSWERS, answer, sentences, write_t5

BACKBONE = Seq2seq()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A Flan-like family: gated feed-forward, separate output matrix, three tasks."""
    return write_t5(tmp_path_factory.mktemp("flan"), gated=True, untied=True, steps=25)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A family like the first T5: plain feed-forward, one matrix for all embeddings."""
    return write_t5(tmp_path_factory.mktemp("t5"), steps=5, tasks=1)


@pytest.fixture(scope="module")
def base(zoo):
    return Base(BACKBONE, BACKBONE.open(zoo / "base"))


@pytest.fixture(scope="module")
def batch(base):
    return BACKBONE.prepare(sentences(1, 12), base.checkpoint)


@pytest.fixture(scope="module")
def teacher(zoo, base):
    return BACKBONE.build(BACKBONE.open(zoo / "task1"), base.checkpoint)


def mixture(base, dtype=torch.float64):
    """The base with random experts and gates at every site, each of its own."""
    model = Base(BACKBONE, base.checkpoint, dtype).model()
    layers = wrap(model, BACKBONE.groups(model, "full"))
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        out, into = layer.linear.weight.shape
        factors = [0.2 * torch.randn(shape, generator=generator) for shape in ((4, into), (out, 4))]
        layer.extend([LowRankExpert(*factors)])
        layer.gate.append(torch.randn(into, generator=generator), torch.tensor(0.5))
    return model, layers


# --- the model


@pytest.mark.parametrize("family", ["zoo", "tied"])
def test_it_computes_what_transformers_computes(family, request, monkeypatch):
    """The loaded base, and the words it writes, against the library's own model and generate."""
    folder = request.getfixturevalue(family) / "base"
    opened = BACKBONE.open(folder)
    ours, theirs = BACKBONE.build(opened), T5ForConditionalGeneration.from_pretrained(folder).eval()
    inputs = BACKBONE.prepare(sentences(3, 5), opened)
    decoder = torch.tensor([[0, 3, 4]]).expand(5, -1)
    expected = theirs(**inputs, decoder_input_ids=decoder).logits
    torch.testing.assert_close(ours(**inputs, decoder_input_ids=decoder).logits, expected, atol=1e-5, rtol=0)
    monkeypatch.setattr("mingle.backbones.seq2seq.MAX_NEW_TOKENS", 6)
    written = theirs.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
    assert write(ours, inputs).tolist() == ours.generate(**inputs, max_new_tokens=6).tolist() == written


@torch.no_grad()
def test_configurations_of_older_versions_mean_the_same(zoo, base, tmp_path):
    """Flan-T5 on the Hub says ``tie_word_embeddings: false``; newer versions write another key instead."""
    folder = shutil.copytree(zoo / "base", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("scale_decoder_outputs") is False
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    older = BACKBONE.open(folder)
    BACKBONE.check_family(BACKBONE.open(zoo / "task1"), older)
    inputs = BACKBONE.prepare(sentences(3, 2), older) | {"decoder_input_ids": torch.tensor([[0, 3]] * 2)}
    model = BACKBONE.build(older)
    assert torch.equal(model(**inputs).logits, base.model()(**inputs).logits)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("family", ["zoo", "tied"])
def test_shared_embeddings_are_one_tensor(family, request):
    opened = BACKBONE.open(request.getfixturevalue(family) / "base")
    model = BACKBONE.build(opened)
    assert not {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} & set(opened.names())
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    assert (model.lm_head.weight is model.shared.weight) == (family == "tied")
    assert ("lm_head.weight" in opened.names()) == (family == "zoo")


def test_second_names_of_the_embedding_are_skipped(tied, tmp_path):
    """A file that stores it under every name opens as the same model."""
    folder = shutil.copytree(tied / "base", tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    aliases = {
        f"{stack}.embed_tokens.weight": tensors["shared.weight"].clone() for stack in ("encoder", "decoder")
    }
    save_file(tensors | aliases, folder / "model.safetensors")
    assert BACKBONE.open(folder).fingerprint == BACKBONE.open(tied / "base").fingerprint


@pytest.mark.parametrize("family", ["zoo", "tied"])
def test_sites_are_those_of_the_paper_and_groups_read_one_tensor(family, request):
    opened = BACKBONE.open(request.getfixturevalue(family) / "base")
    model = BACKBONE.build(opened)
    groups = BACKBONE.groups(model, "full")
    assert BACKBONE.groups(BACKBONE.skeleton(opened), "full") == groups
    merged = {name for group in groups for name in group.linears}
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linears - merged == {n for n in linears if n.endswith("DenseReluDense.wo")} | {"lm_head"}
    seen = {}
    for name in merged:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0])
        )
    model(**BACKBONE.prepare(sentences(3, 2), opened), decoder_input_ids=torch.tensor([[0, 3]] * 2))
    for group in groups:
        assert all(seen[name] is seen[group.name] for name in group.linears)
    assert len({id(x) for x in seen.values()}) == len(groups)
    light = {name for group in BACKBONE.groups(model, "light") for name in group.linears}
    assert merged - light == {name for name in merged if name.endswith(".o")}


def test_other_families_and_other_settings_are_refused(zoo, base, tmp_path):
    folder = shutil.copytree(zoo / "task1", tmp_path / "task1")
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"model_type": "bart"}, "expected a T5 .*found 'bart'"),
        ({"num_heads": 2}, r"num_heads 2 \(base 4\)"),
        (
            {"scale_decoder_outputs": True, "tie_word_embeddings": True},
            r"scale_decoder_outputs True \(base False\)",
        ),
        ({"feed_forward_proj": "odd-odd-odd"}, "describes no T5"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=message):
            BACKBONE.check_family(BACKBONE.open(folder), base.checkpoint)


def test_another_tokenizer_is_refused(tied, tmp_path):
    folder = shutil.copytree(tied / "task1", tmp_path / "task1")
    described = json.loads((tied / "base" / "tokenizer.json").read_text())
    words = described["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    run = MergeRun.create(tmp_path / "run", tied / "base", method="average", backbone="seq2seq")
    with pytest.raises(CheckpointError, match=r"another tokenizer than the base's .*: vocabulary differ"):
        run.add(folder)


def test_missing_output_matrix_is_a_mismatch(zoo, base, tmp_path):
    folder = shutil.copytree(zoo / "task1", tmp_path / "task1")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MismatchError, match=r"lm_head\.weight: missing"):
        check_against(base.checkpoint, BACKBONE.open(folder))


# --- texts and answers


def test_samples_must_be_texts(base, images):
    for samples in (images, [Image.new("RGB", (4, 4))]):
        with pytest.raises(SeedsError, match="expected a list of texts"):
            BACKBONE.prepare(samples, base.checkpoint)
    assert BACKBONES.get("seq2seq") is Seq2seq


def test_model_without_a_tokenizer_is_said(zoo, tmp_path):
    folder = shutil.copytree(zoo / "base", tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"no readable tokenizer\.json beside the model"):
        BACKBONE.prepare(["good"], BACKBONE.open(folder))


def test_answers_are_matched_by_their_text(teacher, batch):
    """Exactly the text: not a longer answer, not the first words of one; −1 for none."""
    features = BACKBONE.features(teacher, batch)
    truth = [ANSWERS.index(bytes(row).rstrip(b"\0").decode()) for row in features.tolist()]
    assert len(set(truth)) == 3
    assert BACKBONE.predict(teacher, batch, Head(ANSWERS, {})).tolist() == truth
    swapped = Head(("maybe", "yes", "no"), {})
    assert BACKBONE.decide(features, swapped).tolist() == [(t + 1) % 3 for t in truth]
    partly = Head(("maybe not at all", "ye", "no"), {})
    expected = [2 if t == 1 else -1 for t in truth]
    assert BACKBONE.decide(features, partly).tolist() == expected
    rows = BACKBONE.probabilities(features, partly)
    assert rows.sum(1).tolist() == [float(t == 1) for t in truth]


def test_heads_are_lists_of_answers(zoo, base, tmp_path):
    assert BACKBONE.head(BACKBONE.open(zoo / "task1")) == Head(ANSWERS, {})
    assert BACKBONE.head(base.checkpoint) is None
    assert BACKBONE.zero_shot_head(base.checkpoint, ["a", "b"]) == Head(("a", "b"), {})
    (tmp_path / "answers.txt").write_text("one\n\ntwo three\n")
    assert BACKBONE.head(base.checkpoint, tmp_path / "answers.txt").classes == ("one", "two three")
    with pytest.raises(CheckpointError, match="found a tensor"):
        BACKBONE.head(base.checkpoint, torch.zeros(2, 3))
    for text, message in (("", "at least one name"), ("a\nb\na\n", "'a' more than once")):
        (tmp_path / "answers.txt").write_text(text)
        with pytest.raises(ConfigError, match=message):
            BACKBONE.head(base.checkpoint, tmp_path / "answers.txt")
    for text in ("[1]", "{}", "["):
        (tmp_path / "answers.json").write_text(text)
        with pytest.raises(ConfigError, match=r"answers\.json: "):
            BACKBONE.head(base.checkpoint, tmp_path / "answers.json")


# --- lessons


def test_lesson_is_what_the_teacher_writes(teacher, batch):
    lesson = BACKBONE.teach(teacher, batch, Head(ANSWERS, {}))
    assert torch.equal(lesson.classes, BACKBONE.predict(teacher, batch, Head(ANSWERS, {})))
    for i in range(12):
        one = take(batch, slice(i, i + 1))
        written = write(teacher, one)
        length = int(lesson.mask[i].sum())
        assert written.shape[1] == 1 + length
        assert lesson.batch["decoder_input_ids"][i, :length].tolist() == written[0, :-1].tolist()
        alone = teacher(**one, decoder_input_ids=written[:, :-1]).logits[0]
        torch.testing.assert_close(lesson.logits[i, :length], alone, atol=1e-4, rtol=0)
        assert alone.argmax(-1).tolist() == written[0, 1:].tolist()
    part = lesson.take(torch.tensor([3, 1]))
    assert torch.equal(part.logits, lesson.logits[[3, 1]])
    assert torch.equal(part.mask, lesson.mask[[3, 1]])
    assert torch.equal(part.batch["input_ids"], batch["input_ids"][[3, 1]])


def test_lessons_of_different_lengths_are_padded_to_the_longest(teacher, batch, monkeypatch):
    """In chunks of one the teacher writes texts of different lengths; the lesson stays the same."""
    whole = BACKBONE.teach(teacher, batch, Head(ANSWERS, {}))
    monkeypatch.setattr("mingle.backbones.base_text_writer.FORWARD_BATCH", 1)
    single = BACKBONE.teach(teacher, batch, Head(ANSWERS, {}))
    assert torch.equal(single.mask, whole.mask)
    assert torch.equal(
        single.batch["decoder_input_ids"] * single.mask, whole.batch["decoder_input_ids"] * whole.mask
    )
    torch.testing.assert_close(
        single.logits[single.mask.bool()], whole.logits[whole.mask.bool()], atol=1e-4, rtol=0
    )


# --- padding


def test_a_sentence_alone_and_in_a_padded_batch_are_the_same(base):
    """With experts and gates at every site; and without the masks they would not be."""
    model, _ = mixture(base)
    texts = ["good", *sentences(5, 6), "very bad plot it is not this film we you"]
    together = BACKBONE.prepare(texts, base.checkpoint)
    decoder = torch.tensor([[0, 3, 5, 4]] * len(texts))
    lengths = [1, 2, 3, 4, 1, 2, 3, 4]
    mask = torch.tensor([[1] * n + [0] * (4 - n) for n in lengths])
    found = model(**together, decoder_input_ids=decoder, decoder_attention_mask=mask).logits
    for i, text in enumerate(texts):
        one = BACKBONE.prepare([text], base.checkpoint)
        alone = model(**one, decoder_input_ids=decoder[i : i + 1, : lengths[i]]).logits[0]
        torch.testing.assert_close(found[i, : lengths[i]], alone, atol=1e-5, rtol=1e-5)
    for stack in (model.encoder, model.decoder):
        stack._forward_pre_hooks.clear()
        stack._forward_pre_hooks_with_kwargs.clear()
    blind = model(**together, decoder_input_ids=decoder, decoder_attention_mask=mask).logits
    assert (blind[0, 0] - found[0, 0]).abs().max() > 1e-2


def test_answers_do_not_depend_on_the_batch(base, monkeypatch):
    monkeypatch.setattr("mingle.backbones.seq2seq.MAX_NEW_TOKENS", 6)
    model, _ = mixture(base)
    texts = sentences(6, 10)
    together = write(model, BACKBONE.prepare(texts, base.checkpoint))
    for i, text in enumerate(texts):
        alone = write(model, BACKBONE.prepare([text], base.checkpoint))[0].tolist()
        assert together[i, : len(alone)].tolist() == alone
        assert not together[i, len(alone) :].any()


def test_masks_are_those_of_the_states_that_a_layer_reads(base):
    """Encoder sites and k, v of the cross attention count the encoder's tokens, the rest the decoder's."""
    model, layers = mixture(base)
    inputs = BACKBONE.prepare(["good", "very bad plot"], base.checkpoint)
    decoder = {
        "decoder_input_ids": torch.tensor([[0, 3, 4], [0, 3, 4]]),
        "decoder_attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    moments = second_moments(layers, [lambda: model(**inputs, **decoder)], augmented=False)
    for name, moment in moments.items():
        encoder = name.startswith("encoder.") or name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        assert moment.count == (int(inputs["attention_mask"].sum()) if encoder else 4), name
    assert all(layer.pool.mask is None for layer in layers.values())


# --- whole runs


@pytest.fixture(scope="module")
def tests(base):
    found = {}
    for task in range(3):
        texts = sentences(50 + task, 30)
        labels = torch.tensor([answer(text, task) for text in texts])
        found[f"task{task + 1}"] = ScoredTask(
            f"task{task + 1}", texts, labels, lambda t: BACKBONE.prepare(t, base.checkpoint)
        )
    return found


@pytest.fixture(scope="module", params=["adapted", "analytic"])
def merged(request, zoo, tmp_path_factory):
    """Two tasks merged with mingle (preset text)."""
    options = {"gates": request.param, "steps": 15, "rank": 8, "lr": 1e-2, "seeds_in_all": 24}
    path = tmp_path_factory.mktemp("runs") / "mingle"
    run = MergeRun.create(path, zoo / "base", backbone="seq2seq", preset="text", options=options)
    for number in (1, 2):
        run.add(zoo / f"task{number}", seeds=sentences(number, 40))
    return run


def test_text_models_are_merged_and_scored(merged, base, tests):
    reopened = MergeRun.open(merged.path)
    steps = reopened.state.steps
    losses = steps[0].report.get("losses", [])
    assert not losses or sum(losses[-5:]) < sum(losses[:5]) / 2
    assert [step.report["seeds"]["used"] for step in steps] == [24, 24]
    assert steps[0].head == Head(ANSWERS, {})
    matrix = accuracy_matrix(reopened.method, reopened.state, tests)
    alone = accuracy(BACKBONE, base.model(), steps[0].head, tests["task1"])
    # The first task is learnt, and kept when the second arrives.
    assert matrix[0][0] > alone + 0.2
    # The texts of both are alike, so that no router could tell them apart.
    assert reopened.method.options.gates == "analytic" or matrix[1][0] > alone + 0.2
    assert mixed_accuracy(reopened.method, reopened.state, tests) == pytest.approx(sum(matrix[-1]) / 2)


def test_metrics_of_the_last_model_hold_for_answers_in_words(merged, tests):
    run = MergeRun.open(merged.path)
    matrix = accuracy_matrix(run.method, run.state, tests)
    metrics, cost = final_metrics(run.method, run.state, tests, used=())
    # Both tasks have the same answers, so the union of their labels is the labels of each.
    assert metrics["agnostic_acc"] == metrics["unseen_acc"] == metrics["sample_acc"]
    assert metrics["sample_acc"] == pytest.approx(sum(matrix[-1]) / 2)
    assert cost["gate_parameters"] > 0


def test_a_method_that_needs_class_probabilities_says_so(zoo, tmp_path):
    run = MergeRun.create(tmp_path / "run", zoo / "base", method="adamerging", backbone="seq2seq")
    with pytest.raises(ConfigError, match=r"this family \(T5\) writes its answers"):
        run.add(zoo / "task1", seeds=sentences(1, 40))


def test_predictions_of_a_run(merged, tests):
    texts = tests["task2"].samples
    rows, classes = MergeRun.open(merged.path).predict(texts, "task2")
    assert classes == ANSWERS
    found = BACKBONE.predict(merged.model(), tests["task2"].batch, Head(ANSWERS, {}))
    assert rows.argmax(1).tolist() == found.tolist()
    assert rows.sum(1).tolist() == [1.0] * 30


def test_gates_are_seen_while_it_writes(merged, tests):
    heads = {step.task: step.head for step in merged.state.steps}
    known = {task: tests[task] for task in merged.tasks}
    found = gate_activations(BACKBONE, merged.model(), heads, known)
    values = torch.tensor(found.mean)
    assert values.shape == (len(found.layers), 2, 2)
    assert torch.isfinite(values).all()
    assert values.abs().max() > 1e-3


def test_average_of_two_is_their_mean(zoo, tmp_path, base):
    run = MergeRun.create(tmp_path / "run", zoo / "base", backbone="seq2seq", method="average")
    for number in (1, 2):
        run.add(zoo / f"task{number}")
    tensors = [BACKBONE.open(zoo / f"task{number}") for number in (1, 2)]
    state = run.model().state_dict()
    for name in base.checkpoint.names():
        expected = (tensors[0].tensor(name) + tensors[1].tensor(name)) / 2
        torch.testing.assert_close(state[name], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(state["encoder.embed_tokens.weight"], state["shared.weight"])
