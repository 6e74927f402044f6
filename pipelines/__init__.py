"""The features command: raw logs in, prepared rows, training tensors and the feature spec out."""

import os

# Polars' allocator keeps what was freed for the next request, once per core: give it back sooner.
# It reads this once, when Polars is imported.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:200,muzzy_decay_ms:0,narenas:2")
