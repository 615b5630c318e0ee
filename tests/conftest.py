import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a second thread only waits for the first


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, alone or in company."""
    torch.manual_seed(0)
