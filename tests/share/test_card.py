"""A card says what runs recorded, and nothing else."""

from __future__ import annotations

import json

import pytest

from af import Avatar
from af.cli.main import main
from af.errors import UserError
from af.files import write_json
from af.models.artifact import load_model
from af.share.card import allowed_licence
from af.share.folder import verify
from tests.share.conftest import DRAWN, FILMED, evaluate, save_models


def card(folder, models, *more) -> int:
    evaluation = folder / "evaluation"
    if not evaluation.is_dir():
        evaluate(evaluation, models)
    places = ["--autoencoder", str(models[0]), "--denoiser", str(models[1]), "--evaluation", str(evaluation)]
    return main(["share", "card", *places, "--out", str(folder / "hub"), *more])


def test_a_card_has_recipe_data_numbers_and_limits(models, tmp_path, capsys):
    assert card(tmp_path, models, "--licence", "Apache-2.0", "--name", "Ann") == 0
    text = (tmp_path / "hub" / "README.md").read_text()
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert "license: apache-2.0" in head.splitlines()
    for said in (
        "# Ann\n", "af train experiment=x seed=3", "commit `abc1`", load_model(models[1]).digest,
        "| synthetic | CC0-1.0 | shows no real people | 1.00 |", "drawn people",
        "| react/smile | 0.25 ± 0.02 | – | 0.3 | 0.01 | 8 | a\\|b |", "None of the people in them was trained on",
        "| latency/mean_ms ↓ | 280.7 | ms |", "Some CPU, 2 cores", "3 steps a block (euler, uniform), guidance audio 1.5, user 1, anchored",
        "Worse than the null by more than a standard error: `lip/corr`", "## Misuse", "## Disclosure",
    ):  # fmt: skip
        assert said in body, said
    assert "{" not in body
    assert verify(tmp_path / "hub").sampling["steps"] == 3  # as the evaluation


def test_numbers_that_no_run_printed_are_refused(models, tmp_path, capsys):
    evaluation = evaluate(tmp_path / "evaluation", models)
    whole = json.loads((evaluation / "metrics.json").read_text())
    for tag in ("react/smile", "react/smile/true", "react/smile/null"):
        write_json(evaluation / "metrics.json", {**whole, tag: 0.9})
        assert card(tmp_path, models) == 1
        assert "no run printed these numbers" in capsys.readouterr().err
    write_json(evaluation / "metrics.json", {**whole, "better": {**whole["better"], "fd/exp": "lower"}, "fd/exp": 0.1})
    assert card(tmp_path, models) == 1
    write_json(evaluation / "metrics.json", whole)
    settings = json.loads((evaluation / "evaluation.json").read_text())
    write_json(evaluation / "evaluation.json", {**settings, "denoiser": "0" * 64})
    assert card(tmp_path, models) == 1
    assert "another denoiser" in capsys.readouterr().err
    write_json(evaluation / "evaluation.json", settings)
    for name, wrong in (("metrics.json", {"clips": 3}), ("metrics.json", []), ("evaluation.json", [])):
        kept = (evaluation / name).read_bytes()
        write_json(evaluation / name, wrong)
        assert card(tmp_path, models) == 1
        assert "not as af evaluate writes them" in capsys.readouterr().err
        (evaluation / name).write_bytes(kept)
    (evaluation / "metrics.md").unlink()
    assert card(tmp_path, models) == 1
    assert "did not finish" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()


def test_a_refused_card_leaves_the_folder_as_it_was(models, tmp_path):
    """Weights under a card of others' numbers would be worse than none."""
    evaluation = evaluate(tmp_path / "evaluation", models)
    avatar = Avatar.load(*models)
    avatar.save_pretrained(tmp_path / "hub", evaluation=evaluation)
    assert verify(tmp_path / "hub").sampling["steps"] == 3
    before = {file: file.read_bytes() for file in (tmp_path / "hub").rglob("*") if file.is_file()}
    settings = json.loads((evaluation / "evaluation.json").read_text())
    write_json(evaluation / "evaluation.json", {**settings, "denoiser": "0" * 64})
    with pytest.raises(UserError, match="another denoiser"):
        avatar.save_pretrained(tmp_path / "hub", evaluation=evaluation)
    assert {file: file.read_bytes() for file in (tmp_path / "hub").rglob("*") if file.is_file()} == before


def test_non_commercial_stays_non_commercial(tmp_path, capsys):
    models = save_models(tmp_path, [DRAWN, FILMED])
    assert card(tmp_path, models, "--licence", "apache-2.0") == 1
    assert "Seamless Interaction (CC-BY-NC-4.0)" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()
    assert card(tmp_path, models) == 0
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in text
    assert "Not for commercial use" in text
    assert "What the people shown agreed to is not recorded" in text
    # what is exported of the folder, and what starts from it, says so, too
    from af.data.provenance import SOURCES, sources_of, with_earlier

    assert main(["export", str(tmp_path / "hub" / "denoiser"), "--out", str(tmp_path / "export")]) == 0
    exported = load_model(tmp_path / "export").info
    assert FILMED in exported[SOURCES]
    assert FILMED in sources_of(with_earlier({SOURCES: [DRAWN]}, exported))
    with pytest.raises(UserError, match="stay non-commercial"):
        allowed_licence("mit", sources_of(with_earlier({SOURCES: [DRAWN]}, exported)))


def test_what_is_not_recorded_is_said(tmp_path):
    assert card(tmp_path, save_models(tmp_path, [])) == 0
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "license: unknown" in text
    assert "no licence is recorded" in text
