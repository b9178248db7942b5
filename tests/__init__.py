"""The tests need no network. The hub's library reads this when it is imported; without it, it tries
for long.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
