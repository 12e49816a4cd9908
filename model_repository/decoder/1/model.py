"""Triton model `decoder`: mixed prompt → streamed answer. Decoupled: execute() queues and returns at once."""

from refrag.machine.collector import collector_paused
from refrag.serving.triton import input_names, parameters_from, version_folder


class TritonPythonModel:
    def initialize(self, args):
        with collector_paused():
            # Imported here, since Triton loads this file once more to complete its config.
            from refrag.serving.decoder import DecoderService

            self.service = DecoderService(version_folder(args) / "checkpoint", parameters_from(args), input_names(args))

    def execute(self, requests):
        for request in requests:
            self.service.accept(request)

    def finalize(self):
        self.service.close()
