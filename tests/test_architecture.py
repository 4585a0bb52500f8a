"""The shape of the code: who may import whom, what is public, how long anything gets."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mingle

SOURCE = Path(mingle.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
STAGES = (
    {"errors", "files"},
    {"registry", "config", "provenance"},
    {"weights"},
    {"subspace"},
    {"layers"},
    {"adaptation"},
    {"backbones"},
    {"methods"},
    {"suites"},
    {"state"},
    {"export"},
    {"evaluation"},
    {"tracking"},
    {"benchmark"},
    {"report"},
    {"cli"},
)
"""Each part imports itself and earlier ones only: the story that the folders tell."""

ORDER = {part: position for position, parts in enumerate(STAGES) for part in parts}
NARROW = {"weights": {"weights", "errors", "files"}}
"""Parts that may import even less than their place allows."""


def part_of(module):
    return module.split(".")[1] if "." in module else None


def module_of(file):
    return ".".join(("mingle", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imported(file):
    """Every module of mingle that a file imports, also inside functions and for types only."""
    module = module_of(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            # `from mingle import layers` or `MergeRun` names a part as much as `from mingle.layers import …`.
            top = [
                mingle._LAZY.get(a.name, f"mingle.{a.name}") for a in node.names if a.name != "__version__"
            ]
            yield from top if source == "mingle" else (source,)


def violations(file):
    part = part_of(module_of(file))
    for name in imported(file):
        other = part_of(name) if name.split(".")[0] == "mingle" else None
        if other is None:
            continue
        allowed = NARROW.get(part) or {p for p, place in ORDER.items() if place <= ORDER[part]}
        if other not in allowed:
            yield f"{module_of(file)} imports {name}"


def parts():
    return [f for f in FILES if f.parent != SOURCE or f.stem not in ("__init__", "__main__")]


def test_every_part_has_its_place_in_the_story():
    found = {part_of(module_of(file)) for file in parts()}
    assert found == set(ORDER)


@pytest.mark.parametrize("file", parts(), ids=module_of)
def test_imports_point_from_later_stages_to_earlier_ones(file):
    assert list(violations(file)) == []


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("layers/x.py", "from mingle.methods import METHODS", ["mingle.layers.x imports mingle.methods"]),
        ("layers/x.py", "def f():\n    import mingle.state", ["mingle.layers.x imports mingle.state"]),
        ("layers/x.py", "from mingle import cli", ["mingle.layers.x imports mingle.cli"]),
        ("layers/x.py", "from mingle import MergeRun", ["mingle.layers.x imports mingle.state"]),
        ("layers/x.py", "from mingle import __version__", []),
        ("layers/x.py", "from ..cli import main", ["mingle.layers.x imports mingle.cli"]),
        ("layers/__init__.py", "from ..cli.run import main", ["mingle.layers imports mingle.cli.run"]),
        ("weights/x.py", "from mingle.config import Options", ["mingle.weights.x imports mingle.config"]),
        (
            "layers/x.py",
            "from mingle.subspace import truncated_svd\nfrom .gate import Gate\nimport torch",
            [],
        ),
    ],
)
def test_the_check_itself_sees_every_way_to_import(tmp_path, monkeypatch, place, text, expected):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    file = tmp_path / place
    file.parent.mkdir()
    file.write_text(text)
    assert list(violations(file)) == expected


def test_tensors_and_modules_are_kept_apart():
    """``subspace`` is linear algebra: it knows no nn.Module."""
    for file in (SOURCE / "subspace").glob("*.py"):
        names = {
            node.attr
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
        }
        imports = list(imported(file))
        assert "Module" not in names
        assert "torch.nn" not in imports


def test_methods_know_no_modality():
    """A method sees layers and logits; whether they come from images or text is the backbone's business."""
    for file in (SOURCE / "methods").glob("*.py"):
        assert not {"transformers", "PIL", "mingle.backbones.clip"} & set(imported(file)), file


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_and_functions_stay_short(file):
    text = file.read_text("utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 50, node.name


def test_public_names_are_pinned():
    names = "BACKBONES METHODS SUITES MergeRun MergedModel MingleError Placement __version__ from_pretrained"
    assert mingle.__all__ == names.split()
    assert dir(mingle) == sorted(mingle.__all__)
    assert all(getattr(mingle, name) is not None for name in mingle.__all__)
    with pytest.raises(AttributeError, match="module 'mingle' has no attribute 'Merge'"):
        mingle.Merge  # noqa: B018


PACKAGES = {
    "adaptation": "OBJECTIVES GateGroup RouterStatistics RouterSystem SeedSelection adapt draw_batches "
    "kl_divergence minimise prediction_entropy router_statistics second_moments select_seeds "
    "soft_cross_entropy watch_inputs",
    "backbones": "BACKBONES Backbone Batch Head Lesson Samples count read_names split take",
    "export": "EXPORT_FILE TARGETS MergedModel Push Target export_run from_pretrained model_card push_run",
    "layers": "ClosedFormGate ClosedFormRouter Decision Energy Gate GateReduction LinearGroup LowRankExpert "
    "MixtureLinear MixtureNorm Placement PooledInput Reading RoutedMLP RouterFeatures RouterForm "
    "Selection StemRouter SubspaceGate TokenRouter TrunkRouter build_expert is_linear is_transposed "
    "kept_wide mixtures select_experts trunk_of unwrap wrap wrap_norms",
    "methods": "METHODS Arrival Base Method NoOptions SeedPool State Step",
    "subspace": "PROJECTIONS WIDE Basis Factors NullSpaceProjector Projection SecondMoment effective_rank "
    "extend_basis numerical_rank polar project_delta svd_of_factors truncated_svd",
    "weights": "Adapter Canonical Checkpoint Conversion Entry LazyTensors Spec check_against check_finite "
    "convert is_hub_id local_path open_checkpoint read_json task_vector",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_names_of_the_core_packages_are_pinned(package):
    module = __import__(f"mingle.{package}", fromlist=["__all__"])
    assert module.__all__ == sorted(module.__all__, key=_isort) == PACKAGES[package].split()
    assert all(hasattr(module, name) for name in module.__all__)


def _isort(name):
    """Constants, then classes, then functions, as ruff sorts ``__all__``."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("statement", ["import mingle", "import mingle.cli", "import mingle.errors"])
def test_torch_is_loaded_only_when_it_is_needed(statement):
    code = f"import sys; {statement}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
