"""Asking for runs of deployments, and waiting for them, in whichever process they run."""
