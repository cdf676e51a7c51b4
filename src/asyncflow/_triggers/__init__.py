"""What `asyncflow.triggers` are made of."""
