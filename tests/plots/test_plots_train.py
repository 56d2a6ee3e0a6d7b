"""The table of a network's stages, the source shown in the notebook, the figure of a batch."""

import numpy as np
import pytest
import torch

from thyroid_lib.models import MODELS, Network, build_model, count_parameters
from thyroid_lib.plots.train import batch, source, stages


@pytest.mark.parametrize("name", [*MODELS, "resunet:tf_efficientnet_lite0"])
def test_stages_have_all_parameters_and_end_in_the_logits(name):
    net = build_model(name, width=4)
    table = stages(net, 64)
    assert table["parameters"].sum() == count_parameters(net)
    assert table["output"].iloc[-1] == "1×64×64"


def test_stages_of_a_network_with_a_list_by_hand():
    class Listed(Network):
        divisor = 1

        def __init__(self):
            super().__init__(1, 1, 2)
            self.layers = torch.nn.ModuleList([torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 1, 1)])
            self.pool = torch.nn.MaxPool2d(2, return_indices=True)

        def forward(self, images):
            return self.layers[1](self.pool(self.layers[0](images))[0])

    table = stages(Listed(), 8)
    assert list(table.index) == ["layers.0", "pool", "layers.1"]
    assert list(table["output"]) == ["2×8×8", "2×4×4", "1×4×4"]
    assert list(table["parameters"]) == [4, 0, 3]


def test_source_and_batch(tiny_store):
    assert source(Network.check).data.startswith("```python\ndef check(")
    shown = [ax.images[0].get_array() for ax in batch(tiny_store, np.arange(10)).axes]
    assert len(shown) == 6
    assert not np.array_equal(shown[0], shown[3])
