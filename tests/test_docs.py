"""The configuration reference is that of conf/."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(reference):
    written = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert written == reference.reference(), "conf/ has changed: run make docs"


def test_no_value_of_any_file_is_missing(reference):
    def leaves(value, prefix=""):
        if isinstance(value, dict) and value:
            return set().union(*(leaves(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()))
        return {prefix}

    for file in reference.CONF.rglob("*.yaml"):
        expected = leaves(yaml.safe_load(file.read_text()) or {}) - {"", "defaults"}
        found = {key for key, _, _ in reference.entries(file.read_text().splitlines())}
        inline = {key for key in expected if any(key.startswith(f"{k}.") for k in found)}  # {a: 1} on one line
        assert expected - inline <= found, file


def test_values_and_comments_of_a_small_file(reference):
    lines = [
        "# what it is",
        "defaults:",
        "  - base",
        "a: 1     # one",
        "b:",
        "  c: ${a}  # in b",
        "  d:",
        "    - x",
        "e:",
    ]
    assert list(reference.entries(lines)) == [
        ("defaults.2", "base", ""),
        ("a", "1", "one"),
        ("b.c", "${a}", "in b"),
        ("b.d", "…", ""),
        ("e", "", ""),
    ]
