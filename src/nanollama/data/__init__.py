"""Data by index: sources, mixtures, text corpora, token files, prefetch. Imports neither torch nor anything heavy."""

from .compress import bits_per_byte
from .environment import environment_corpus
from .manifest import Manifest, build_manifest
from .mixture import Mixture, check_weights
from .prefetch import Prefetch, batches
from .source import SPLITS, DataSource, sample_range, token_dtype
from .text import folder_corpus, open_stream, text_sources
from .token_file import TokenWriter, open_token_file, token_source
from .windows import TokenStream, WindowSource

__all__ = [
    "SPLITS",
    "DataSource",
    "Manifest",
    "Mixture",
    "Prefetch",
    "TokenStream",
    "TokenWriter",
    "WindowSource",
    "batches",
    "bits_per_byte",
    "build_manifest",
    "check_weights",
    "environment_corpus",
    "folder_corpus",
    "open_stream",
    "open_token_file",
    "sample_range",
    "text_sources",
    "token_dtype",
    "token_source",
]
