"""The proxy that gRPC takes from the environment: never to this machine, and named where a connection fails."""

import ipaddress
import os
from urllib.parse import urlsplit

# In gRPC's order; the first that is set holds.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")


def is_loopback(url: str) -> bool:
    """Return whether the address is one of this machine's own."""
    host = _host(url)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def describe_proxy(url: str) -> str:
    """Return which proxy stands before the address, and which variable says so; nothing without one."""
    variable = next((name for name in PROXY_VARIABLES if os.environ.get(name)), None)
    if variable is None or url.startswith("unix:") or is_loopback(url) or _is_exempt(url):
        return ""
    # Without user and password, which such a URL may hold.
    proxy = os.environ[variable]
    address = (urlsplit(proxy if "://" in proxy else f"//{proxy}").netloc or proxy).rpartition("@")[2]
    return f" through the proxy {address} (${variable}; ${NO_PROXY_VARIABLES[1]}={_host(url)} goes without)"


def _is_exempt(url: str) -> bool:
    exempt = next((os.environ[name] for name in NO_PROXY_VARIABLES if os.environ.get(name)), "")
    # As gRPC reads it: each entry is the end of a host's name.
    return any(_host(url).endswith(entry.strip()) for entry in exempt.split(",") if entry.strip())


def _host(url: str) -> str:
    return url.rpartition(":")[0].strip("[]")
