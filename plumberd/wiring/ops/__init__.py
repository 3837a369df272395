"""What a running broker tells and is told: ``operations`` says who may, and each op is a module beside it."""
