"""What text classifiers say about themselves: their own class's logits, padding that never counts."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from mingle.adaptation import second_moments
from mingle.backbones import BACKBONES
from mingle.backbones.text_classifier import TextClassifier
from mingle.errors import CheckpointError, ConfigError, SeedsError
from mingle.layers import LowRankExpert, wrap
from mingle.methods import Base
from mingle.state import MergeRun

from .families import FAMILIES, TEXTS, images, sentences

BACKBONE = TextClassifier()
MLP = ("intermediate.dense", "ffn.lin1")


@pytest.fixture(scope="module", params=TEXTS)
def family(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    FAMILIES[request.param].write(root)
    return request.param, root


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    root = tmp_path_factory.mktemp("bert")
    FAMILIES["bert"].write(root)
    return root


def mixture(base):
    model = Base(BACKBONE, base, torch.float64).model()
    groups = BACKBONE.groups(model, "full")
    layers = wrap(model, groups)
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        out, into = layer.linear.weight.shape
        factors = [0.2 * torch.randn(shape, generator=generator) for shape in ((4, into), (out, 4))]
        layer.extend([LowRankExpert(*factors)])
        layer.gate.append(torch.randn(into, generator=generator), torch.tensor(0.5))
    return model, {group.name: layers[group.name] for group in groups}


# --- the model and its head


@torch.no_grad()
def test_logits_are_those_of_the_class_with_a_head(family):
    _, root = family
    theirs = AutoModelForSequenceClassification.from_pretrained(root / "task1").eval()
    base = BACKBONE.open(root / "base")
    opened = BACKBONE.open(root / "task1", base)
    head = BACKBONE.head(opened, base=base)
    batch = BACKBONE.prepare(sentences(1, 6), base)
    model = BACKBONE.build(opened, base)
    assert head.classes == ("class0", "class1", "class2")
    assert torch.equal(BACKBONE.classify(BACKBONE.features(model, batch), head), theirs(**batch).logits)
    whole = set(theirs.state_dict())
    assert set(opened.names()) | set(head.tensors) == whole
    assert not set(opened.names()) & set(head.tensors)


def test_pretrained_models_are_bases(family, tmp_path):
    """Stored as a bare model without prefix, or with the pretraining's own head."""
    _, root = family
    expected = BACKBONE.open(root / "base").fingerprint
    for auto in (AutoModel, AutoModelForMaskedLM):
        folder = tmp_path / auto.__name__
        auto.from_pretrained(root / "base").save_pretrained(folder)
        assert BACKBONE.open(folder).fingerprint == expected
        assert BACKBONE.head(BACKBONE.open(folder)) is None


def test_every_linear_of_the_encoder_is_merged(family):
    """Heads are not, nor what DeBERTa also runs on relative embeddings."""
    name, root = family
    model = BACKBONE.skeleton(BACKBONE.open(root / "base"))
    merged = {linear for group in BACKBONE.groups(model, "full") for linear in group.linears}
    linears = {n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    left = {n.rpartition(".")[2] for n in linears - merged}
    expected = {
        "deberta-v2": {"pos_key_proj", "pos_query_proj"},
        "deberta-v2 shared": {"key_proj", "query_proj"},
    }
    assert left == expected.get(name, set())
    assert len(merged) == (8 if name == "deberta-v2 shared" else 12)
    light = {linear for group in BACKBONE.groups(model, "light") for linear in group.linears}
    assert {linear for linear in light if linear.endswith(MLP)} == {n for n in merged if n.endswith(MLP)}
    if name == "distilbert":
        assert len(BACKBONE.groups(model, "mlp")) == 4
        return
    with pytest.raises(ConfigError, match="are no modules of their own"):
        BACKBONE.groups(model, "mlp")


# --- padding


@torch.no_grad()
def test_padding_changes_nothing(family):
    """Features, gates and second moments of open gates, in a batch padded ten tokens further."""
    _, root = family
    base = BACKBONE.open(root / "base")
    batch = BACKBONE.prepare(sentences(1, 6), base)
    assert batch["attention_mask"].min() == 0
    longer = {name: pad(tokens, (0, 10)) for name, tokens in batch.items()}
    model, firsts = mixture(base)
    features, gates, moments = [], [], []
    for part in (batch, longer):
        seen = []
        hooks = [
            layer.gate.register_forward_hook(lambda _, args, output, seen=seen: seen.append(output))
            for layer in firsts.values()
        ]
        features.append(BACKBONE.features(model, part))
        gates.append(torch.cat(seen))
        for hook in hooks:
            hook.remove()
        run = second_moments(firsts, [lambda part=part: BACKBONE.features(model, part)], augmented=True)
        moments.append([run[name].matrix for name in firsts])
    torch.testing.assert_close(*features, atol=1e-9, rtol=0)
    torch.testing.assert_close(*gates, atol=1e-9, rtol=0)
    torch.testing.assert_close(*moments, atol=1e-8, rtol=0)
    assert float(moments[0][0][-1, -1]) == int(batch["attention_mask"].sum())
    assert gates[0].abs().max() > 0.1


# --- texts


def test_texts_end_where_the_model_ends(family):
    """As many tokens as there are positions; the padding token takes the first ones of RoBERTa."""
    name, root = family
    base = BACKBONE.open(root / "base")
    batch = BACKBONE.prepare(["good film " * 50, "bad"], base)
    assert batch["input_ids"].shape == (2, 39 if "roberta" in name else 40)
    assert BACKBONE.features(BACKBONE.build(base), batch).shape == (2, 32)


def test_pictures_are_no_texts(bert):
    with pytest.raises(SeedsError, match="expected a list of texts"):
        BACKBONE.prepare(images(1, 2), BACKBONE.open(bert / "base"))
    assert BACKBONES.get("text_classifier") is TextClassifier


# --- what must not differ


def other_words(folder):
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    words = described["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    path.write_text(json.dumps(described))


def lowercased(folder):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}))


@pytest.mark.parametrize(("change", "part"), [(other_words, "vocabulary"), (lowercased, "normalizer")])
def test_another_tokenizer_is_refused_before_anything_is_computed(bert, tmp_path, change, part):
    folder = shutil.copytree(bert / "task1", tmp_path / "task")
    run = MergeRun.create(tmp_path / "run", bert / "base", method="average", backbone="text_classifier")
    tokenizer = folder / "tokenizer.json"
    described = json.loads((bert / "base" / "tokenizer.json").read_text())
    tokenizer.write_text(json.dumps(described, indent=1))
    assert tokenizer.read_bytes() != (bert / "base" / "tokenizer.json").read_bytes()
    run.add(folder)
    run.undo()
    change(folder)
    with pytest.raises(
        CheckpointError, match=rf"another tokenizer than the base's .*: {part} differ"
    ) as error:
        run.add(folder)
    assert "\n" not in str(error.value)
    tokenizer.write_text("{}")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        run.add(folder)
    assert run.tasks == ()


def test_a_head_without_its_hidden_layer_is_refused(bert, tmp_path):
    folder = shutil.copytree(bert / "task1", tmp_path / "task")
    with pytest.raises(CheckpointError, match=r"'bert\.pooler\.dense\.bias': expected \(32,\), found none"):
        BACKBONE.head(BACKBONE.open(folder), torch.zeros(3, 32), base=BACKBONE.open(bert / "base"))
    stored = load_file(folder / "model.safetensors")
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= stored.keys()


def test_an_activation_that_a_head_does_not_name_is_refused(tmp_path):
    FAMILIES["deberta-v2"].write(tmp_path)
    path = tmp_path / "task1" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pooler_hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="expected pooler_hidden_act 'gelu', found 'relu'"):
        BACKBONE.open(tmp_path / "task1")
