"""plumberd: networking for programs that have none.

A program asks a local broker for a service by name and gets a connected
descriptor. The package has three rings, and imports point inwards only:

``plumberd.pure``
    bytes and values in, values out: names, URIs, dialects, policy. No socket,
    no clock, no Twisted.
``plumberd.effects``
    one effect a module: listen, who is asking, resolve, connect, relay, hand
    over. Each takes the reactor and its limits as arguments.
``plumberd.wiring``
    what a user sees: options, the broker, the scheme daemons, the service.

``plumberd.client`` and ``plumberd.plumb`` are for programs and people that use
a broker; they need the standard library alone. This module imports nothing, so
that they start quickly.
"""
