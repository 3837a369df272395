"""Escapes: what programs in cages try with what they are handed, with real brokers and in real namespaces.

:mod:`tests.escapes.machine` is a network namespace with brokers in it; its programs are
forked (:mod:`tests.escapes.cage`) and try (:mod:`tests.escapes.attempts`). What has to come of
it stands in :mod:`tests.escapes.expected`, and in docs/security.md.
"""
