"""What models that continue a prompt say about themselves: names, tied weights, prompts, lessons, runs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from mingle.backbones import BACKBONES, Head, take
from mingle.backbones.causal_lm import CausalLm
from mingle.errors import CheckpointError, SeedsError
from mingle.evaluation.gates import gate_activations
from mingle.evaluation.matrix import ScoredTask
from mingle.methods import METHODS, Arrival, Base
from mingle.state import MergeRun

from .. import naive_methods
from .t5 import ANSWERS, answer, sentences
from .writers import KINDS, TOKENS, write_writer

BACKBONE = CausalLm()
HEAD = Head(ANSWERS, {})


@pytest.fixture(scope="module", params=KINDS)
def root(request, tmp_path_factory):
    """Random models."""
    return write_writer(tmp_path_factory.mktemp(request.param), request.param, tasks=0)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Models that have learnt a little."""
    return write_writer(tmp_path_factory.mktemp("gpt2"), "gpt2", steps=40)


@pytest.fixture(scope="module")
def base(gpt2):
    return Base(BACKBONE, BACKBONE.open(gpt2 / "base"))


@pytest.fixture(scope="module")
def teacher(gpt2, base):
    return BACKBONE.build(BACKBONE.open(gpt2 / "task1"), base.checkpoint)


# --- the model


@torch.no_grad()
def test_it_computes_what_transformers_computes(root):
    """Names, logits, and the words it writes, padding on the left included."""
    opened = BACKBONE.open(root / "base")
    ours, theirs = BACKBONE.build(opened), AutoModelForCausalLM.from_pretrained(root / "base").eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    batch = BACKBONE.prepare(sentences(3, 5), opened)
    assert torch.equal(ours(**batch).logits, theirs(**batch).logits)
    written = theirs.generate(**batch, max_new_tokens=32, do_sample=False, pad_token_id=0)
    start = batch["input_ids"].shape[1]
    assert BACKBONE.write(ours, batch).tolist() == written[:, start:].tolist()
    assert type(ours).__name__ == type(theirs).__name__
    assert isinstance(ours, type(theirs))


def test_sites_and_their_orientation(root):
    model = BACKBONE.skeleton(BACKBONE.open(root / "base"))
    groups = BACKBONE.groups(model, "full")
    merged = {name for group in groups for name in group.linears}
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    assert linears - merged == {"lm_head"}
    assert len(groups) == 8
    for group in groups:
        modules = {type(model.get_submodule(name)) for name in group.linears}
        assert modules == {Conv1D if group.transposed else torch.nn.Linear}
        assert (group.norm is not None) == group.name.endswith(("c_attn", "c_fc"))


def test_another_end_of_text_or_tokenizer_is_refused(gpt2, base, tmp_path):
    folder = shutil.copytree(gpt2 / "task1", tmp_path / "task1")
    shutil.copy(gpt2 / "base" / "tokenizer.json", folder)
    config = json.loads((folder / "config.json").read_text())
    BACKBONE.check_family(BACKBONE.open(folder), base.checkpoint)
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    with pytest.raises(CheckpointError, match=r"eos_token_id 3 \(base 0\)"):
        BACKBONE.check_family(BACKBONE.open(folder), base.checkpoint)
    (folder / "config.json").write_text(json.dumps(config))
    words = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(words.replace('"film"', '"movie"'))
    with pytest.raises(CheckpointError, match="another tokenizer than the base's"):
        BACKBONE.check_family(BACKBONE.open(folder), base.checkpoint)


# --- prompts and answers


def test_prompts_are_padded_on_the_left(base):
    batch = BACKBONE.prepare(["good", "very bad plot"], base.checkpoint)
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["input_ids"][:, -1].tolist() == [TOKENS.index("good"), TOKENS.index("plot")]
    assert batch["input_ids"][0, 0] == 0


def test_a_prompt_that_is_too_long_loses_its_beginning(base):
    """Of 64 positions 32 are left for the answer."""
    batch = BACKBONE.prepare([" ".join(["film"] * 50 + ["good"])], base.checkpoint)
    assert batch["input_ids"].shape == (1, 32)
    assert batch["input_ids"][0, -1] == TOKENS.index("good")
    with pytest.raises(SeedsError, match="none in text 1"):
        BACKBONE.prepare(["good", " "], base.checkpoint)


def test_answers_are_matched_by_their_text(teacher, base):
    texts = sentences(1, 12)
    batch = BACKBONE.prepare(texts, base.checkpoint)
    found = BACKBONE.predict(teacher, batch, HEAD).tolist()
    correct = sum(int(f == answer(text, 0)) for f, text in zip(found, texts, strict=True))
    assert correct >= 8
    swapped = BACKBONE.predict(teacher, batch, Head(("maybe", "yes", "no"), {}))
    assert swapped.tolist() == [(f + 1) % 3 if f >= 0 else -1 for f in found]
    assert BACKBONE.head(base.checkpoint) is None
    assert BACKBONES.get("causal_lm") is CausalLm


# --- lessons


@pytest.mark.parametrize("size", [1, 64])
def test_lesson_is_what_the_teacher_writes(teacher, base, monkeypatch, size):
    monkeypatch.setattr("mingle.backbones.base_text_writer.FORWARD_BATCH", size)
    monkeypatch.setattr("mingle.backbones.causal_lm.MAX_NEW_TOKENS", 5)
    batch = BACKBONE.prepare(sentences(1, 12), base.checkpoint)
    lesson = BACKBONE.teach(teacher, batch, HEAD)
    assert torch.equal(lesson.classes, BACKBONE.predict(teacher, batch, HEAD))
    for i in range(12):
        written = BACKBONE.write(teacher, take(batch, slice(i, i + 1)))
        length = written.shape[1]
        assert lesson.mask[i].tolist() == [1] * length + [0] * (lesson.mask.shape[1] - length)
        real = batch["input_ids"][i][batch["attention_mask"][i].bool()]
        alone = teacher(torch.cat([real, written[0, :-1]])[None]).logits[0, len(real) - 1 :]
        torch.testing.assert_close(lesson.logits[i, :length], alone, atol=1e-5, rtol=1e-5)
        assert alone.argmax(-1).tolist() == written[0].tolist()
        assert (written[0] == 0).tolist().index(True) == length - 1 or length == 5
    part = lesson.take(torch.tensor([3, 1]))
    torch.testing.assert_close(BACKBONE.logits(teacher, part.batch, HEAD), lesson.logits[[3, 1]])


# --- whole runs


@pytest.fixture(scope="module", params=["adapted", "analytic"])
def merged(request, gpt2, tmp_path_factory):
    options = {
        "gates": request.param,
        "steps": 30,
        "rank": 16,
        "lr": 1e-2,
        "seeds_in_all": 24,
        "vectors": "gated",
    }
    path = tmp_path_factory.mktemp("runs") / "mingle"
    run = MergeRun.create(path, gpt2 / "base", backbone="causal_lm", preset="text", options=options)
    for number in (1, 2):
        run.add(gpt2 / f"task{number}", seeds=sentences(number, 40))
    return MergeRun.open(path)


def test_prompts_are_merged_and_answered(merged, base):
    """The losses fall; cached and uncached decoding of the merged model agree, gates and norms open."""
    steps = merged.state.steps
    for step in steps:
        losses = step.report.get("losses", [])
        assert not losses or sum(losses[-9:]) < sum(losses[:9]) / 1.3
    assert steps[0].head == HEAD
    texts = sentences(70, 20)
    rows, classes = merged.predict(texts, "task1")
    assert classes == ANSWERS
    model, batch = merged.model(), BACKBONE.prepare(texts, base.checkpoint)
    assert rows.tolist() == BACKBONE.classify(BACKBONE.features(model, batch), HEAD).tolist()
    with torch.no_grad():
        outputs = [
            model.generate(**batch, max_new_tokens=6, pad_token_id=0, use_cache=c) for c in (True, False)
        ]
    assert torch.equal(*outputs)


def test_gates_are_seen_while_it_writes(merged, base):
    tests = {
        task: ScoredTask(
            task,
            sentences(9, 6),
            torch.zeros(6, dtype=torch.int64),
            lambda t: BACKBONE.prepare(t, base.checkpoint),
        )
        for task in merged.tasks
    }
    heads = {step.task: step.head for step in merged.state.steps}
    found = torch.tensor(gate_activations(BACKBONE, merged.model(), heads, tests).mean)
    assert found.shape == (8, 2, 2)
    assert found.abs().max() > 1e-3


def arithmetic(base, merged, new, t, memory):
    return {name: merged[name] + 0.3 * (new[name] - base[name]) for name in base}


def average(base, merged, new, t, memory):
    return {name: merged[name] + (new[name] - merged[name]) / t for name in base}


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("average", {}, average),
        ("task_arithmetic", {}, arithmetic),
        ("opcm", {}, naive_methods.opcm),
        ("wudi", {"steps": 10, "lr": 1e-3}, naive_methods.wudi),
        ("nufilt", {"steps": 5, "rank": 4}, naive_methods.nufilt),
    ],
)
def test_methods_see_conv1d_as_linears(gpt2, base, monkeypatch, name, options, formula):
    """Against the plain formulas on weights turned to (d_out, d_in)."""
    linears = ("c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight")
    method = METHODS.get(name).with_preset("default", options)
    if name == "nufilt":
        linears = linears[:3]
        options = options | {"seed": 7, "previous_rank": 5}
    monkeypatch.setattr(naive_methods, "LINEARS", linears)

    def turned(tensors):
        return {n: t.mT.contiguous() if n.endswith(linears) else t for n, t in tensors.items()}

    folders = [gpt2 / "task1", gpt2 / "task2"]
    models = [turned(load_file(folder / "model.safetensors")) for folder in folders]
    expected = naive_methods.run(formula, turned(dict(base.tensors)), models, **options)[-1]
    state = method.init(base)
    for folder in folders:
        state = method.update(state, Arrival(folder.name, BACKBONE.open(folder), seed=7))
    found = turned(dict(method.weights(state)))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    model = method.model(state)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_experts_of_a_conv1d_are_those_of_the_linear(gpt2, base):
    """``B A`` is the truncated SVD of the task vector the right way round."""
    method = METHODS.get("mingle").with_preset("static", {"rank": 4, "projection": "none"})
    state = method.update(method.init(base), Arrival("task1", BACKBONE.open(gpt2 / "task1"), HEAD))
    experts = state.steps[0].tensors["experts"]
    for name in ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"):
        new = load_file(gpt2 / "task1" / "model.safetensors")[f"{name}.weight"]
        delta = (new - base.tensors[f"{name}.weight"]).mT
        U, S, V = torch.linalg.svd(delta, full_matrices=False)
        expected = U[:, :4] * S[:4] @ V[:4]
        found = experts[f"{name}.B"] @ experts[f"{name}.A"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
