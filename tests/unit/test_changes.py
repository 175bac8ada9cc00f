from ghealth.changes import Change, Changes


def test_a_change_tells_what_was_before_and_for_how_long() -> None:
    """The first value is a change from nothing, the same again is none; keys are apart."""
    changes = Changes[str]()
    assert changes.change("a", "up", 10.0) == Change(None, 0.0)
    assert changes.change("a", "up", 11.0) is None
    assert changes.change("b", "up", 11.0) == Change(None, 0.0)
    assert changes.change("a", "down", 12.5) == Change("up", 2.5)
    assert changes.change("a", "up", 13.0) == Change("down", 0.5)
