"""The dialogue engine: one turn in, the NPC's line and the change of state out."""

import os

# PyTorch reads this before it first takes memory: in large pages, where the system gives some,
# running through a model's weights takes up to a fifth less time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
