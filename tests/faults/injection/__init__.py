"""The fault-injection harness: breaks runs of `cptron train` by the hundred, and counts what they survive."""
