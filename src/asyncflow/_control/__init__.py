"""Cancelling, pausing and resuming runs in whichever process they are."""
