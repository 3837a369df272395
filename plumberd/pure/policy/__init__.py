"""Policy: who may connect to what, and where a name really goes. All of it pure.

To decide:

``direction``   in, out or serve
``peer``        the far end: PEER in a rule, and where a connection goes or comes from
``subject``     who asks, and the conditions behind a rule's ``for``
``rule``        one line of the firewall: its grammar, its value, what it matches
``index``       finds the few rules of many that a question can match
``decide``      the one decision function: question in, verdict out
``route``       redirects and routes: a service in, a destination out

To tell, test and doubt it:

``explain``     the steps of a decision, told
``assertion``   what a policy is meant to do, a line each
``lint``        doubts about rules, out of ``shadow`` (with ``globs``), ``foregone`` and ``idle``

To learn it from an audit log:

``seen``        one line of it as what rules would have to grant
``cover``       addresses and ports as few networks and ranges
``learn``       lines in, a draft of rules out

The long story is in docs/policy.md, the grammar in short in docs/protocol.md.
"""
