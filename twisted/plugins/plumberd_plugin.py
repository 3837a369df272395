"""Tells twistd and twist that there is a plumberd, and Twisted what endpoint strings ``ipc:…`` mean."""

from twisted.application.service import ServiceMaker

from plumberd.endpoints import IpcParser

plumberd = ServiceMaker(
    "plumberd",
    "plumberd.wiring.plugin",
    "Networking for programs that have none: a broker of connected descriptors.",
    "plumberd",
)
ipc = IpcParser()
