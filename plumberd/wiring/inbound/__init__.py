"""Remote callers: ``inbound`` holds the steps that all share, and each way in is a module beside it."""
