"""The tests run offline. huggingface_hub reads the variable when it is imported; without it, the
library retries for a long time.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
