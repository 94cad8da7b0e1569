"""cptron: continued pretraining of language models on Megatron-Core, from a laptop CPU to a GPU cluster."""

__version__ = "0.1.0"
