import pytest

from ghealth import flags
from ghealth.flags import Parser


def parser(*, keep_rest: bool = False) -> Parser:
    """Make a parser with a flag that has a value, and a switch."""
    made = Parser(prog="tool", keep_rest=keep_rest)
    made.add_argument("--name", default="")
    made.add_argument("-s", dest="switch", action="store_true")
    return made


@pytest.mark.parametrize(
    ("arguments", "name", "switch", "rest"),
    [
        ([], "", False, []),
        (["-name", "a"], "a", False, []),
        (["--name=a=b"], "a=b", False, []),
        (["-name", "-s"], "-s", False, []),
        (["-name="], "", False, []),
        (["-name=a", "-name=b"], "b", False, []),
        (["-s", "--name", "a b"], "a b", True, []),
        (["--s"], "", True, []),
        (["-s=T"], "", True, []),
        (["-s", "-s=false"], "", False, []),
        (["-s", "false", "-name=a"], "", True, ["false", "-name=a"]),
        (["-s", "--", "-name=a"], "", True, ["-name=a"]),
        (["-s", "-", "-name=a"], "", True, ["-", "-name=a"]),
        (["-s", "", "-name=a"], "", True, ["", "-name=a"]),
    ],
)
def test_flags_are_parsed_as_go_parses_them(
    arguments: list[str], name: str, switch: bool, rest: list[str]
) -> None:
    """One dash or two, `=` or not; flags end at the first other argument."""
    parsed = parser(keep_rest=True).parse_args(arguments)
    assert (parsed.name, parsed.switch, parsed.rest) == (name, switch, rest)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["-other=a"], "unknown flag -other"),
        (["---name=a"], "unknown flag ---name"),
        (["-na=a"], "unknown flag -na"),
        (["-name"], "--name needs a value"),
        (["-s=maybe"], "invalid value 'maybe' of -s; expected true or false"),
        (["a"], "unexpected argument 'a'"),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], mistake: str
) -> None:
    """A mistake has exit code 1, and its line points to the help."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == flags.MISTAKE
    assert capsys.readouterr().err == f"ghealth: {mistake} (see tool --help)\n"
