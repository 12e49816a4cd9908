"""Triton model `refrag_watched`: the ensemble, for callers who leave. Decoupled: execute() only hands requests on."""

from refrag.serving.triton import settings_from


class TritonPythonModel:
    def initialize(self, args):
        # Imported here, since Triton loads this file once more to complete its config.
        from refrag.serving.watched import WatchedGraph, WatchedSettings

        self.service = WatchedGraph(settings_from(args, WatchedSettings))

    def execute(self, requests):
        for request in requests:
            self.service.accept(request)

    def finalize(self):
        self.service.close()
