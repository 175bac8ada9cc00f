import pytest

from ghealth.matcher import HTTP_CODES, Matcher


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("200", [200], [199, 201, 204]),
        ("200,204", [200, 204], [201, 203]),
        ("200-299", [200, 250, 299], [199, 300]),
        ("400-499", [400, 499], [399, 500]),
        ("200-204, 401", [202, 401], [400, 205]),
    ],
)
def test_success_codes_are_an_albs_matcher(
    text: str, inside: list[int], outside: list[int]
) -> None:
    """Codes, lists and ranges mean what they mean in an ALB's matcher, both ends included."""
    codes = Matcher.parse(text, HTTP_CODES)
    assert all(code in codes for code in inside)
    assert not any(code in codes for code in outside)
    assert str(codes) == text.replace(" ", "")


@pytest.mark.parametrize(
    "text", ["", "ok", "20", "2000", "299-200", "200-", "-200", "200,", "199", "500", "200-500"]
)
def test_other_success_codes_are_mistakes(text: str) -> None:
    """Other texts are refused, and 5xx: a draining gateway answers 503."""
    with pytest.raises(ValueError, match=r"^$"):
        Matcher.parse(text, HTTP_CODES)
