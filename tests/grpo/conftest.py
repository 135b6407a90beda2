from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from learner_cases import sharp_model

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# The models are too small to share out: threads would spend their time waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """A learner takes as many threads as its run has cores, for its whole process: the next test has one again."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> str:
    return sharp_model(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="session")
def untied_model_path(tmp_path_factory) -> str:
    return sharp_model(tmp_path_factory.mktemp("untied"), tied=False)
