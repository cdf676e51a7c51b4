"""The arithmetic behind `asyncflow.schedules`."""
