import pytest

from api.text import is_mac, printable


@pytest.mark.parametrize("text", ["a\nb", "a\x1bb", "a\u202eb", "a\x00b", "a\x85b", "a\u2028b", "a\ud800b"])
def test_unprintable_characters_are_replaced(text: str) -> None:
    assert (printable(text), printable(text, mark="?")) == ("a b", "a?b")


def test_text_is_truncated() -> None:
    assert printable("Größe: 1 µs", 5) == "Größe"
    assert printable("abc", 5) == printable("abc") == "abc"


@pytest.mark.parametrize(
    "text",
    ["", "02:00:00:00:0A:FF", "02-00-00-00-0a-ff", "02:00:00:00:0a", "02:00:00:00:0a:ff:00", "02:00:00:00:0a:ff\n"],
)
def test_mac_is_in_lower_case_with_colons(text: str) -> None:
    assert is_mac("02:00:00:00:0a:ff") and not is_mac(text)
