"""Whether anything listens at an S3 endpoint of one's own."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from trio_ray.errors import StoreError
from trio_ray.reachable import why_unreachable


def check_reachable(uri: str, endpoint: str) -> None:
    """Connect to an endpoint and hang up. Behind a proxy nothing is asked, as the proxy would answer.

    Args:
        uri: of the store, for the message.
        endpoint: URL of the server.

    Raises:
        StoreError: it is no URL with a host, has no address, or refuses or does not answer connections.
    """
    parts = urlsplit(endpoint)
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise StoreError(uri, f"the S3 endpoint {endpoint!r} is no URL such as http://host:9000; check s3.endpoint_url")
    if getproxies().get(parts.scheme) and not proxy_bypass(host):
        return
    why = why_unreachable(host, port)
    if why is not None:
        raise StoreError(uri, f"the S3 endpoint {endpoint} cannot be reached ({why}); check s3.endpoint_url")
