"""Documents that are alike: near-duplicates by MinHash, and words shared with evaluation sets."""
