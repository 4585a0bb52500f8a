"""Pushing to the hub, with a hub that is made up."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

import mingle
from mingle.errors import ConfigError, ExportError
from mingle.export import push_run


class Hub:
    """Remembers what was asked of it."""

    def __init__(self, *, private=True, files=None):
        self.private, self.calls = private, []

    def create_repo(self, repo, *, private, exist_ok):
        self.calls.append(("create", repo, private, exist_ok))

    def repo_info(self, repo):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        self.opened = mingle.from_pretrained(folder_path).tasks
        self.card = (folder_path / "README.md").read_text()
        self.calls.append(("upload", repo_id, delete_patterns))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


class Unreachable(Hub):
    def upload_folder(self, **_):
        raise HTTPError("Name not known\nmore")


class Forbidden(Hub):
    def create_repo(self, repo, *, private, exist_ok):
        raise LocalTokenNotFoundError("Token is required\nmore")


def test_a_dry_run_asks_nothing_of_the_hub(averaged):
    hub = Hub()
    found = push_run(averaged, "me/model", with_base=True, api=hub)
    assert hub.calls == []
    assert found.url is None
    assert found.private
    assert {"README.md", "mingle.json", "base/model.safetensors"} < found.files.keys()
    assert all(size > 0 for size in found.files.values())
    assert 'mingle.from_pretrained("me/model")' in found.card
    assert "# model\n" in found.card


def test_an_upload_is_private_and_opens_again(averaged):
    hub = Hub()
    found = push_run(averaged, "me/model", upload=True, with_base=True, api=hub)
    assert hub.calls == [
        ("create", "me/model", True, True),
        ("upload", "me/model", ["steps/*", "base/*", "heads/*"]),
    ]
    assert hub.opened == averaged.tasks
    assert hub.card == found.card
    assert found.url == "https://hub/me/model/commit/1"


def test_a_public_repository_is_not_filled_by_accident(averaged):
    hub = Hub(private=False)
    with pytest.raises(ExportError, match="exists and is public, and nothing was sent"):
        push_run(averaged, "me/model", upload=True, with_base=True, api=hub)
    assert [call[0] for call in hub.calls] == ["create"]
    push_run(averaged, "me/model", upload=True, private=False, with_base=True, api=hub)
    assert [call[0] for call in hub.calls] == ["create", "create", "upload"]


def test_a_private_repository_is_not_called_public(averaged):
    hub = Hub(private=True)
    with pytest.raises(ExportError, match="exists and is private, and nothing was sent; make it public"):
        push_run(averaged, "me/model", upload=True, private=False, with_base=True, api=hub)
    assert [call[0] for call in hub.calls] == ["create"]


def test_a_hub_out_of_reach_is_said_in_a_line(averaged):
    with pytest.raises(
        ExportError, match=r"did not take it \(Name not known\); check the connection"
    ) as found:
        push_run(averaged, "me/model", upload=True, with_base=True, api=Unreachable())
    assert "\n" not in str(found.value)


def test_refusals(averaged):
    with pytest.raises(ConfigError, match="expected user/name, found 'model'"):
        push_run(averaged, "model")
    with pytest.raises(ExportError, match="its base is a folder of this machine"):
        push_run(averaged, "me/model")
    with pytest.raises(
        ExportError, match=r"did not take it \(Token is required\); check the connection, and log in"
    ):
        push_run(averaged, "me/model", upload=True, with_base=True, api=Forbidden())


def test_a_base_on_the_hub_is_named_in_the_card(averaged):
    run = mingle.MergeRun.open(averaged.path, base="owner/base")
    with pytest.raises(ExportError, match="its base is a folder"):
        push_run(averaged, "me/model")
    card = push_run(run, "me/model").card
    assert "base_model: owner/base" in card
    assert "| base | owner/base |" in card
