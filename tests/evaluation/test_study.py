"""The study kit: blinded page, exact numbers, raters who do not look are left out."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from af.cli.main import main
from af.data.video_writer import write_video
from af.evaluation.study import QUESTIONS, StudyKey
from af.evaluation.study_score import exact_interval, fleiss_kappa, score_answers, score_markdown
from tests.browser import dom_after, needs_browser

ALL = [q[0] for q in QUESTIONS]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for system in ("our system", "baseline"):
        for name in ("talk 1", "talk 2", "only " + system):
            frames = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
            write_video(root / system / f"{name}.mp4", frames, rng.normal(size=6 * 640).astype(np.float32) * 0.1)
    for name in ("talk 1", "talk 2"):
        write_video(root / "users" / f"{name}.mp4", rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    folders = [str(root / "our system"), str(root / "baseline"), "--user", str(root / "users")]
    assert main(["study", "make", *folders, "--out", str(root / "out"), "--checks", "1"]) == 0
    return root / "out"


def page_data(study: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', (study / "study.html").read_text(), re.S).group(1))


def test_page_is_blind_and_whole(study):
    page, data, key = (study / "study.html").read_text(), page_data(study), json.loads((study / "key.json").read_text())
    for word in ("our system", "baseline", "talk 1", "check on"):
        assert word not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert len(data["trials"]) == 3  # two common names and a check
    assert [q["id"] for q in data["questions"]] == ALL
    assert {t for trial in data["trials"] for t in trial["videos"]} == set(key["systems"])
    assert all(trial["user"] for trial in data["trials"])
    assert sorted(key["systems"].values()) == ["baseline", "baseline", "check", "check", "our system", "our system"]
    (check,) = key["checks"]
    assert key["checks"][check] in next(t for t in data["trials"] if t["id"] == check)["videos"]


def test_a_video_is_not_compared_with_itself(tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / "a" / "talk.mp4", frames)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert main(["study", "make", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) != 0
    assert "the same video" in (said := capsys.readouterr().err)
    assert "talk" in said
    assert not (tmp_path / "out").exists()


def sheet(study: Path, rater: str, favour: str, attentive: bool = True) -> dict:
    key, data = json.loads((study / "key.json").read_text()), page_data(study)
    answers = []
    for trial in data["trials"]:
        tokens = list(trial["videos"])
        if trial["id"] in key["checks"]:
            right = key["checks"][trial["id"]]
            choice = right if attentive else next(t for t in tokens if t != right)
        else:
            choice = "tie" if favour == "tie" else next(t for t in tokens if key["systems"][t] == favour)
        answers.append(
            {"trial": trial["id"], "left": tokens[0], "right": tokens[1], "choices": dict.fromkeys(ALL, choice)}
        )
    return {"study": key["study"], "rater": rater, "answers": answers}


def test_scores_by_command(study, tmp_path, capsys):
    sheets = [
        sheet(study, "ann", "our system"),
        sheet(study, "bob", "our system"),
        sheet(study, "cy", "baseline"),
        sheet(study, "dee", "tie"),
        sheet(study, "eve", "baseline", attentive=False),
    ]
    paths = []
    for s in sheets:
        paths.append(tmp_path / f"answers-{s['rater']}.json")
        paths[-1].write_text(json.dumps(s))
    out = tmp_path / "result"
    assert main(["study", "score", str(study / "key.json"), *map(str, paths), "--out", str(out)]) == 0
    score = json.loads((out / "score.json").read_text())
    overall = next(p for p in score["preferences"] if p["question"] == "overall")
    assert score["a"] == "our system"
    assert (overall["wins_a"], overall["wins_b"], overall["ties"]) == (4, 2, 2)
    raters = {r["name"]: r for r in score["raters"]}
    assert not raters["eve"]["used"]
    assert raters["ann"]["used"]
    assert raters["eve"]["failed"] == 1
    assert raters["bob"]["agreement"] is None or 0 <= raters["bob"]["agreement"] <= 1
    assert "eve" in (out / "score.md").read_text()


#: What a rater does: name, every trial to its end with the chosen side, save; the answers end up in the page itself.
RATER = """
const kept = URL.createObjectURL;
URL.createObjectURL = blob => {
  if (blob.type !== "application/json") return "about:blank";  // no video is decoded: the test says when it has ended
  blob.text().then(text => document.body.dataset.answers = btoa(text));
  return kept(blob);
};
HTMLMediaElement.prototype.play = () => Promise.resolve();
HTMLAnchorElement.prototype.click = () => {};  // a download would keep the browser from ending
const favoured = new Set(FAVOURED), problems = [];
const press = text => [...document.querySelectorAll("button")].find(b => b.textContent.includes(text)).click();
const name = document.querySelector("input");
name.value = "eve 1"; name.dispatchEvent(new Event("input")); press("Begin");
for (let trial = 0; trial < TRIALS; trial++) {
  const next = document.querySelector(".next button");
  const choose = q => q.querySelectorAll("input").forEach(i => { if (favoured.has(i.value)) i.click(); });
  document.querySelectorAll(".question").forEach(choose);
  if (!next.disabled) problems.push("Next without watching");
  for (const [side, number] of [["left", 0], ["right", document.querySelectorAll("video").length - 1]]) {
    press(side); document.querySelectorAll("video")[number].dispatchEvent(new Event("ended"));
  }
  if (next.disabled) problems.push("no Next after watching");
  next.click();
}
document.body.dataset.problems = problems.join("; ");
press("Save");
"""


@needs_browser
def test_a_rater_gets_through_the_page_in_a_browser(study, tmp_path):
    key, data = json.loads((study / "key.json").read_text()), page_data(study)
    favoured = [t for t, system in key["systems"].items() if system == "our system"] + list(key["checks"].values())
    script = RATER.replace("FAVOURED", json.dumps(favoured)).replace("TRIALS", str(len(data["trials"])))
    dom = dom_after((study / "study.html").read_text(), script, tmp_path)
    assert 'data-problems=""' in dom
    answers = tmp_path / "answers.json"
    answers.write_bytes(base64.b64decode(re.search(r'data-answers="([^"]+)"', dom).group(1)))
    sheet = json.loads(answers.read_text())
    assert sorted(a["trial"] for a in sheet["answers"]) == sorted(t["id"] for t in data["trials"])
    assert main(["study", "score", str(study / "key.json"), str(answers), "--out", str(tmp_path / "result")]) == 0
    score = json.loads((tmp_path / "result" / "score.json").read_text())
    assert (score["a"], score["b"]) == ("our system", "baseline")
    assert [(p["wins_a"], p["wins_b"]) for p in score["preferences"]] == [(2, 0)] * len(ALL)
    assert score["raters"][0]["failed"] == 0


def test_bad_answers_are_named(study, tmp_path, capsys):
    good = tmp_path / "a.json"
    good.write_text(json.dumps(sheet(study, "ann", "tie")))
    other = tmp_path / "b.json"
    other.write_text(json.dumps(sheet(study, "bob", "tie") | {"study": "another"}))
    broken = tmp_path / "c.json"
    broken.write_text("{")
    for path, words in ((other, "belong to study 'another'"), (broken, "c.json cannot be read"), (good, "two files")):
        assert main(["study", "score", str(study / "key.json"), str(good), str(path)]) == 1
        assert words in capsys.readouterr().err
    assert main(["study", "make", str(tmp_path), str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_exact_interval_and_kappa_by_hand():
    assert_allclose(exact_interval(0, 10), [0, 1 - 0.025 ** (1 / 10)])
    assert_allclose(exact_interval(10, 10), [0.025 ** (1 / 10), 1])
    low, high = exact_interval(5, 10)
    assert_allclose(low, 1 - high)
    assert np.isnan(exact_interval(0, 0)).all()
    assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1
    # two raters, two items, always apart: observed 0, chance 1/2
    assert fleiss_kappa(np.array([[1, 1], [1, 1]])) == -1


def test_agreement_with_the_majority_of_the_others():
    key = StudyKey("s", {"x": "A", "y": "B"}, {"t": "t"})

    def answers(rater: str, choice: str) -> dict:
        return {"study": "s", "rater": rater, "answers": [{"trial": "t", "choices": {"overall": choice}}]}

    score = score_answers(key, [answers("1", "x"), answers("2", "x"), answers("3", "y")])
    agreement = {r.name: r.agreement for r in score.raters}
    assert agreement["3"] == 0
    assert np.isnan(agreement["1"])  # the others disagree with each other: no majority
    overall = next(p for p in score.preferences if p.question == "overall")
    assert (overall.wins_a, overall.wins_b) == (2, 1)
    assert_allclose(overall.p, 1.0)
    assert "66.7%" in score_markdown(score)
