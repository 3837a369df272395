"""Tests, run by trial."""
