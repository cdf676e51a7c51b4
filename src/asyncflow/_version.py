"""The version, where every layer may name it; a test holds it equal to that of the package."""

__all__ = ["__version__"]

__version__ = "0.1.0"
