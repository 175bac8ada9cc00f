import pytest

from tests.unit.check.servers import AUTHORITY


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the authority and a client's pair, by the arguments that name them."""
    folder = tmp_path_factory.mktemp("pem")
    client = AUTHORITY.issue_cert("client")
    contents = {
        "ca_cert": AUTHORITY.cert_pem,
        "client_cert": client.cert_chain_pems[0],
        "client_key": client.private_key_pem,
    }
    for name, content in contents.items():
        content.write_to_path(str(folder / name))
    return {name: str(folder / name) for name in contents}
