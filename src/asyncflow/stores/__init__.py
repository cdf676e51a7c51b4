"""Where runs are recorded: adapters of `asyncflow.abc.RunStore`."""
