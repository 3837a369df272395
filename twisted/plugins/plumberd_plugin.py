"""Tells twistd and twist that there is a plumberd."""

from twisted.application.service import ServiceMaker

plumberd = ServiceMaker(
    "plumberd",
    "plumberd.wiring.plugin",
    "Networking for programs that have none: a broker of connected descriptors.",
    "plumberd",
)
