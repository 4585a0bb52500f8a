"""mingle export and mingle push."""

import json

import mingle
from mingle.export import TARGETS


def prepared(zoo, folder):
    run = mingle.MergeRun.create(folder, zoo / "base", method="average")
    run.add(zoo / "task1")
    return folder


def test_export_lists_its_forms_and_writes_one(call, zoo, tmp_path):
    run = prepared(zoo, tmp_path / "run")
    code, out, _ = call("export", run)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == TARGETS.names()
    code, out, _ = call("export", run, "--to", "hf", "--with-base", "--json")
    content = json.loads(out)
    assert (code, content["target"], content["options"]) == (0, "hf", {"with_base": True, "repo": None})
    assert mingle.from_pretrained(tmp_path / "run-hf").tasks == ("task1",)
    code, _, err = call("export", run, "--to", "hf", "--with-base")
    assert (code, err.count("\n")) == (1, 1)
    assert "replace it with force (--force)" in err
    code, out, _ = call("export", run, "--to", "hf", "--with-base", "--force")
    assert (code, out.startswith(f"{tmp_path / 'run-hf'}: hf, ")) == (0, True)


def test_an_option_of_another_form_is_a_wrong_call(call, zoo, tmp_path):
    code, _, err = call("export", prepared(zoo, tmp_path / "run"), "--to", "merged", "--no-logits")
    assert (code, err) == (2, "mingle: export to 'merged': unknown option 'logits'; known: task, shard_mb\n")


def test_scores_come_from_a_file(call, zoo, tmp_path, shared_suite):
    run = prepared(zoo, tmp_path / "run")
    _, out, _ = call("eval", run, "--suite", shared_suite, "--json")
    scores = tmp_path / "scores.json"
    scores.write_text(out)
    assert call("export", run, "--to", "hf", "--results", scores)[0] == 0
    acc = json.loads(out)["metrics"]["acc"]
    assert (
        f"| ACC, mean accuracy over the tasks | {100 * acc:.1f} |"
        in (tmp_path / "run-hf" / "README.md").read_text()
    )
    scores.write_text("[]")
    code, _, err = call("push", run, "me/model", "--results", scores)
    assert (code, "expected a JSON object, found list" in err) == (2, True)


def test_push_shows_and_sends_nothing(call, zoo, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a dry run does not touch the hub")

    monkeypatch.setattr("mingle.export.push._upload", refuse)
    run = prepared(zoo, tmp_path / "run")
    code, out, _ = call("push", run, "me/model", "--with-base")
    assert code == 0
    assert out.endswith("dry run, nothing was sent; add --yes to upload\n")
    assert "me/model (private): " in out
    assert "library_name: mingle" in out
    monkeypatch.setattr("mingle.export.push._upload", lambda *args: "https://hub/commit")
    code, out, _ = call("push", run, "me/model", "--with-base", "--yes", "--public", "--json")
    assert (json.loads(out)["url"], json.loads(out)["private"]) == ("https://hub/commit", False)
