"""Rows as files and on the terminal."""

from __future__ import annotations

import json

from af.evaluation.table import console_table, headline, markdown_table, write_metrics
from af.metrics.bootstrap import Interval
from af.metrics.records import MetricRow

ROWS = [
    MetricRow("rpcc/exp", 0.25, Interval(0.2, 0.3, 0.02), 10, 0.0, 0.5, "pooled | all", "lower", headline=True),
    MetricRow("react/smile", 0.6, None, 9, 0.7, 0.1, "lag 11", "true", 0.01, 0.02, 0.03),
    MetricRow("psnr", float("nan"), better="higher", note="no image"),
]


def test_files_hold_the_rows(tmp_path):
    json_path, markdown_path = write_metrics(tmp_path / "out", ROWS, {"seconds/evaluate": 1.5}, notes="- said")
    flat = json.loads(json_path.read_text())
    assert flat["seconds/evaluate"] == 1.5
    assert (flat["rpcc/exp"], flat["rpcc/exp/true"], flat["rpcc/exp/null"], flat["rpcc/exp/se"]) == (0.25, 0, 0.5, 0.02)
    assert (flat["rpcc/exp/low"], flat["rpcc/exp/high"], flat["rpcc/exp/n"]) == (0.2, 0.3, 10)
    assert (flat["react/smile/se"], flat["react/smile/true/se"], flat["react/smile/null/se"]) == (0.01, 0.02, 0.03)
    assert flat["psnr"] is None  # JSON knows no NaN
    assert flat["better"] == {"rpcc/exp": "lower", "react/smile": "true", "psnr": "higher"}
    assert flat["headline"] == ["rpcc/exp"]
    text = markdown_path.read_text()
    assert "| rpcc/exp ↓ | 0.25 | 0.2 … 0.3 | 0 | 0.5 | 10 | pooled \\| all |" in text
    assert "| react/smile | 0.6 ± 0.01 |" in text
    assert "- `psnr`: no image" in text
    assert text.endswith("- said\n")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "metrics.md"]
    assert console_table(ROWS).row_count == len(ROWS) == markdown_table(ROWS).count("\n| ") - 1
    assert headline(ROWS) == [ROWS[0], ROWS[2]]
