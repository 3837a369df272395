"""Tests of the commands of ``plumb``, a file each."""
