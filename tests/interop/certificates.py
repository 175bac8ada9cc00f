"""The certificate that ghealth serves with, and the authority that its callers trust."""

import tempfile
from pathlib import Path
from typing import Final

import trustme

from tests.support.certificates import CERT, KEY, Mounted, pair_of

_folder = tempfile.TemporaryDirectory(prefix="ghealth-interop-")  # removed at exit
_authority = trustme.CA()
_secret = Mounted(Path(_folder.name) / "tls", pair_of(_authority))

CERT_FILE: Final = _secret.path / CERT
KEY_FILE: Final = _secret.path / KEY
AUTHORITY_FILE: Final = Path(_folder.name) / "authority.pem"
_authority.cert_pem.write_to_path(AUTHORITY_FILE)
