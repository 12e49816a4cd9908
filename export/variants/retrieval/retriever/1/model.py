"""Triton model `retriever`: question → passages of a collection."""

from refrag.machine.collector import collector_paused
from refrag.serving.request_parameters import RAG_INPUTS
from refrag.serving.triton import reply_to_each, settings_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        with collector_paused():
            # Imported here, since Triton loads this file once more to complete its config.
            from refrag.serving.retriever import Retriever, RetrieverSettings

            settings = settings_from(args, RetrieverSettings)
            self.retriever = Retriever(version_folder(args) / "checkpoint", settings)

    def execute(self, requests):
        return reply_to_each(requests, self.retriever.run, RAG_INPUTS)

    def finalize(self):
        self.retriever.close()
