"""Tests ask nothing of the network, and tell it nothing. Set before the first import that would read it."""

import os

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ.update(QUIET)
