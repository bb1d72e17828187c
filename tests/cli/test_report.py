from __future__ import annotations

import csv
import json

import pytest

from af.cli.jobs import Job, record
from af.cli.main import main
from af.files import write_json

BETTER = {"react/smile": "true", "mouth/corr": "higher"}


def evaluated(folder, smile, mouth, **settings):
    metrics = {"react/smile": smile, "react/smile/true": 0.4, "react/smile/null": 0.01, "mouth/corr": mouth}
    write_json(folder / "metrics.json", {**metrics, "better": BETTER})
    (folder / "metrics.md").write_text("# Evaluation\n")
    write_json(folder / "evaluation.json", {"steps": 8, **settings})


@pytest.fixture
def sweep(tmp_path):
    """Two settings, two seeds, the last job not there yet: smiles 0.1 and 0.3 with drops, 0.2 without."""
    folder = tmp_path / "sweep"
    for n, (user, seed, smile) in enumerate([(0.1, 0, 0.1), (0.1, 1, 0.3), (0.0, 0, 0.2), (0.0, 1, None)]):
        stages = {"train": ["train", "experiment=denoiser_demo", f"seed={seed}", f"module.dropout.user={user}"]}
        job = Job(folder / f"job{n}", {"seed": seed, "user": user}, stages)
        job.write()
        record(job, "started")
        if smile is not None:
            config = {
                "module": {"dropout": {"user": user}, "lr": 1e-3},
                "run": str(job.folder),
                "seed": seed,
                "tags": ["t"],
            }
            write_json(job.folder / "denoiser" / "config.json", config)
            evaluated(job.folder / "evaluation", smile, 0.5 + 0.1 * n)
            record(job, "finished")
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
    assert "job3`: started" in text
    assert "af train experiment=denoiser_demo seed=1 module.dropout.user=0.1" in text
    with open(sweep / "report" / "table.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(content["table"])
    assert (sweep / "report" / "plots" / "react_smile.png").stat().st_size > 1000


def test_what_differs_is_listed_and_seeds_and_folders_are_not(sweep):
    differences = report(sweep)["config_differences"]
    assert differences == {"denoiser/module.dropout.user": {"user=0.1": [0.1], "user=0.0": [0.0]}}


def test_runs_of_one_name_with_other_values_are_not_averaged(sweep):
    job = Job(sweep / "job9", {"seed": 2, "user": 0.1}, {})
    job.write()
    write_json(
        job.folder / "denoiser" / "config.json", {"module": {"dropout": {"user": 0.1}, "lr": 1.0}, "tags": ["t"]}
    )
    evaluated(job.folder / "evaluation", 0.9, 0.9)
    names = {r["setting"] for r in report(sweep)["table"]}
    assert {"user=0.1, denoiser/module.lr=0.001", "user=0.1, denoiser/module.lr=1.0"} <= names


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
