"""A training step as one CUDA graph: the processor launches it whole, not kernel by kernel.

Small networks wait for launches: a step of width 16 at 128 px has hundreds of kernels of some
microseconds each. Source: PyTorch's documentation, "CUDA semantics", whole-network capture.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps before the capture, in which libraries choose and load their kernels


class GraphedStep:
    """Call a step on tensors of one shape; record it after `WARM_UP` calls, then replay it.

    The step reads two tensors and changes others in place: weights, Adam's moments, a sum. It must
    not wait for the device. Tensors of another shape, as of a last batch, are computed directly.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], None], *generators: torch.Generator):
        self.step, self.generators, self.calls = step, generators, 0
        self.graph = self.inputs = None

    def __call__(self, *tensors: Tensor) -> None:
        """Compute the step; its results are there when the device comes to them."""
        if self.inputs is None:  # the graph reads its input from these
            self.inputs = [tensor.clone() for tensor in tensors]
        if tensors[0].shape != self.inputs[0].shape:
            self.step(*tensors)
            return
        self.calls += 1
        if self.calls <= WARM_UP:
            self._on_another_stream(tensors)
            return
        for kept, tensor in zip(self.inputs, tensors, strict=True):
            kept.copy_(tensor)
        if self.graph is None:
            self._record()
        self.graph.replay()

    def _on_another_stream(self, tensors: tuple[Tensor, ...]) -> None:
        """Capture asks for it: what autograd remembers must not belong to the default stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(*tensors)
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):  # nothing is computed here
            self.step(*self.inputs)
