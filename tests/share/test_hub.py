"""Hub folders go to a hub and come back whole, in spite of faults, and without a network from the cache."""

from __future__ import annotations

import time

import pytest
from huggingface_hub import constants

from af import Avatar
from af.cli.main import main
from af.errors import UserError
from af.share.folder import MODEL_FILES, verify, write_folder
from tests.share.stand_in import StandIn

REPO = "ann/avatar"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """HF_ENDPOINT and HF_HOME, which are read at the import of huggingface_hub."""
    stand_in = StandIn(REPO)
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: wait(min(s, 0.25)))  # between attempts
    yield stand_in
    stand_in.stop()


@pytest.fixture
def folder(models, tmp_path):
    write_folder(tmp_path / "hub", *models)
    (tmp_path / "hub" / "README.md").write_text("# Ann\n")
    (tmp_path / "hub" / "notes.txt").write_text("not to be handed on")
    return tmp_path / "hub"


@pytest.fixture
def pushed(hub, folder):
    hub.exists = True
    hub.commit({name: (folder / name).read_bytes() for name in ("avatar.json", "README.md", *MODEL_FILES)})
    return hub


def test_push_and_pull_give_the_same_files(hub, folder, tmp_path, capsys):
    assert main(["share", "push", str(folder), REPO]) == 0
    assert f"{hub.url}/{REPO}/commit/{hub.refs['main']}" in capsys.readouterr().out
    assert set(hub.commits[hub.refs["main"]]) == {"avatar.json", "README.md", *MODEL_FILES}
    assert main(["share", "pull", REPO, "--out", str(tmp_path / "pulled")]) == 0
    for name, content in hub.commits[hub.refs["main"]].items():
        assert (tmp_path / "pulled" / name).read_bytes() == content == (folder / name).read_bytes()
    avatar = Avatar.from_pretrained(REPO)
    assert avatar.push_to_hub(REPO).endswith(hub.refs["main"])  # what is unchanged makes no commit
    assert len(hub.commits) == 1


def test_what_is_no_name_or_no_place_is_said_before_anything_is_done(hub, folder, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    for command, what in (
        (["push", str(folder), "../ann"], "give OWNER/NAME"),
        (["pull", "ann", "--out", str(tmp_path / "pulled")], "give OWNER/NAME"),
        (["pull", REPO, "--out", str(tmp_path / "mine")], "not empty, and no hub folder"),
    ):
        assert main(["share", *command]) == 1
        assert what in capsys.readouterr().err
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    with pytest.raises(UserError, match="give OWNER/NAME"):
        Avatar.from_pretrained(folder).push_to_hub("ann")
    assert not hub.asked
    assert not hub.exists


def test_a_folder_that_is_not_whole_is_not_pushed(hub, folder, capsys):
    (folder / "README.md").unlink()
    assert main(["share", "push", str(folder), REPO]) == 1
    assert "no model card" in capsys.readouterr().err
    (folder / MODEL_FILES[1]).write_bytes(b"")
    assert main(["share", "push", str(folder), REPO]) == 1
    assert "cut off" in capsys.readouterr().err
    assert not hub.exists


@pytest.mark.parametrize("fault", ["cut", "slow"])
def test_cut_and_slow_connections(pushed, monkeypatch, fault):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    pushed.fault = lambda path, before: fault if before < 2 and path.endswith("safetensors") else None
    avatar = Avatar.from_pretrained(REPO)
    assert avatar.folders is not None
    assert len(verify(avatar.folders[0].parent).files) == len(MODEL_FILES)
    assert all(pushed.asked[name] >= 3 for name in MODEL_FILES if name.endswith("safetensors"))


def test_a_hub_that_goes_away_is_one_line_and_the_same_call_goes_on(pushed):
    pushed.fault = lambda path, before: "503" if path == MODEL_FILES[3] else None
    with pytest.raises(UserError, match=rf"{REPO}.*the same command continues") as error:
        Avatar.from_pretrained(REPO)
    assert "\n" not in str(error.value)
    pushed.fault = lambda path, before: None
    Avatar.from_pretrained(REPO)
    assert pushed.asked[MODEL_FILES[1]] == 1  # was there


def test_without_a_network_the_cache_has_to_do(pushed, monkeypatch):
    Avatar.from_pretrained(REPO)
    asked = pushed.asked.copy()
    Avatar.from_pretrained(REPO)
    assert pushed.asked == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Avatar.from_pretrained(REPO)
    with pytest.raises(UserError, match="cannot be reached"):
        Avatar.from_pretrained("ann/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    pushed.stop()
    Avatar.from_pretrained(REPO)
    with pytest.raises(UserError, match="cannot be reached"):
        Avatar.from_pretrained(REPO, revision="v2")


def test_revisions(pushed, folder):
    first = pushed.refs["main"]
    pushed.refs["v1"] = first
    pushed.commit({"avatar.json": b"{}"})
    for revision in ("v1", first):
        Avatar.from_pretrained(REPO, revision=revision)
    with pytest.raises(UserError, match=r"avatar\.json cannot be used"):
        Avatar.from_pretrained(REPO)
    with pytest.raises(UserError, match="no revision 'v9'"):
        Avatar.from_pretrained(REPO, revision="v9")
    with pytest.raises(UserError, match=r"not on http.*or not for you"):
        Avatar.from_pretrained("ann/nothing")
    with pytest.raises(UserError, match="has no revision"):
        Avatar.from_pretrained(folder, revision="v1")


@pytest.mark.parametrize("more", [b"0" * 1000, None])
def test_wrong_sizes_are_noticed_before_the_download(pushed, more):
    name = MODEL_FILES[3]
    content = pushed.commits[pushed.refs["main"]][name]
    pushed.commit({name: content[:-8] if more is None else content + more})
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes on the hub"):
        Avatar.from_pretrained(REPO)
    assert pushed.asked[name] == 0
    pushed.commit({"avatar.json": b" " * 2**21})
    with pytest.raises(UserError, match=r"avatar\.json has 2097152 bytes"):
        Avatar.from_pretrained(REPO)


def test_other_weights_of_the_same_size_are_refused(pushed):
    name = MODEL_FILES[1]
    content = pushed.commits[pushed.refs["main"]][name]
    pushed.commit({name: content[:-1] + bytes([content[-1] ^ 1])})
    with pytest.raises(UserError, match=r"is not the file that avatar\.json names"):
        Avatar.from_pretrained(REPO)
