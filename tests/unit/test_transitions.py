from ghealth.transitions import Transition, Transitions


def test_a_transition_has_the_previous_value_and_how_long_it_held() -> None:
    """The first value is a transition from nothing, the same again is none; keys are apart."""
    transitions = Transitions[str]()
    assert transitions.record("a", "up", 10.0) == Transition(None, 0.0)
    assert transitions.record("a", "up", 11.0) is None
    assert transitions.record("b", "up", 11.0) == Transition(None, 0.0)
    assert transitions.record("a", "down", 12.5) == Transition("up", 2.5)
    assert transitions.record("a", "up", 13.0) == Transition("down", 0.5)
