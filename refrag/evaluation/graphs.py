"""Answers with the vectors of an exported encoder, against those with torch's, on the same questions.

    python -m refrag.evaluation.graphs --checkpoint checkpoints/demo --output int8.json \\
        --graph int8=model_repository/chunk_encoder/1/model.onnx

What a graph's parity check allows is small, and whether it is small enough only answers can tell: this is for graphs
in integers above all. Differences are each graph's minus torch's.
"""

import argparse
import functools
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from refrag.environment import flush_denormals
from refrag.errors import CheckpointError, RefragError, TrainingError
from refrag.evaluation.cases import Asking, draw_questions
from refrag.evaluation.conditions import Condition, compressed
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.models import Models, load_models
from refrag.evaluation.options import Options, add_options, parsed_options
from refrag.evaluation.report import render
from refrag.evaluation.results import Report
from refrag.evaluation.rows import METRICS, Table, answer_difference
from refrag.evaluation.selection import choose_chunks
from refrag.evaluation.tables import NUM_PASSAGES, answer_all, tabulate
from refrag.model.encoder import ChunkEncoder
from refrag.training.data.tasks import TASKS

# C chunks, L encoder tokens per chunk, E encoder width

TORCH = "torch"


class GraphEncoder(ChunkEncoder):
    """In place of the encoder that it was exported from."""

    def __init__(self, encoder: ChunkEncoder, graph: Path) -> None:
        super().__init__(encoder.backbone, encoder.pooling)
        if not graph.is_file():
            raise CheckpointError(f"{graph} does not exist; export the checkpoint, or name another graph")
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        [vectors] = self.session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return torch.from_numpy(vectors)  # (C, L) -> (C, E)


def tabulate_graphs(models: Models, graphs: Mapping[str, Path], options: Options) -> Table:
    """All compressed, and with the learned policy, which reads the vectors too: by torch, then by each graph."""
    size = models.checkpoint.config.chunk_size
    conditions = [compressed(size), compressed(size, "learned", options.expand_fraction)]
    asking = Asking(TASKS, options.num_questions, NUM_PASSAGES)
    by_torch = CaseSet(models, draw_questions(models.checkpoint, asking, options.seed), options.seed, TORCH)
    expected = answer_all(by_torch, conditions, by_torch.label)
    answers, differences, about = [*expected], [], [f"{NUM_PASSAGES} passages from the strong retriever."]
    for name, graph in graphs.items():
        by_graph = CaseSet(_with_graph(models, graph), by_torch.cases, options.seed, name)
        found = answer_all(by_graph, conditions, name)
        answers += found
        about.append(_tell_agreement(by_graph, by_torch, conditions[-1]))
        differences += [
            answer_difference(*pair, metric, options.seed)
            for pair, metric in itertools.product(zip(found, expected, strict=True), METRICS)
        ]
    table = tabulate(" ".join(about), answers, options)
    table.differences.extend(differences)
    return table


def _with_graph(models: Models, graph: Path) -> Models:
    checkpoint = models.checkpoint
    return replace(models, checkpoint=replace(checkpoint, encoder=GraphEncoder(checkpoint.encoder, graph)))


def _tell_agreement(by_graph: CaseSet, by_torch: CaseSet, learned: Condition) -> str:
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


def parse_graphs(texts: Sequence[str]) -> dict[str, Path]:
    """Of NAME=FILE each; TrainingError for another form, and for a name that would be mistaken."""
    graphs = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not name or not equals or not path:
            raise TrainingError(f"a graph is given as {text!r}; the form is NAME=model.onnx")
        if name in graphs or name == TORCH:
            raise TrainingError(f"two rows would be called {name!r}; give each graph a name of its own")
        graphs[name] = Path(path)
    return graphs


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    try:
        options = parsed_options(arguments)
        graphs = parse_graphs(arguments.graph)
        report = Report("refrag.evaluation.graphs", options.seed, arguments.output)
        report.add("graphs", functools.partial(tabulate_graphs, load_models(arguments.checkpoint), graphs, options))
    except RefragError as error:
        parser.error(str(error))
    print(render(report.values))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refrag.evaluation.graphs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a REFRAG checkpoint")
    parser.add_argument("--graph", nargs="+", required=True, metavar="NAME=FILE", help="exported encoders of it")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    add_options(parser)
    return parser


if __name__ == "__main__":
    flush_denormals()
    main()
