"""An exported encoder in place of torch's, to see what its arithmetic does to answers.

What a graph's parity check allows is small, and whether it is small enough only answers can tell: this is for graphs
in integers above all.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from refrag.errors import CheckpointError, TrainingError
from refrag.evaluation.conditions import Condition
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.models import Models
from refrag.evaluation.selection import choose_chunks
from refrag.model.encoder import ChunkEncoder

# C chunks, L encoder tokens per chunk, E encoder width

TORCH = "torch"


class GraphEncoder(ChunkEncoder):
    """In place of the encoder that it was exported from."""

    def __init__(self, encoder: ChunkEncoder, graph: Path) -> None:
        super().__init__(encoder.backbone, encoder.pooling)
        # Not among what evaluation needs otherwise.
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        [vectors] = self.session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return torch.from_numpy(vectors)  # (C, L) -> (C, E)


def parse_graphs(texts: Sequence[str]) -> dict[str, Path]:
    """Of NAME=FILE each; TrainingError for another form and for a name that would be mistaken, CheckpointError for a
    file that is not there.
    """
    graphs: dict[str, Path] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not name or not equals or not file:
            raise TrainingError(f"a graph is given as {text!r}; the form is NAME=model.onnx")
        if name in graphs or name == TORCH:
            raise TrainingError(f"two rows would be called {name!r}; give each graph a name of its own")
        graphs[name] = Path(file)
    for path in graphs.values():
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; export the checkpoint, or name another graph")
    return graphs


def with_graph(models: Models, graph: Path) -> Models:
    """The same, but for the encoder."""
    checkpoint = models.checkpoint
    return replace(models, checkpoint=replace(checkpoint, encoder=GraphEncoder(checkpoint.encoder, graph)))


def tell_agreement(by_graph: CaseSet, by_torch: CaseSet, learned: Condition) -> str:
    """How near the vectors are, and what it changes in what the policy picks."""
    pairs = zip(by_graph.encoded(learned.chunk_size), by_torch.encoded(learned.chunk_size), strict=True)
    cosines = torch.cat([torch.cosine_similarity(one.vectors, other.vectors) for one, other in pairs])
    picks = zip(choose_chunks(by_graph, learned), choose_chunks(by_torch, learned), strict=True)
    shared = [(len(set(ours) & set(others)), len(others)) for ours, others in picks]
    num_shared, num_picks = map(sum, zip(*shared, strict=True))
    return (
        f"Vectors by {by_graph.label}: cosine with torch's {cosines.mean():.5f} in the mean, {cosines.min():.5f} at "
        f"least; {num_shared} of {num_picks} picks of the learned policy are the same."
    )
