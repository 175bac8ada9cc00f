"""Nothing that is accepted at the start fails later."""

import asyncio
import json
import os
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import httpcore
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ghealth.names import Addresses
from ghealth.server.listen import ListenError, bind
from ghealth.server.prepare import Prepared, configure
from ghealth.settings import Mistakes

PARTS = (
    "http https :// / a gw.test localhost 127.0.0.1 [::1] [::ffff:1.2.3.4] @ me:secret@ : :80 :0 "
    ':65536 ? x=1 # % %20 %zz , * \udcff \u00e4 \u212a \\ " { } [ ] xn-- . .. off 0 - ~ ^'
)
TEXTS = st.lists(st.sampled_from(PARTS.split()), max_size=8).map("".join) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
)
URLS = TEXTS.map("http://a{}".format) | TEXTS.map("http://{}/".format) | TEXTS
ADDRESSES = TEXTS.map("{}:0".format) | TEXTS
WORDS = st.text("!\"#$%&'()*+-./:;<=>?@[]^_`{|}~aB1", min_size=1, max_size=5)
HEADERS = st.dictionaries(
    st.sampled_from(["Host", "host", "Accept", "User-Agent", "Authorization"]) | WORDS | TEXTS,
    WORDS | TEXTS,
    max_size=2,
)
TARGETS = URLS | st.fixed_dictionaries({"url": URLS, "headers": HEADERS})
VARIABLES = {
    "GHEALTH_LISTEN": ADDRESSES,
    "GHEALTH_ADMIN_LISTEN": ADDRESSES,
    "GHEALTH_PROBE_URL": URLS,
    "GHEALTH_PROBE_HEADERS": HEADERS.map(json.dumps),
    "GHEALTH_SERVICES": st.dictionaries(TEXTS, TARGETS, max_size=2).map(json.dumps),
    "GHEALTH_STATUS_CALLERS": WORDS | TEXTS,
    "GHEALTH_CACHE_TTL": TEXTS,
}
ENVIRONMENTS = st.one_of(
    [st.fixed_dictionaries({name: values}) for name, values in VARIABLES.items()]
)


async def answer(*_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
    """Connect to any host: it answers 200."""
    return httpcore.AsyncMockStream([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])


async def find(addresses: Addresses) -> list[str]:
    """Find an address for any host that can be looked up."""
    addresses._host.encode("idna")
    return ["127.0.0.1"]


async def use(found: Prepared) -> None:
    """Probe every target once, and listen on every address."""
    with (
        patch.object(Addresses, "find", find),
        patch.object(httpcore.AnyIOBackend, "connect_tcp", answer),
    ):
        results = await asyncio.gather(*(probe() for probe in found.probes.values()))
    assert all(result.ready for result in results)
    for address in found.settings.listen + found.settings.admin_listen:
        with suppress(ListenError):
            for bound in bind(address):
                bound.close()


ODD = "http://a/%,http://a/[,http://a?%zz,http://a/\\,http://A_B.test./,https://b\u00fc.test"


@settings(max_examples=500)
@given(ENVIRONMENTS)
@example({"GHEALTH_PROBE_URL": ODD})
def test_what_is_accepted_works(variables: dict[str, str]) -> None:
    """Whatever is accepted can be shown, probed and listened on; a mistake is one line each."""
    with patch.dict(os.environ, variables):
        found = configure()
    if isinstance(found, Mistakes):
        assert found.lines
        assert not any("\n" in line for line in found.lines)
        assert ODD not in variables.values()
        return
    assert json.dumps([row.value for row in found.settings.rows()], ensure_ascii=False).encode()
    asyncio.run(use(found))
