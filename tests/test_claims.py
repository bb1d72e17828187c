"""What the experiments' READMEs say is in their results: every number, with its error where there are several seeds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TABLES = sorted(f.parent for f in EXPERIMENTS.glob("*/results.json") if "table" in json.loads(f.read_text()))
NUMBER = r"[-−]?\d+(?:\.\d+)?"
CELL = re.compile(rf"(?P<value>{NUMBER})(?: ± (?P<error>{NUMBER}))?(?P<share> ?%)?")


def records(folder: Path) -> list[dict]:
    """Rows of all tables that a command wrote beside a README."""
    files = [f for f in folder.rglob("*.json") if "table" in json.loads(f.read_text())]
    return [row for file in files for row in json.loads(file.read_text())["table"] if row["runs"]]


def rounded(text: str, value: float | None) -> bool:
    """Whether `text` is `value` to the digits it has, either way at a tie."""
    digits = len(text.partition(".")[2])
    return value is not None and abs(float(text.replace("−", "-")) - value) <= 0.5 * 10.0**-digits * (1 + 1e-9)


def cells(folder: Path) -> list[tuple[str, re.Match]]:
    """Numbers of the README's tables of results: those whose rows are settings of the results, or their truth and null."""
    found = []
    for line in (folder / "README.md").read_text("utf-8").splitlines():
        label, *rest = (cell.strip().strip("*") for cell in line.strip("|").split("|"))
        if line.startswith("|") and not set(line) <= set("|-: "):
            found += [(label, match) for cell in rest for match in CELL.finditer(cell)]
    return found


@pytest.mark.parametrize("folder", [f for f in TABLES if not f.name.startswith(("009", "013"))], ids=lambda f: f.name)
def test_means_over_seeds_stand_with_their_errors(folder):
    """A mean of several runs is nowhere without its error (unless that is 0), and both are those of the results."""
    rows = records(folder)
    with_error = [m for _, m in cells(folder) if m["error"]]
    assert with_error
    for match in with_error:
        assert any(
            r["standard_error"] is not None
            and rounded(match["value"], r["mean"])
            and rounded(match["error"], r["standard_error"])
            for r in rows
        ), f"{folder.name}: {match[0]} is no mean ± error of the results"
    several = {r["setting"] for r in rows if r["runs"] > 1 and r["standard_error"]}
    for line in (folder / "README.md").read_text("utf-8").splitlines():
        if not line.startswith("|") or "±" not in line:
            continue
        for cell in line.strip("|").split("|")[1:]:
            for match in CELL.finditer(cell):
                if not match["error"]:
                    fixed = [r for r in rows if r["setting"] in several and r["standard_error"] == 0]
                    single = any(rounded(match["value"], r["mean"]) for r in fixed) or match[0].isdecimal()
                    assert single, f"{folder.name}: {match[0]} stands without its error in\n{line}"


@pytest.mark.parametrize("folder", TABLES, ids=lambda f: f.name)
def test_numbers_without_errors_are_in_the_results(folder):
    values = [r[key] for r in records(folder) for key in ("mean", "ground_truth", "null")]
    if folder.name.startswith("009"):  # beside its own: experiment 013
        text = (EXPERIMENTS / "013_vae_128px" / "results.json").read_text()
        values += [v for v in json.loads(text).values() if isinstance(v, float)]
    for extra in folder.glob("*.json"):
        if "table" not in json.loads(extra.read_text()):
            values += [float(v) for v in re.findall(NUMBER, extra.read_text())]
    values += [100 * v for v in values if v is not None]
    settings = " ".join(r["setting"] for r in records(folder))
    for label, match in cells(folder):
        if match["error"] or label == "013" or re.search(rf"(?<![\d.]){re.escape(match['value'])}(?![\d.])", settings):
            continue
        known = any(rounded(match["value"], v) for v in values)
        assert known or match[0].isdecimal(), f"{folder.name}, {label}: {match[0]} is in no results"


def test_variances_by_the_readout_say_that_they_are():
    """Wherever a table has them, the README and the results say that the video is another matter."""
    for folder in TABLES:
        if not any(r["metric"].startswith("var_ratio/") for r in records(folder)):
            continue
        text = (folder / "README.md").read_text("utf-8")
        assert "linear readout" in text, folder
        for line in text.splitlines():
            if line.startswith("|") and "variance" in line:
                assert "readout" in line, line
        for results in folder.rglob("results.md"):
            assert "not from decoded video" in results.read_text("utf-8"), results


def test_experiment_013_says_what_it_is_told():
    text = (EXPERIMENTS / "013_vae_128px" / "README.md").read_text("utf-8")
    assert text.index("loss.guide") < text.index("**Answer")
    for other in ("009_latent_size", "013_vae_128px"):
        assert {"009", "013"} <= set(
            re.findall(r"\b(?:009|013)\b", (EXPERIMENTS / other / "README.md").read_text() + other)
        )


def test_the_commands_name_the_models_of_their_tables():
    """Experiments 008 and 011 have one and the same L2 model in their tables; so their commands give it."""
    teacher = {r["metric"]: r["mean"] for r in records(EXPERIMENTS / "008_distillation") if "24 passes" in r["setting"]}
    conditions = json.loads((EXPERIMENTS / "011_condition_dropping" / "conditions.json").read_text())["table"]
    same = {r["metric"]: r["mean"] for r in conditions if r["setting"] == "avatar_audio+user_audio+user_motion"}
    shared = [tag for tag in teacher if tag in same]
    assert len(shared) > 5
    assert all(teacher[tag] == pytest.approx(same[tag], rel=1e-3) for tag in shared)
    models = [
        re.search(rf"{option}(\S+/export)", (EXPERIMENTS / name / "README.md").read_text())[1]
        for name, option in (("008_distillation", "START="), ("011_condition_dropping", "--denoiser "))
    ]
    assert len(set(models)) == 1
