"""Where Python packages come from here: the user's pip configuration, in uv's words.

Rules that this module keeps:

- uv ignores pip's configuration. A machine that was set up for pip (a mirror, a company index, a
  folder of wheels) works as it is: what pip would use is handed to uv, where the user did not
  configure uv itself.
- Nothing here is ever stored or put into an image: an index URL may hold a password.
- Sources and their order are pip's ("Configuration" in pip's documentation): global, user, site,
  ``PIP_CONFIG_FILE``, environment; later ones win.
"""

from __future__ import annotations

import configparser
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The environment that uv may see besides its own variables: certificates and credentials.
_PASSED = ("SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC", "XDG_CONFIG_HOME", "REQUESTS_CA_BUNDLE")
#: Variables of uv's that say where packages come from; the rest of the user's would change what we
#: ask uv to do.
_UV = (
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"),
    *("UV_INDEX_STRATEGY", "UV_INSECURE_HOST", "UV_KEYRING_PROVIDER", "UV_HTTP_TIMEOUT"),
    *(
        "UV_HTTP_RETRIES",
        "UV_NATIVE_TLS",
        "UV_SYSTEM_CERTS",
        "UV_CONCURRENT_DOWNLOADS",
        "UV_OFFLINE",
    ),
)
_SECTIONS = ("global", "install")
_PIP = "PIP_"


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return pip's effective settings by option name, e.g. ``index-url``."""
    settings: dict[str, str] = {}
    if environ.get("PIP_CONFIG_FILE") != os.devnull:
        for text in _files(environ):
            settings |= parse_pip(text)
    settings |= {
        name.removeprefix(_PIP).lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith(_PIP)
    }
    return settings


def _files(environ: Mapping[str, str]) -> Iterable[str]:
    home = Path(environ.get("HOME", "/nonexistent"))
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    shared = (Path(d) for d in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if d)
    paths = [directory / "pip" / "pip.conf" for directory in shared]
    paths += [Path("/etc/pip.conf"), home / ".pip" / "pip.conf", user]
    paths += [Path(sys.prefix) / "pip.conf"]
    if named := environ.get("PIP_CONFIG_FILE"):
        paths.append(Path(named))
    for path in paths:
        try:
            yield path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def parse_pip(text: str) -> dict[str, str]:
    """Return the settings of one ``pip.conf``; a file that pip could not read gives none."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    return {
        name.replace("_", "-"): value
        for section in _SECTIONS
        if parser.has_section(section)
        for name, value in parser.items(section)
    }


def translate(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make uv use the same packages as pip.

    Args:
        settings: of pip, see ``pip_settings``.
        environ: the caller's environment; what it says to uv itself goes before.
    """
    chosen: dict[str, str] = {}
    default = settings.get("index-url")
    more = settings.get("extra-index-url", "").split()
    links = settings.get("find-links", "").split()
    if default:
        chosen["UV_DEFAULT_INDEX"] = default
    if more:
        chosen["UV_INDEX"] = " ".join(more)
        # pip takes the best version of all its indexes; uv would stop at the first that has any.
        chosen["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if links:
        chosen["UV_FIND_LINKS"] = ",".join(links)
    if certificates := settings.get("cert"):
        chosen["SSL_CERT_FILE"] = certificates
    if hosts := settings.get("trusted-host"):
        chosen["UV_INSECURE_HOST"] = " ".join(hosts.split())
    if environ.get("UV_INDEX_URL"):
        chosen.pop("UV_DEFAULT_INDEX", None)
    if environ.get("UV_EXTRA_INDEX_URL"):
        chosen.pop("UV_INDEX", None)
    return {name: value for name, value in chosen.items() if not environ.get(name)}


def uv_environment() -> dict[str, str]:
    """Return the part of uv's environment that says where packages come from."""
    environ = os.environ
    passed = {
        name: value
        for name, value in environ.items()
        if name in _PASSED or name in _UV or name.startswith("UV_INDEX_")
    }
    return passed | translate(pip_settings(environ), environ)


def options() -> list[str]:
    """Return the options for what uv knows no variable for: pip's ``no-index``."""
    wanted = pip_settings(os.environ).get("no-index", "").lower()
    return ["--no-index"] if wanted in ("1", "true", "yes", "on") else []
