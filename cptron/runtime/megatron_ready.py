"""Imported, for its effect, by every module that imports megatron-core, and before it.

Place in the flow: makes the order right by construction: where CUDA is absent the host adaptor is applied
before megatron-core binds any torch symbol. Also silences megatron-core's own import-time warnings that
optional packages are absent (`cptron doctor` says so, once). Invariant: does nothing else, and nothing
twice.
"""

from __future__ import annotations

import logging
import warnings

import torch

from cptron.runtime import host_adaptor

warnings.filterwarnings("ignore", module=r"megatron\.")
warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint\.")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
logging.getLogger("megatron.core").setLevel(logging.ERROR)

if not torch.cuda.is_available():
    host_adaptor.apply()
