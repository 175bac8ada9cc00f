"""The results of `make dist`: the wheel in an empty environment, and the sdist."""

import os
import signal
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from ghealth import __version__
from tools import pypi_readme, release

ROOT = Path(__file__).parents[2]
WHEEL = ROOT / "dist" / f"ghealth-{__version__}-py3-none-any.whl"
TIMEOUT = 300.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty environment; return the folder of its commands."""
    place = tmp_path_factory.mktemp("empty")
    venv.create(place)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "--python", str(place / "bin" / "python"), "install"]
    locked = ["--require-hashes", "--only-binary=:all:", "-r", f"{ROOT}/requirements/image.txt"]
    subprocess.run([*install, *locked], check=True, timeout=TIMEOUT)
    # Packages that are not in the lock are not found.
    alone = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    subprocess.run([*install, "--no-index", str(WHEEL)], check=True, timeout=TIMEOUT, env=alone)
    return place / "bin"


def test_the_wheel_works_in_an_empty_environment(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands run without the checkout: settings, a check without a server, and serving."""
    monkeypatch.chdir(tmp_path)
    ghealth, check = str(installed / "ghealth"), ["check", "--addr=127.0.0.1:1"]
    for command in ([ghealth], [str(installed / "python"), "-m", "ghealth"]):
        printed = subprocess.check_output([*command, "settings"], timeout=TIMEOUT)
        assert b"GHEALTH_PROBE_URL" in printed
    assert subprocess.call([ghealth, *check], timeout=TIMEOUT) == 2
    assert subprocess.call([ghealth, *check, "--as=alb"], timeout=TIMEOUT) == 4
    settings = {"GHEALTH_LISTEN": "127.0.0.1:0", "GHEALTH_DRAIN_DELAY": "0"}
    with subprocess.Popen([ghealth], env=settings, stdout=subprocess.PIPE) as serving:
        assert serving.stdout is not None
        assert b'"started"' in serving.stdout.readline()
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(TIMEOUT) == 0


def test_the_wheel_has_the_package_alone() -> None:
    """Every file is ghealth's or about it; its types are for others too."""
    names = set(zipfile.ZipFile(WHEEL).namelist())
    assert {name.split("/")[0] for name in names} == {"ghealth", f"ghealth-{__version__}.dist-info"}
    sources = {f"ghealth/{file.name}" for file in (ROOT / "src" / "ghealth").glob("*.py")}
    assert sources | {"ghealth/py.typed"} <= names


def test_the_sdist_is_the_checkout() -> None:
    """The sdist has everything to build, test and read, and nothing else."""
    with tarfile.open(ROOT / "dist" / f"ghealth-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.check_output(listing, cwd=ROOT, text=True).split()
    assert names == {*files, "PKG-INFO"}


def test_the_page_on_pypi_has_no_relative_links() -> None:
    """The description of the wheel is README.md with links to the files of this version's tag."""
    metadata = zipfile.ZipFile(WHEEL).read(f"ghealth-{__version__}.dist-info/METADATA").decode()
    base = f"https://github.com/{release.repository()}/blob/v{__version__}/"
    assert pypi_readme.absolute((ROOT / "README.md").read_text(), base) in metadata
