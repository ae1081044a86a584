"""A test that changes its process for those that run after it is told what it changed, without secrets."""

from __future__ import annotations

import gc
import logging

import pytest
from process_settings import changed_since, settings_of_process


def test_each_setting_that_was_changed_is_named_and_no_other(as_a_process: None) -> None:
    before = settings_of_process()
    assert changed_since(before) == []
    logging.getLogger("converge").setLevel(logging.ERROR)
    gc.set_threshold(12_345)
    assert [line.partition(":")[0] for line in changed_since(before)] == [
        "the levels of loggers",
        "the collection of garbage",
    ]


def test_a_variable_that_is_new_is_named_and_its_text_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_of_process()
    monkeypatch.setenv("OWL_PASSWORD", "hoot-hoot")
    (line,) = changed_since(before)
    assert line.startswith("the variable OWL_PASSWORD: None became ") and "hoot" not in line
