from typing import Any

import pytest

from controller.merge_patch import difference


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": {"b": [1]}}, {"a": {"b": [1]}}, {}),
        ({}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}),
        ({"a": {"b": 1}, "c": 2}, {"a": {}}, {"a": {"b": None}, "c": None}),
        ({"a": [{"b": 1}, 2]}, {"a": [{"b": 1, "c": 2}, 2]}, {"a": [{"b": 1, "c": 2}, 2]}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": 1}, {"a": 1}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": None}}),
    ],
)
def test_difference(old: dict[str, Any], new: dict[str, Any], patch: dict[str, Any]) -> None:
    assert difference(old, new) == patch
