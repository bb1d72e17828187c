from __future__ import annotations

import csv
import json

import pytest

from af.cli.main import main
from af.files import write_json

BETTER = {"react/smile": "true", "mouth/corr": "higher"}


def evaluated(folder, smile, mouth, **settings):
    metrics = {"react/smile": smile, "react/smile/true": 0.4, "react/smile/null": 0.01, "mouth/corr": mouth}
    write_json(folder / "metrics.json", {**metrics, "better": BETTER, "headline": list(BETTER)})
    (folder / "metrics.md").write_text("# Evaluation\n")
    write_json(folder / "evaluation.json", {"steps": 8, **settings})


def job(folder, config=None, **swept):
    """A job of a multirun, begun if it has a `config`."""
    write_json(folder / "job.json", {"swept": swept, "command": [], "config": {}})
    if config is not None:
        write_json(folder / "config.json", config)
        command = ["af", "train", "experiment=denoiser_demo", *(f"{key}={value}" for key, value in swept.items())]
        write_json(folder / "environment.json", {"command": command})
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two settings, two seeds, the last job not there yet: smiles 0.1 and 0.3 with drops, 0.2 without."""
    folder = tmp_path / "sweep"
    for n, (user, seed, smile) in enumerate([(0.1, 0, 0.1), (0.1, 1, 0.3), (0.0, 0, 0.2), (0.0, 1, None)]):
        config = {
            "module": {"dropout": {"user": user}, "lr": 1e-3},
            "run": str(folder / f"job{n}"),
            "seed": seed,
            "tags": ["t"],
        }
        job(folder / f"job{n}", None if smile is None else config, seed=seed, user=user)
        if smile is not None:
            evaluated(folder / f"job{n}" / "evaluation", smile, 0.5 + 0.1 * n)
    return folder


def report(folder, *more):
    assert main(["report", str(folder), *more]) == 0
    return json.loads((folder / "report" / "table.json").read_text())


def test_half_a_sweep_has_a_table_with_means_over_seeds(sweep, capsys):
    content = report(sweep)
    rows = {(r["setting"], r["metric"]): r for r in content["table"]}
    smile = rows["user=0.1", "react/smile"]
    assert smile["mean"] == pytest.approx(0.2)
    assert smile["standard_error"] == pytest.approx(0.1)  # √(0.02 / 2)
    assert (smile["runs"], smile["ground_truth"], smile["null"]) == (2, pytest.approx(0.4), pytest.approx(0.01))
    assert rows["user=0.0", "react/smile"]["runs"] == 1
    assert rows["user=0.0", "mouth/corr"]["best"]
    assert not rows["user=0.1", "mouth/corr"]["best"]
    assert "3 of 4 runs have numbers yet" in capsys.readouterr().out
    text = (sweep / "report" / "table.md").read_text()
    assert "job3`" in text
    assert "af train experiment=denoiser_demo seed=1 user=0.1" in text
    with open(sweep / "report" / "table.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(content["table"])
    assert (sweep / "report" / "plots" / "react_smile.png").stat().st_size > 1000


def test_what_differs_is_listed_and_seeds_and_folders_are_not(sweep):
    differences = report(sweep)["config_differences"]
    assert differences == {"module.dropout.user": {"user=0.1": [0.1], "user=0.0": [0.0]}}


def test_runs_of_one_name_with_other_values_are_not_averaged(sweep):
    config = {"module": {"dropout": {"user": 0.1}, "lr": 1.0}, "tags": ["t"]}
    evaluated(job(sweep / "job9", config, seed=2, user=0.1) / "evaluation", 0.9, 0.9)
    names = {r["setting"] for r in report(sweep)["table"]}
    assert {"user=0.1, module.lr=0.001", "user=0.1, module.lr=1.0"} <= names


def test_several_evaluations_of_a_job_are_rows_of_their_own(sweep):
    evaluated(sweep / "job0" / "evaluation" / "drift", 0.7, 0.7)
    rows = {(r["setting"], r["metric"]): r["mean"] for r in report(sweep)["table"]}
    assert rows["user=0.1, evaluation=evaluation/drift", "react/smile"] == pytest.approx(0.7)
    assert rows["user=0.1, evaluation=evaluation", "react/smile"] == pytest.approx(0.1)
    assert rows["user=0.1", "react/smile"] == pytest.approx(0.3)


def test_plain_runs_by_folder_and_by_tag(sweep, tmp_path, capsys):
    run = tmp_path / "mine"
    write_json(run / "denoiser" / "config.json", {"module": {"lr": 0.5}, "tags": ["final", "x"]})
    write_json(run / "denoiser" / "environment.json", {"command": ["af", "train", "module.lr=0.5"]})
    evaluated(run / "evaluation", 0.3, 0.3)
    assert main(["report", str(tmp_path), "--tag", "final", "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [r["folder"] for r in content["runs"]] == [str(run / "evaluation")]
    assert content["runs"][0]["commands"] == ["af train module.lr=0.5"]
    assert main(["report", str(tmp_path), "--tag", "nothing"]) == 1
    assert main(["report", str(tmp_path / "nowhere")]) == 1


def test_columns_of_ones_own(sweep):
    assert {r["metric"] for r in report(sweep, "--metrics", "mouth/corr")["table"]} == {"mouth/corr"}


def test_jobs_of_one_seed_on_other_data_are_not_averaged(sweep):
    """The same sweep again with other latents: nothing but a path tells."""
    for n, latents in enumerate(["data/a", "data/b", "data/a"]):
        folder = job(sweep / f"more{n}", {"data": {"root": latents}, "run": str(n)}, seed=n // 2, user=0.5)
        evaluated(folder / "evaluation", 0.1 * n, 0.5, denoiser=str(n), data=f"{latents}/test")
    runs = {r["setting"]: r["runs"] for r in report(sweep)["table"] if r["setting"].startswith("user=0.5")}
    assert sorted(runs.values()) == [1, 2]
    assert any("data.root=data/b" in name for name in runs)


def test_a_job_on_its_way_is_in_the_row_of_those_that_ended(sweep):
    """It has a configuration of its training and none of its evaluation yet."""
    config = {"module": {"dropout": {"user": 0.0}, "lr": 1e-3}, "seed": 1, "tags": ["t"]}
    write_json(sweep / "job3" / "config.json", config)
    content = report(sweep)
    assert {run["setting"] for run in content["runs"]} == {"user=0.1", "user=0.0"}
    assert list(content["config_differences"]) == ["module.dropout.user"]


def test_an_evaluation_counts_once_however_it_is_named(sweep, tmp_path):
    evaluated(tmp_path / "mine" / "evaluation", 0.3, 0.3)
    out = tmp_path / "out"
    places = [str(tmp_path), str(tmp_path / "mine"), str(tmp_path / "sweep" / ".." / "sweep")]
    assert main(["report", *places, "--out", str(out)]) == 0
    assert len(json.loads((out / "table.json").read_text())["runs"]) == 4 + 1


def test_an_evaluation_within_a_job_can_be_asked_for_alone(sweep):
    content = report(sweep / "job0" / "evaluation")
    assert [run["folder"] for run in content["runs"]] == [str(sweep / "job0" / "evaluation")]


def test_a_row_of_subsets_is_no_evaluation_but_a_folder_may_be_called_conditions(tmp_path):
    folder = tmp_path / "conditions"
    evaluated(folder / "mine", 0.3, 0.3)
    evaluated(folder / "mine" / "conditions" / "none", 0.1, 0.1)
    metrics = folder / "mine" / "conditions" / "none" / "metrics.json"
    write_json(metrics, {**json.loads(metrics.read_text()), "signals": []})
    assert [run["folder"] for run in report(folder)["runs"]] == [str(folder / "mine")]


def test_numbers_of_two_trackers_are_not_mixed(tmp_path, capsys):
    evaluated(tmp_path / "a", 0.3, 0.3, faces="synthetic/1")
    evaluated(tmp_path / "b", 0.3, 0.3, faces="latent-readout/0123")
    assert main(["report", str(tmp_path)]) == 1
    assert "latent-readout/0123: " in capsys.readouterr().err
    assert main(["report", str(tmp_path / "a")]) == 0
    evaluated(tmp_path / "a" / "filmed", 0.3, 0.3, faces=None)  # nobody read its faces: no second tracker
    assert main(["report", str(tmp_path / "a")]) == 0
