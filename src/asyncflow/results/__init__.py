"""Where results are kept: as files that open without asyncflow, or in a storage of the user's own."""

from asyncflow.results.files import FileResults
from asyncflow.results.storage import DictStorage, FolderStorage, Storage

__all__ = ["DictStorage", "FileResults", "FolderStorage", "Storage"]
