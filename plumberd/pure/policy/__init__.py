"""Policy: who may connect to what, and where a name really goes. All of it pure.

``rule``      one line of the firewall: its grammar, its value, what it matches
``decide``    the one decision function: question in, verdict out
``route``     redirects and routes: a service in, a destination out

The order of a decision is told in docs/design.md, the grammar in docs/protocol.md.
"""
