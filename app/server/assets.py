"""The browser libraries that are not ours: name, exact version and hash.

Their files are committed below app/static/vendor, with their licences. uPlot is always served from
there. Flowbite comes from its CDN, guarded by its hash, or from there too with LOCAL_ASSETS=true.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One file of a browser library."""

    name: str
    version: str
    integrity: str
    cdn: str = ""
    """The folder of the CDN that has it; empty where it is always served by us."""

    @property
    def url(self) -> str:
        """Its address on the CDN."""
        return f"{self.cdn}/{self.name}@{self.version}/dist/{self.name}.min.js"

    @property
    def vendor_path(self) -> str:
        """Its committed copy, below the folder of static files."""
        return f"vendor/{self.name}-{self.version}.min.js"


FLOWBITE = Asset(
    "flowbite",
    version="4.0.2",
    integrity="sha384-T//xBcmH22SJdqNVwL93xRTwFcXK37jnnvp0XUhs/XeFhmyk/uHSMZuKALm9w4eR",
    cdn="https://cdn.jsdelivr.net/npm",
)
UPLOT = Asset(
    "uplot",
    version="1.6.32",
    integrity="sha384-Gx3t0zdBAuQOuvvmaLZj7HKEiSgWTAs+VdtNY7wt19QDPTDQjFIwAuXDj0zeN00c",
)
BROWSER_ASSETS = (FLOWBITE, UPLOT)
BY_NAME = {asset.name: asset for asset in BROWSER_ASSETS}
