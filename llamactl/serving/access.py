"""Who may ask: requests for this host, from its own page or from programs, with the token where there is one."""

import hmac
import re
from collections.abc import Mapping

from llamactl.serving.protocol import BadRequest

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d*)?")  # a name or an address, perhaps with a port


def check_host(headers: Mapping[str, str], hosts: tuple[str, ...]) -> None:
    """Raise BadRequest for a host that is not one of `hosts` (none: any), or a page of another site."""
    host, origin = headers.get("host", "").lower(), headers.get("origin")
    named = HOST.fullmatch(host)
    # The name of a site elsewhere may lead here.
    if hosts and not (named and named[1] in hosts):
        raise BadRequest("This server answers for this machine alone.", status=403)
    # A browser lets any page send a form or plain text here, and names the page's site.
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        raise BadRequest("This server does not answer pages of other sites.", status=403)


def check_token(headers: Mapping[str, str], token: str) -> None:
    """Raise BadRequest for a request that does not show the token."""
    shown = headers.get("authorization", "").removeprefix("Bearer ")
    if token and not hmac.compare_digest(shown.encode(), token.encode()):
        raise BadRequest("This server needs its token: Authorization: Bearer TOKEN.", status=401)
