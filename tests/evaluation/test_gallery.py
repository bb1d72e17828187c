"""The gallery page in a browser: sorted by any metric, with its curves and numbers, from disk."""

from __future__ import annotations

import re

import numpy as np

from af.evaluation.gallery import GalleryClip, gallery_html
from af.metrics.records import MetricRow
from tests.browser import dom_after, needs_browser

TIME = np.arange(50) / 25
CLIPS = [
    GalleryClip(name, {}, {"fd/exp": value, "psnr": 30.0}, {"smile": {"true": TIME, "generated": TIME**2}})
    for name, value in (("clip 10", 0.5), ("clip 2", float("nan")), ("clip 1", 2e-7), ("<b>&", 3.0))
]


def names(dom: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", dom)


@needs_browser
def test_cards_are_sorted_by_name_by_any_metric_and_found_by_name(tmp_path):
    page = gallery_html("An <evaluation>", "four clips", CLIPS, [MetricRow("fd/exp", 1.0, protocol="a|b")])
    dom = dom_after(page, "", tmp_path)
    assert names(dom) == ["&lt;b&gt;&amp;", "clip 1", "clip 2", "clip 10"]  # numbers in names count as numbers
    assert dom.count("<path") == 8  # two lines in each clip's curve
    assert "no video" not in dom.partition("<script")[0]  # cards without a video are curves and numbers
    assert "An &lt;evaluation&gt;" in dom
    assert "<td>a|b</td>" in dom
    ascending = ["clip 1", "clip 10", "&lt;b&gt;&amp;", "clip 2"]  # a clip without a value comes last
    dom = dom_after(page, "sort.value = 'fd/exp'; sort.onchange();", tmp_path)
    assert names(dom) == ascending
    assert "2.00e-7" in dom
    dom = dom_after(page, "order.onclick(); find.value = 'CLIP'; show();", tmp_path, "#sort=fd/exp&order=descending")
    assert names(dom) == ["clip 1", "clip 10", "clip 2"]  # turned round twice, and one is left out
    assert "3 of 4 clips" in dom
